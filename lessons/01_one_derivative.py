# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # One derivative
#
# **How can a program know how much its result changes when one of its inputs changes a little?**
#
# Whoever wants the result smaller moves each input a little against its slope, again and again.
# That is *gradient descent*, the way in which neural networks learn, and it needs these slopes, the
# *gradients*, for millions of inputs at once. This lesson finds them for a handful of numbers, and
# the forty lines that do it are, but for arrays instead of numbers, the heart of `tinygrad_edu`.
#
# Here is a program with three inputs: a point moves along a line, and a loss says how far from its
# goal it ends.

# %%
def program(speed, minutes, start):
    position = start + speed * minutes
    miss = position - 10
    return miss * miss


program(3.0, 2.0, 1.0)

# %% [markdown]
# ## Nudge it and see
#
# The honest way to learn how a result depends on an input: change the input a little, look.

# %%
from lessons.figure import BLUE, GREEN, INK, ORANGE, canvas, say, show

nudge = 1e-6
before = program(3.0, 2.0, 1.0)
slopes = [
    (program(3.0 + nudge, 2.0, 1.0) - before) / nudge,
    (program(3.0, 2.0 + nudge, 1.0) - before) / nudge,
    (program(3.0, 2.0, 1.0 + nudge) - before) / nudge,
]
for name, slope in zip(("speed", "minutes", "start"), slopes):
    print(f"d loss / d {name:8} {slope:9.4f}")

# %% [markdown]
# It works, and it costs one run of the program *per input*. The language model of lesson 7, a small
# GPT, has more than half a million inputs. There is a way to get all slopes for the price of about
# two more runs.
#
# ## The chain rule, by hand
#
# Each step of the program is a small function whose slopes school taught us (and `distance` is a
# name for the step that had none). Walk from the loss back to the inputs, and multiply as you go:
#
# - `loss = miss * miss`, so the loss changes by $2 \cdot \text{miss}$ for each unit of `miss`;
# - `miss = position - 10`: the same again for each unit of `position`;
# - `position = start + distance`: the same for `start`, and the same for `distance`;
# - `distance = speed * minutes`: a unit of `speed` is worth `minutes` units of distance, and the
#   other way round.

# %%
speed, minutes, start = 3.0, 2.0, 1.0
miss = start + speed * minutes - 10  # forward: compute, and remember what was computed

d_miss = 2 * miss  # backward: from the loss to the inputs
d_position = d_miss
d_start = d_position
d_distance = d_position
d_speed = d_distance * minutes
d_minutes = d_distance * speed

for by_hand, by_nudge in zip((d_speed, d_minutes, d_start), slopes):
    assert abs(by_hand - by_nudge) < 1e-3
d_speed, d_minutes, d_start

# %% [markdown]
# Two things were needed: the values from the way forward (`minutes`, `speed`, `miss`), and the
# order of the steps, to walk it backwards. A program that writes both down while it runs is
# called a **tape**.
#
# ## A tape in forty lines
#
# A `Value` is a number that remembers how it was made: from which values (`inputs`), and how much
# it changes for a unit of each (`slopes`), which is known the moment the operation runs.


# %%
class Value:
    """A number that remembers how it was made."""

    def __init__(self, data, inputs=(), slopes=(), name=""):
        self.data, self.inputs, self.slopes = float(data), inputs, slopes
        self.grad = 0.0  # d result / d self, once `backward` has run
        self.name = name

    def __add__(self, other):
        other = other if isinstance(other, Value) else Value(other)
        return Value(self.data + other.data, (self, other), (1.0, 1.0), "+")

    def __mul__(self, other):
        other = other if isinstance(other, Value) else Value(other)
        return Value(self.data * other.data, (self, other), (other.data, self.data), "*")

    def __sub__(self, other):
        return self + other * -1.0

    def backward(self):
        """Fills in `grad` of everything that this value was made from."""
        order, seen, stack = [], set(), [(self, False)]
        while stack:  # a value comes after all that it was made from
            value, inputs_done = stack.pop()
            if inputs_done:
                order.append(value)
            elif value not in seen:
                seen.add(value)
                stack.append((value, True))
                stack += [(source, False) for source in value.inputs]
        self.grad = 1.0  # d self / d self
        for value in reversed(order):
            for source, slope in zip(value.inputs, value.slopes):
                source.grad += slope * value.grad  # the chain rule


# %% [markdown]
# The last line is the chain rule. Its `+=` matters as much as its `*`: a value that is used twice
# changes the result in two ways, and they add up. (`miss * miss` uses `miss` twice.)
#
# The loop above it puts the values in order. It is a loop and not a recursion, because real
# programs are deeper than Python's stack.

# %%
speed, minutes, start = Value(3, name="speed"), Value(2, name="minutes"), Value(1, name="start")
distance = speed * minutes
position = start + distance
goal = Value(-10, name="- goal")
miss = position + goal
loss = miss * miss
loss.backward()

for value, slope in zip((speed, minutes, start), slopes):
    print(f"{value.name:8} tape {value.grad:9.4f}   nudged {slope:9.4f}")
    assert abs(value.grad - slope) < 1e-3

# %% [markdown]
# ## The same from the package
#
# `tinygrad_edu.Tensor` is this `Value` with an array for a number. It must agree, and does, digit
# for digit:

# %%
import tinygrad_edu as tg

a, b, c = (tg.Tensor(x, requires_grad=True, dtype="float64") for x in (3.0, 2.0, 1.0))
tensor_loss = program(a, b, c)  # the very same function
tensor_loss.backward()

assert tensor_loss.item() == loss.data
assert [a.grad, b.grad, c.grad] == [speed.grad, minutes.grad, start.grad]
say(f"Both find {speed.grad:g}, {minutes.grad:g} and {start.grad:g}.")

# %% [markdown]
# ## What flows where

# %%
places = {
    speed: (0, 2), minutes: (0, 1), start: (1, 2.6), distance: (1, 1.5), position: (2, 2.05),
    goal: (2, 1), miss: (3, 1.55), loss: (4, 1.55),
}  # fmt: skip
names = {
    distance: "distance =\nspeed * minutes", position: "position =\nstart + distance",
    miss: "miss =\nposition - goal", loss: "loss =\nmiss * miss",
}  # fmt: skip

figure, axes = canvas(figsize=(9, 3.9))
axes.axis("off")
for value, (x, y) in places.items():
    for source in value.inputs:
        x0, y0 = places[source]
        bend = {"arrowstyle": "-|>", "color": INK, "lw": 1.3, "shrinkA": 38, "shrinkB": 38}
        axes.annotate("", (x, y), (x0, y0), arrowprops=bend)
    color = GREEN if value is loss else BLUE if value.inputs else ORANGE
    box = {"boxstyle": "round,pad=0.45", "fc": "none", "ec": color, "lw": 1.6}
    axes.text(x, y, f"{value.data:g}", ha="center", va="center", color=color, bbox=box, fontsize=13)
    title = names.get(value, value.name)
    axes.text(x, y + 0.25, title, ha="center", va="bottom", fontsize=9.5)
    axes.text(x, y - 0.36, f"gradient {value.grad:g}", ha="center", fontsize=9.5, color=color)
axes.set(xlim=(-0.45, 4.5), ylim=(0.45, 3.05))
show(
    figure,
    "Values (in the boxes) are computed from left to right; gradients (below them) from right to "
    "left, each one telling by how much the loss changes per unit of that value.",
    diagram=True,
)

# %% [markdown]
# ## Where to read on
#
# - `tinygrad_edu/tape.py`, function `walk`: this lesson's `backward` for arrays. It also frees the
#   tape as it goes, and refuses to walk it twice.
# - `tinygrad_edu/ops/elementwise.py`: an operation's forward and backward, side by side.
#
# ## Exercise
#
# Real networks bend their numbers with functions such as `tanh`. Open
# `lessons/exercises/lesson_01.py`, which has this tape, and add `tanh` to it. Then:
#
# ```sh
# python -m lessons.check 1
# ```

# %%
from lessons.check import check

check(1)
