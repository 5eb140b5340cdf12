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

from lessons.figure import BLUE, GREEN, ORANGE, canvas, say, show


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
        """Adds the gradients of <grad, self> to everything below (each value used once)."""
        self.grad = self.grad + grad
        if self.pull_back is not None:
            for source, part in zip(self.inputs, self.pull_back(grad)):
                source.backward(part)


a, b = Value(np.ones((2, 3))), Value(np.full((2, 3), 5.0))
(a * b).backward(np.ones((2, 3)))
a.grad

# %% [markdown]
# As long as shapes agree, all is well. Now add a row to every row of a matrix, which is what the
# bias of every layer does. The forward pass is right:

# %%
matrix, bias = Value(np.arange(6.0).reshape(2, 3)), Value(np.array([10.0, 20.0, 30.0]))
total = matrix + bias
print(total.data)

# %% [markdown]
# And the gradient is not even of the right shape:

# %%
total.backward(np.ones((2, 3)))
print("bias has shape", bias.data.shape, "and its gradient", bias.grad.shape)
assert bias.grad.shape != bias.data.shape

# %% [markdown]
# ## Stretching is copying
#
# NumPy's rule: shapes are aligned at the right; an axis that is missing, or that has size one, is
# repeated as often as needed. The bias was copied into both rows, without a word.
#
# But a copy is a use. `bias[0]` was used once for each row, and a value that is used twice changes
# the result in two ways, which add up: that was the `+=` of lesson one. So
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
# It has to work for every pair of shapes. So try all the odd ones: nothing at all (`()`), size one,
# size zero. And compare with an honest referee, the nudge, which knows nothing of shapes.

# %%
rng = np.random.default_rng(0)
PAIRS = [
    ((2, 3), (3,)), ((2, 3), (2, 1)), ((2, 3), ()), ((2, 3), (1, 1)), ((4, 1, 3), (2, 1)),
    ((5, 1), (1, 4)), ((0, 3), (3,)), ((2, 0), (1, 0)), ((1,), ()), ((2, 3), (2, 3)),
]  # fmt: skip


def nudged(function, x, cotangent, h=1e-6):
    """Slopes of <cotangent, function(x)>, element by element."""
    slopes = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[i] += h
        down[i] -= h
        slopes[i] = (cotangent * (function(up) - function(down))).sum() / (2 * h)
    return slopes


for first, second in PAIRS:
    x, y = rng.standard_normal(first), rng.standard_normal(second)
    cotangent = rng.standard_normal(np.broadcast_shapes(first, second))
    ours = unbroadcast(cotangent * y, first), unbroadcast(cotangent * x, second)
    assert np.allclose(ours[0], nudged(lambda v, y=y: v * y, x, cotangent), atol=1e-7)
    assert np.allclose(ours[1], nudged(lambda v, x=x: x * v, y, cotangent), atol=1e-7)
    shape = np.broadcast_shapes(first, second)
    print(f"{first!s:10} * {second!s:8} -> {shape!s:10} gradients {ours[0].shape}, {ours[1].shape}")

# %% [markdown]
# ## The same from the package
#
# `tinygrad_edu` undoes broadcasting in one place, when a gradient arrives at the input it belongs
# to. So no operation has to think of it, and none can forget it. It must agree with ours, to the
# last bit:

# %%
import tinygrad_edu as tg
from tinygrad_edu import tape

for first, second in PAIRS:
    x, y = rng.standard_normal(first), rng.standard_normal(second)
    cotangent = rng.standard_normal(np.broadcast_shapes(first, second))
    s, t = tg.Tensor(x, requires_grad=True), tg.Tensor(y, requires_grad=True)
    (s * t).backward(cotangent)
    assert np.array_equal(s.grad, tape.unbroadcast(cotangent * y, first))
    assert np.allclose(s.grad, unbroadcast(cotangent * y, first), rtol=1e-14)
    assert np.allclose(t.grad, unbroadcast(cotangent * x, second), rtol=1e-14)
    assert (s.grad.shape, t.grad.shape) == (first, second)
say(f"All {len(PAIRS)} pairs of shapes agree, forward and back.")

# %% [markdown]
# ## There and back

# %%
row = np.array([10.0, 20.0, 30.0])
cotangent = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
summed = unbroadcast(cotangent, row.shape)

from matplotlib.patches import Rectangle

figure, axes = canvas(figsize=(9, 4.6))
axes.axis("off")


def grid(numbers, left, top, color, title):
    """Draws an array as cells, from its upper left corner."""
    cells = np.atleast_2d(numbers)
    for (i, j), number in np.ndenumerate(cells):
        corner = (left + j, top - i - 1)
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, ec=color, lw=1.6))
        axes.text(corner[0] + 0.5, corner[1] + 0.5, f"{number:g}", color=color, ha="center",
                  va="center", fontsize=13)  # fmt: skip
    axes.text(left + cells.shape[1] / 2, top + 0.2, title, color=color, ha="center")


def arrow(start, end, color, text, height):
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": color, "lw": 1.8})
    axes.text((start[0] + end[0]) / 2, height, text, color=color, ha="center", fontsize=9.5)


grid(row, 0, 4.4, BLUE, f"bias {row.shape}")
grid(np.broadcast_to(row, (2, 3)), 7, 4.9, BLUE, "stretched (2, 3)")
arrow((3.4, 3.9), (6.6, 3.9), BLUE, "forward: copied into each row", 4.05)
grid(cotangent, 7, 1.5, ORANGE, "gradient of the sum (2, 3)")
grid(summed, 0, 1.0, GREEN, f"gradient of bias {summed.shape}")
arrow((6.6, 0.5), (3.4, 0.5), GREEN, "backward: summed over the rows", 0.65)
axes.set(xlim=(-0.2, 10.2), ylim=(-0.7, 5.5), aspect="equal")
show(
    figure,
    "What broadcasting copied on the way forward, the gradient sums on the way back: each element "
    "of the bias receives what all of its copies received.",
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
# `np.where(condition, a, b)` takes three arrays, each of which may be stretched. Open
# `lessons/exercises/lesson_02.py` and write its gradient, without help from the package.
#
# ```sh
# python -m lessons.check 2
# ```

# %%
from lessons.check import check

check(2)
