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
# # Tensors
#
# **What is the gradient of an array that was stretched to fit?**
#
# Lesson one's tape kept one number per node. Networks have millions, so nodes hold arrays, and an
# operation works on all elements at once. Little changes: data and gradients become arrays of one
# shape, slopes become functions. One thing is new, and half of all mistakes in homemade autograd
# come from it: arrays of different shapes that NumPy quietly stretches to fit.

# %%
import numpy as np

from lessons.figure import BLUE, INK, ORANGE, canvas, say, show


class Value:
    """An array that remembers how it was made."""

    def __init__(self, data, inputs=(), pull_back=None):
        self.data = np.asarray(data, float)
        self.grad = np.zeros_like(self.data)
        self.inputs = inputs
        self.pull_back = pull_back  # gradient of the output -> gradients of the inputs

    def __add__(self, other):
        return Value(self.data + other.data, (self, other), lambda grad: (grad, grad))

    def __mul__(self, other):
        def pull_back(grad):
            return grad * other.data, grad * self.data

        return Value(self.data * other.data, (self, other), pull_back)

    def backward(self, grad):
        """Adds to the gradients of all that self was made from, path by path: short, and slow."""
        self.grad = self.grad + grad
        if self.pull_back is not None:
            for source, part in zip(self.inputs, self.pull_back(grad)):
                source.backward(part)


a, b = Value(np.ones((2, 3))), Value(np.full((2, 3), 5.0))
(a * b).backward(np.ones((2, 3)))
a.grad

# %% [markdown]
# The result has many elements now, so `backward` wants to be told how much each of them matters.
# These weights are called the *cotangent*; ones mean their plain sum.
#
# As long as shapes agree, all is well. Now let them differ: a column of three numbers plus a row of
# four. NumPy adds every number of the one to every number of the other, and the forward pass is
# right:

# %%
column, row = Value([[0], [10], [20]]), Value([1, 2, 3, 4])  # (3, 1) and (4,)
table = column + row  # (3, 4)
print(table.data)

# %% [markdown]
# The gradients are not even of the right shape:

# %%
table.backward(np.ones((3, 4)))
for name, value in (("column", column), ("row", row)):
    print(f"{name:6} has shape {value.data.shape!s:6} and its gradient {value.grad.shape}")
    assert value.grad.shape != value.data.shape

# %% [markdown]
# ## Stretching is copying
#
# NumPy's rule: shapes are aligned at the right; an axis that is missing, or that has size one, is
# repeated as often as needed. The row was copied into all rows of the table, the column into all
# of its columns, without a word. (The bias of every layer in every network is such a row.)
#
# But a copy is a use. The row's first number was used once in each row of the table, and a value
# that is used several times changes the result in several ways, which add up: that was the `+=` of
# lesson one. So
#
# > **whatever was copied on the way forward is summed on the way back,** over the same axes.
#
# Which axes those are can be read from the two shapes:


# %%
def unbroadcast(grad, shape):
    """The gradient of an array of `shape`, given that of the array it was stretched to."""
    missing = grad.ndim - len(shape)
    grad = grad.sum(axis=tuple(range(missing)))  # axes it did not have
    stretched = tuple(i for i, n in enumerate(shape) if n == 1 and grad.shape[i] != 1)
    return grad.sum(axis=stretched, keepdims=True)  # axes of size one


# %% [markdown]
# No operation of the tape has to know about it. Each hands back gradients of the output's shape,
# and one line of `backward` makes them fit the inputs they belong to:


# %%
def backward(self, grad):
    self.grad = self.grad + grad
    if self.pull_back is not None:
        for source, part in zip(self.inputs, self.pull_back(grad)):
            source.backward(unbroadcast(part, source.data.shape))  # this line


Value.backward = backward

column, row = Value([[0], [10], [20]]), Value([1, 2, 3, 4])
(column + row).backward(np.ones((3, 4)))
print("column", column.grad.tolist(), "  row", row.grad.tolist())

# %% [markdown]
# Each number of the column was used once per column of the table, each of the row once per row.
#
# It has to work for every pair of shapes. So try all the odd ones: nothing at all (`()`), size one,
# size zero. And compare with an honest referee, the nudge, which knows nothing of shapes.

# %%
rng = np.random.default_rng(0)
PAIRS = [
    ((3, 1), (4,)), ((2, 3), (3,)), ((2, 3), (2, 1)), ((2, 3), ()), ((2, 3), (1, 1)),
    ((4, 1, 3), (2, 1)), ((1, 3), (3,)), ((0, 3), (3,)), ((2, 0), (1, 1)), ((1,), ()), ((), ()),
]  # fmt: skip


def nudged(function, x, cotangent, h=1e-6):
    """Slopes of the sum of cotangent * function(x), for each element of x."""
    slopes = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[i] += h
        down[i] -= h
        slopes[i] = (cotangent * (function(up) - function(down))).sum() / (2 * h)
    return slopes


tried = []
for first, second in PAIRS:
    shape = np.broadcast_shapes(first, second)
    x, y, cotangent = (np.asarray(rng.standard_normal(n)) for n in (first, second, shape))
    a, b = Value(x), Value(y)
    (a * b).backward(cotangent)
    assert np.allclose(a.grad, nudged(lambda v, y=y: v * y, x, cotangent), atol=1e-7)
    assert np.allclose(b.grad, nudged(lambda v, x=x: x * v, y, cotangent), atol=1e-7)
    tried.append((a, b, cotangent))
    print(f"{first!s:9} * {second!s:6} -> {shape!s:9}   gradients {a.grad.shape}, {b.grad.shape}")

# %% [markdown]
# Mind the lines with a zero: a number stretched over nothing was used zero times, so its gradient
# is there, has its shape, and is 0.
#
# ## The same from the package
#
# `tinygrad_edu` undoes broadcasting in the same place: when a gradient arrives at the input it
# belongs to. So no operation has to think of it, and none can forget it. It must agree with ours:

# %%
import tinygrad_edu as tg
from tinygrad_edu import tape

for a, b, cotangent in tried:
    s, t = (tg.Tensor(value.data, requires_grad=True) for value in (a, b))
    (s * t).backward(cotangent)
    for ours, theirs in ((a, s), (b, t)):
        assert theirs.grad.shape == theirs.shape == ours.grad.shape
        assert np.allclose(theirs.grad, ours.grad, rtol=1e-12, atol=1e-14)
        shape = ours.data.shape
        found, expected = tape.unbroadcast(cotangent, shape), unbroadcast(cotangent, shape)
        assert found.shape == shape and np.allclose(found, expected, rtol=1e-12, atol=1e-14)
say(f"All {len(tried)} pairs of shapes agree, forward and back.")

# %% [markdown]
# ## There and back

# %%
from matplotlib.patches import Rectangle

cotangent = np.array([[1, 0, 2, 1], [0, 3, 1, 1], [2, 1, 0, 4]])
column, row = Value([[0], [10], [20]]), Value([1, 2, 3, 4])
table = column + row
table.backward(cotangent)

figure, axes = canvas(figsize=(9.2, 4.3))
axes.axis("off")


def cells(numbers, left, top, color):
    """Draws an array as a grid, from its upper left corner."""
    for (i, j), number in np.ndenumerate(np.atleast_2d(numbers)):
        x, y = left + j, top - i - 1
        axes.add_patch(Rectangle((x, y), 1, 1, fc=(*color_of(color), 0.1), ec=color, lw=1.6))
        axes.text(x + 0.5, y + 0.5, f"{number:g}", color=color, fontsize=13, **middle)


def color_of(name):
    return tuple(int(name[i : i + 2], 16) / 255 for i in (1, 3, 5))


def arrow(start, end, color):
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": color, "lw": 1.6})


middle = {"ha": "center", "va": "center"}
sides = ((0, column.data, row.data, table.data), (9.2, column.grad, row.grad, cotangent))
for left, at_the_side, on_top, inside in sides:
    back = left > 0
    cells(at_the_side, left, 3, ORANGE)
    cells(on_top, left + 2, 5, BLUE)
    cells(inside, left + 2, 3, INK)
    for i in range(3):
        ends = (left + 1.06, 2.5 - i), (left + 1.94, 2.5 - i)
        arrow(*(ends[::-1] if back else ends), ORANGE)
    for j in range(4):
        ends = (left + 2.5 + j, 3.94), (left + 2.5 + j, 3.06)
        arrow(*(ends[::-1] if back else ends), BLUE)
    what = "gradient of the " if back else ""
    axes.text(left + 4, 5.28, f"{what}row (4,)", color=BLUE, **middle)
    label = "gradient of\nthe column\n(3, 1)" if back else "column\n(3, 1)"
    axes.text(left + 0.5, 3.2, label, color=ORANGE, ha="center", va="bottom")
    axes.text(left + 4, -0.32, f"{what}table (3, 4)", color=INK, **middle)
    title = "backward: copies are summed" if back else "forward: arrays are copied"
    axes.text(left + 3, 6.1, title, color=INK, fontsize=13, **middle)
axes.set(xlim=(-0.6, 15.5), ylim=(-0.7, 6.4), aspect="equal")
assert np.array_equal(row.grad, cotangent.sum(0)) and column.grad.shape == (3, 1)
show(
    figure,
    "Forward, the row is copied down the table and the column across it; backward, the same arrows "
    "turn round, and where an arrow spread copies it now collects their sum.",
    diagram=True,
)

# %% [markdown]
# ## Where to read on
#
# - `tinygrad_edu/tape.py`, function `unbroadcast`: the same, with an error for shapes that could
#   never have been stretched.
# - `tinygrad_edu/ops/elementwise.py`, class `Multiply`: a backward that knows nothing of shapes.
#
# ## Exercise
#
# `np.where(condition, a, b)` takes three arrays, each of which may be stretched. In the package the
# tape would do the summing, for a `tg.Function` of your own as well. Here you are the tape: open
# `lessons/exercises/lesson_02.py` and write the gradients with NumPy alone.
#
# ```sh
# python -m lessons.check 2
# ```

# %%
from lessons.check import check

check(2)
