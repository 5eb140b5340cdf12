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
# # Trust no gradient
#
# **How do you find out that a gradient is wrong?**
#
# A wrong gradient does not crash. Training goes on, the loss even falls, only more slowly and not
# as far, and nobody ever learns why. So every gradient in this repository is checked against
# something that cannot share its mistakes: the function itself, nudged.
#
# The nudging has traps of its own. One lies in the size of the nudge, one in what is compared.

# %% [markdown]
# ## How large a nudge?
#
# The slope of $f$ at $x$ is the limit of $(f(x + h) - f(x)) / h$ for ever smaller $h$. Take a
# function whose slope we know, and watch the limit being approached.

# %%
import numpy as np

from lessons.figure import BLUE, INK, ORANGE, canvas, say, show


def f(x):
    return np.exp(np.sin(x))


def slope(x):
    return np.cos(x) * np.exp(np.sin(x))


x = 1.0
for h in (1e-1, 1e-4, 1e-8, 1e-12, 1e-15):
    found = (f(x + h) - f(x)) / h
    print(f"h = {h:.0e}   slope {found:.12f}   off by {abs(found - slope(x)):.1e}")

# %% [markdown]
# It gets better, and then it gets worse again. Two errors pull in opposite directions:
#
# - **truncation**: the function bends between $x$ and $x + h$. Taylor says by $h f''/2$: less with
#   a smaller $h$;
# - **rounding**: $f(x + h)$ and $f(x)$ are nearly equal numbers of limited precision $\varepsilon$.
#   Their difference is off by about $\varepsilon |f|$, and dividing by $h$ makes that
#   $\varepsilon |f| / h$: more with a smaller $h$.
#
# Looking to both sides, $(f(x + h) - f(x - h)) / 2h$, cancels the term with $f''$. What is left of
# truncation is $h^2 f'''/6$, so a larger, safer $h$ will do. The sum of both errors is least where
# its derivative by $h$ is zero: $h = \sqrt[3]{3 \varepsilon |f| / |f'''|}$.

# %%
steps = np.logspace(-14, 0, 200)


def errors(dtype, central):
    """The relative error of the slope for each of `steps`, computed in `dtype`."""
    at, h = dtype(1.0), steps.astype(dtype)
    ahead = at + h
    if central:
        behind = at - h
        found = (f(ahead) - f(behind)) / (ahead - behind)
    else:
        with np.errstate(invalid="ignore", divide="ignore"):
            found = (f(ahead) - f(at)) / (ahead - at)
    off = np.abs(found.astype(np.float64) - slope(1.0)) / slope(1.0)
    return np.where(np.isfinite(off), np.maximum(off, 1e-17), np.nan)


third = abs(slope(1.0) * (np.cos(1.0) ** 2 - 3 * np.sin(1.0) - 1))  # |f'''(1)|, by hand
best = {
    dtype: np.cbrt(3 * np.finfo(dtype).eps * f(1.0) / third) for dtype in (np.float32, np.float64)
}
say(
    f"By that formula the best step is about {best[np.float64]:.0e} in float64 and "
    f"{best[np.float32]:.0e} in float32."
)

# %% [markdown]
# In float32 even the best step leaves an error that could pass for a mistake, or hide one. So
# gradients are checked in float64, whatever they are trained in.
#
# ## Which number to compare?
#
# A network has millions of inputs; nudging them one by one takes hours. Nudge them all at once, in
# a random direction $v$: the slope along $v$ has to be $\text{gradient} \cdot v$. A wrong gradient
# gives the right sum for a random $v$ only by a miracle.
#
# On the other side, most operations have many outputs, and `backward` wants to be told how much
# each one matters: the *cotangent* $c$. Many checks take ones, which is what `y.sum()` amounts to.
# Here is a softmax whose author forgot how to differentiate it.

# %%
import tinygrad_edu as tg


class LazySoftmax(tg.Function):
    @staticmethod
    def forward(ctx, x):
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    @staticmethod
    def backward(ctx, grad):
        return np.zeros_like(grad)  # surely nobody will notice


def check_gradient(function, x, cotangent, rng, h=1e-5):
    """Does `backward` agree with central differences along a random direction?"""
    leaf = tg.Tensor(x, requires_grad=True)
    function(leaf).backward(cotangent)
    direction = rng.standard_normal(x.shape)

    def value(at):
        return (cotangent * function(tg.Tensor(at)).data).sum()

    nudged = (value(x + h * direction) - value(x - h * direction)) / (2 * h)
    return abs((leaf.grad * direction).sum() - nudged) <= 1e-6 * max(1.0, abs(nudged))


rng = np.random.default_rng(0)
x = rng.standard_normal((2, 5))
with_ones = check_gradient(LazySoftmax.apply, x, np.ones((2, 5)), rng)
at_random = check_gradient(LazySoftmax.apply, x, rng.standard_normal((2, 5)), rng)
print("cotangent of ones:  ", "passes" if with_ones else "fails")
print("a random cotangent: ", "passes" if at_random else "fails")
assert with_ones and not at_random

# %% [markdown]
# The rows of a softmax always add up to one. Whatever is done to the inputs, the sum of the outputs
# does not move, so its gradient *is* zero, and any multiple of the right gradient passes. Layer
# norm has the same blind spot: its outputs add up to zero. A random cotangent has none.
#
# ## The same from the package
#
# `tg.gradcheck` is this check, for every input, with several directions, a step fitted to the
# numbers, and a verdict. It has to agree with ours:

# %%
functions = {
    "exp": lambda t: t.exp(),
    "softmax": lambda t: t.softmax(axis=-1),
    "layer norm": lambda t: tg.functional.layer_norm(t, 5),
    "lazy softmax": LazySoftmax.apply,
}
for name, function in functions.items():
    ours = check_gradient(function, x, rng.standard_normal((2, 5)), rng)
    theirs = tg.gradcheck(function, x, raise_exception=False)
    print(f"{name:13} ours: {ours!s:6} gradcheck: {theirs}")
    assert ours == theirs

# %% [markdown]
# And where ours only shakes its head, it says where and why:

# %%
from tinygrad_edu.gradcheck import GradcheckError


class Scale(tg.Function):
    """Rows x (n, k), each element times `factors` (k,)."""

    @staticmethod
    def forward(ctx, x, factors):
        ctx.save_for_backward(x, factors)
        return x * factors

    @staticmethod
    def backward(ctx, grad):
        x, factors = ctx.saved_tensors
        return grad * factors, (grad * x)[0]  # the first row's share, for all rows


try:
    tg.gradcheck(Scale.apply, x, np.ones(5))
except GradcheckError as error:
    print(error)

# %% [markdown]
# ## The V

# %%
digits = {}
figure, axes = canvas(figsize=(8, 4.6))
for dtype, color in ((np.float32, ORANGE), (np.float64, BLUE)):
    name = np.dtype(dtype).name
    one_sided, both_sides = errors(dtype, central=False), errors(dtype, central=True)
    digits[dtype] = -np.log10(both_sides[np.argmin(abs(steps - best[dtype]))])
    axes.loglog(steps, one_sided, color=color, lw=1, alpha=0.55, ls="--")
    axes.loglog(steps, both_sides, color=color, lw=1.6)
    axes.axvline(best[dtype], color=color, lw=1, ls=":")
    axes.annotate(
        f"{name}\nbest step\nby theory", (best[dtype], 2e-13), color=color, fontsize=9,
        ha="left", xytext=(4, 0), textcoords="offset points",
    )  # fmt: skip
axes.annotate("rounding", (2e-12, 2e-3), color=INK, rotation=-33)
axes.annotate("truncation", (0.06, 2e-6), color=INK, rotation=55)
axes.annotate("dashed: one-sided\nsolid: both sides", (1.5e-14, 1e-9), color=INK, fontsize=9)
axes.set(
    xlabel="step h (units of x)", ylabel="error of the slope (relative)",
    ylim=(1e-13, 3), xlim=(1e-14, 1),
)  # fmt: skip
show(
    figure,
    "Smaller steps help until rounding takes over: at the best step, looking to both sides, "
    f"float64 gets {digits[np.float64]:.0f} digits right and float32 {digits[np.float32]:.0f}.",
)

# %% [markdown]
# ## Where to read on
#
# - `tinygrad_edu/gradcheck.py`, function `check`: directions, cotangents, and when the slow second
#   pass begins.
# - `tinygrad_edu/differences.py`, class `Probe`: how a step is chosen, and how noise is told from a
#   mistake.
# - `tests/test_ops_gradients.py`: every operation of the package, over shapes nobody thinks of.
#
# ## Exercise
#
# `lessons/suspects.py` holds eight operations. Three of their gradients are wrong, and two of those
# only for some inputs. Find them, and prove it: `lessons/exercises/lesson_03.py` says how.
#
# ```sh
# python -m lessons.check 3
# ```

# %%
from lessons.check import check

check(3)
