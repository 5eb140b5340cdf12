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
# # Where does the memory go
#
# **Why does training take so many times the memory of the weights, and what can be given up?**
#
# A model that answers fits on a phone; the same model in training wants a server. The difference is
# not mysterious. It is a list of arrays, and every one of them can be counted on paper.
#
# ## Four arrays for every weight
#
# Training keeps the weights, a gradient for each of them, and AdamW's two running averages: the
# mean of the gradients and the mean of their squares. In float32 that is four times four bytes.

# %%
import numpy as np

from gpt import GPT, GPTConfig, scaling
from lessons.figure import BLUE, GREEN, ORANGE, PURPLE, canvas, say, show

config = GPTConfig(vocab_size=256, block_size=256, n_layer=6, n_head=6, n_embd=384)
batch = 8
tokens = batch * config.block_size
parameters = scaling.count_parameters(config)
state = 16 * parameters
assert state == scaling.adamw_bytes(parameters).live
say(f"{parameters / 1e6:.1f}M parameters are {4 * parameters / 1e6:.0f} MB to use, and "
    f"{state / 1e6:.0f} MB to train.")  # fmt: skip

# %% [markdown]
# ## What the tape keeps
#
# And that is the smaller part. Lesson one's tape remembered the values of the way forward, because
# the way back needs them. In a network they are called *activations*. Go through one layer and ask
# of each operation: which arrays does its backward need? Sizes are in numbers per token, for a
# width of $C$:

# %%
C, H = config.n_embd, config.n_head
kept = [
    ("first norm: its input", C),
    ("projection to q, k, v: its input", C),
    ("attention: q, k and v", 3 * C),
    ("projection back: its input, which is attention's output", C),
    ("second norm: its input", C),
    ("widening: its input", C),
    ("GELU: its input, four times as wide", 4 * C),
    ("narrowing: its input, as wide", 4 * C),
    ("norms: mean and deviation, twice", 4),
    ("attention: one log-sum-exp per head", H),
]
for what, count in kept:
    print(f"{count:6}  {what}")
per_token = sum(count for _, count in kept)
print(f"{per_token:6}  numbers per token and layer, of which {16 * C} are 16 times the width")

# %% [markdown]
# What is *not* in the list matters as much. An addition needs nothing on its way back. A matrix of
# attention scores would be as wide as the context is long, for every head; attention in tiles makes
# it again instead of keeping it.
#
# ## The same from the package
#
# The package can *rehearse* a step: the real model runs, its kernels switched off, and every byte
# that it would ask for is counted. One layer more should cost exactly what is on the list.

# %%
import dataclasses

import tinygrad_edu as tg


def rehearse(config, recompute=False):
    """What a step holds after each operation: (FLOPs so far, bytes of activations, of gradients),
    and the most activations at any time."""
    moments, flops = [(0, 0, 0)], 0

    def after_each_op(phase, op_flops):
        nonlocal flops
        flops += op_flops
        gradients = min(chip.bytes_moved["drain"], 4 * scaling.count_parameters(config))
        moments.append((flops, chip.budget.held["activations"], gradients))

    ids = np.zeros((batch, config.block_size), int)
    with tg.memory.Rehearsal() as chip:
        model = GPT(config, recompute=recompute)
        chip.watch = after_each_op
        _, loss = model(ids, ids)
        loss.backward()
    return np.array(moments), chip.budget.peak_by_kind["activations"]


deeper = dataclasses.replace(config, n_layer=config.n_layer + 1)
moments, peak = rehearse(config)
counted = rehearse(deeper)[1] - peak
on_paper = 4 * per_token * tokens
say(f"On paper a layer keeps {on_paper / 1e6:.2f} MB for {tokens:,} tokens; "
    f"the package counts {counted / 1e6:.2f} MB.")  # fmt: skip
assert abs(counted - on_paper) < 0.01 * on_paper

# %% [markdown]
# All layers keep theirs until the way back reaches them, so the peak comes when it has just begun.
# By then a gradient of width $C$ has come down to the last layer. The first that it meets there is
# the narrowing, whose backward makes the gradient of the wide inside of the MLP. That is five
# arrays of width $C$ on top, and one that does not depend on the tokens: the gradient of the
# narrowing's weight, $4 C^2$ numbers, on its way to where gradients are kept.

# %%
array = 4 * C * tokens  # bytes
on_top = 5 * array + 4 * 4 * C**2
on_paper = config.n_layer * 4 * per_token * tokens + on_top
say(f"On paper all activations are {on_paper / 1e6:.1f} MB at their peak; the package counts "
    f"{peak / 1e6:.1f} MB, beside {state / 1e6:.0f} MB of all the rest.")  # fmt: skip
assert abs(peak - on_paper) < 0.01 * peak

# %% [markdown]
# (With a vocabulary many times as wide as the layers, the peak comes in the loss, a moment earlier:
# it makes its logits in pieces, but a piece is as wide as the vocabulary.)

# %% [markdown]
# ## Giving something up
#
# Weights are needed, gradients and averages too. Activations are not: they can be made again. Keep
# the input of each layer, forget what is inside, and when the way back arrives, run the layer a
# second time. `tg.checkpoint(layer, x)` does that, and `GPT(config, recompute=True)` does it to
# every layer.
#
# Then each layer keeps one array of width $C$. To that comes the one layer that is being walked
# through: its 16 arrays (all but one of them new, for its input is kept anyway, but its output is
# there as well) and, on top, the same as before.

# %%
moments_again, peak_again = rehearse(config, recompute=True)
on_paper = (config.n_layer + 16) * array + on_top
assert abs(peak_again - on_paper) < 0.01 * peak_again
price = moments_again[-1][0] / moments[-1][0] - 1
say(f"Activations fall from {peak / 1e6:.0f} to {peak_again / 1e6:.0f} MB (on paper "
    f"{on_paper / 1e6:.0f}): one array for each of the {config.n_layer} layers, and 16 + 5 for the "
    f"layer at hand. The price is {price:.1%} more arithmetic.")  # fmt: skip
assert peak_again < peak / 3 and 0.2 < price < 0.34

# %% [markdown]
# A third of the arithmetic would be all of forward once more; the output layer is not repeated, so
# it is somewhat less. And the numbers that come out are the same bits:

# %%
small = GPTConfig(vocab_size=50, block_size=16, n_layer=2, n_head=2, n_embd=32)
ids = np.arange(32).reshape(2, 16)
gradients = []
for recompute in (False, True):
    model = GPT(small, recompute=recompute)
    model(ids, ids)[1].backward()
    gradients.append([p.grad for p in model.parameters()])
assert all(np.array_equal(a, b) for a, b in zip(*gradients))

# %% [markdown]
# ## One step, byte by byte
#
# The tops of these mountains are a little lower than all parts at their largest: gradients arrive
# while activations leave. (A plan should not count on that, for gradients may still be there when
# the next step begins.)

# %%
longest = moments_again[-1][0] / 1e9
figure, panels = canvas(1, 2, figsize=(10.4, 4.4), sharey=True)
for axes, seen, title in (
    (panels[0], moments, "everything kept"),
    (panels[1], moments_again, "layers run again"),
):
    at, activations, gradient = seen.T
    fixed = np.full(len(at), 4.0 * parameters)
    layers = [
        ("weights", fixed, BLUE),
        ("AdamW's averages", 2 * fixed, PURPLE),
        ("gradients", gradient, GREEN),
        ("activations", activations, ORANGE),
    ]
    below = np.zeros(len(at))
    for _, nbytes, color in layers:
        top = below + nbytes
        axes.fill_between(
            at / 1e9, below / 1e6, top / 1e6, color=color, alpha=0.75, lw=0, step="post"
        )
        below = top
    axes.set_title(f"{title}: {below.max() / 1e6:.0f} MB")
    axes.set(xlabel="arithmetic done in the step (GFLOP)", xlim=(0, 1.01 * longest))
panels[0].set(ylabel="live memory (MB)", ylim=(0, 1.12 * (state + peak) / 1e6))
left = panels[0]
middle = moments[-1][0] / 3e9
for name, height, color in (("weights", 2, BLUE), ("AdamW's averages", 8, PURPLE)):
    left.text(0.3 * middle, height * parameters / 1e6, name, color="white", va="center",
              fontsize=10, bbox={"fc": color, "ec": "none", "pad": 1.5})  # fmt: skip
left.text(1.05 * middle, 1.03 * (12 * parameters + peak) / 1e6, "activations", color=ORANGE,
          ha="center")  # fmt: skip
left.annotate("gradients", (2.9 * middle, 15 * parameters / 1e6), color=GREEN, ha="right",
              xytext=(0, 75), textcoords="offset points",
              arrowprops={"arrowstyle": "-", "color": GREEN})  # fmt: skip
show(
    figure,
    "Activations pile up on the way forward and melt away on the way back, while gradients grow; "
    "with every layer run a second time (right) the mountain is a low saw, and a longer way.",
)

# %% [markdown]
# ## Where to read on
#
# - `tinygrad_edu/recompute.py`, function `checkpoint`: how a layer forgets, and runs again with the
#   same random numbers.
# - `tinygrad_edu/memory/rehearsal.py`, class `Rehearsal`: the account of a step not taken.
# - `tinygrad_edu/kernels/allocator.py`, class `Recycler`: why the second step asks the system for
#   nothing.
#
# ## Exercise
#
# Predict the peak within five percent, for any GPT that has it in a layer and not in the loss:
# `lessons/exercises/lesson_08.py`.
#
# ```sh
# python -m lessons.check 8
# ```

# %%
from lessons.check import check

check(8)
