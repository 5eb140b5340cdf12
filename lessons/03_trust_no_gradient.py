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

from lessons.figure import BLUE, INK, ORANGE, canvas, show


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
# Looking to both sides, $(f(x + h) - f(x - h)) / 2h$, a *central difference*, cancels the term with
# $f''$. What is left of truncation is $h^2 f'''/6$, and rounding is halved, so a larger, safer $h$
# will do. The sum of both errors is least where its derivative by $h$ is zero:
#
# - one-sided: $\varepsilon |f| / h + h |f''| / 2$ is least at
#   $h = \sqrt{2 \varepsilon |f| / |f''|}$;
# - both sides: $\varepsilon |f| / 2h + h^2 |f'''| / 6$ at
#   $h = \sqrt[3]{3 \varepsilon |f| / 2 |f'''|}$.

# %%
second = abs(f(1.0) * (np.cos(1.0) ** 2 - np.sin(1.0)))  # |f''(1)|, by hand
third = abs(slope(1.0) * (np.cos(1.0) ** 2 - 3 * np.sin(1.0) - 1))  # |f'''(1)|
steps = np.logspace(-14, 0, 400)


def theory(h, dtype, central):
    """The relative error of the slope that truncation and rounding add up to."""
    eps = np.finfo(dtype).eps
    if central:
        return (eps * f(1.0) / (2 * h) + h**2 * third / 6) / slope(1.0)
    return (eps * f(1.0) / h + h * second / 2) / slope(1.0)


def best_step(dtype, central):
    eps = np.finfo(dtype).eps
    return np.cbrt(3 * eps * f(1.0) / (2 * third)) if central else np.sqrt(2 * eps * f(1) / second)


def measured(dtype, central):
    """The relative error that is found, for each of `steps`, computed in `dtype`."""
    at, h = dtype(1.0), steps.astype(dtype)
    ahead, behind = at + h, at - h if central else at
    with np.errstate(invalid="ignore"):  # 0 / 0, for steps that rounding swallows whole
        found = (f(ahead) - f(behind)) / (ahead - behind)  # the step that was really taken
    return np.abs(found.astype(np.float64) - slope(1.0)) / slope(1.0)


def measured_best(dtype, central):
    """The step with the least error, typical for its neighbourhood: single ones are luck."""
    errors = measured(dtype, central)
    typical = np.array([np.median(errors[max(0, i - 12) : i + 13]) for i in range(len(steps))])
    return steps[np.nanargmin(typical)], np.nanmin(typical)


print("                        best step by theory   measured   its error")
for dtype in (np.float64, np.float32):
    for central, sides in ((False, "one-sided"), (True, "both sides")):
        step, error = measured_best(dtype, central)
        wanted = best_step(dtype, central)
        print(f"{dtype.__name__:8} {sides:12} {wanted:20.0e} {step:10.0e} {error:11.0e}")
        assert 0.1 < step / wanted < 10

# %% [markdown]
# Theory, which counts with the worst that rounding can do, finds the best step to within a small
# factor, and that is enough. In float32 even the best step leaves an error that could pass for a
# mistake, or hide one. So gradients are checked in float64, whatever they are trained in.
#
# ## Which number to compare?
#
# A network has millions of inputs; nudging them one by one takes hours. Nudge them all at once, in
# a random direction $v$: the slope along $v$ has to be $\text{gradient} \cdot v$. A wrong gradient
# gives the right sum for a random $v$ only by a miracle.
#
# On the other side, most operations have many outputs, and `backward` wants to be told how much
# each one matters: lesson 2's *cotangent*. Many checks take ones, which is what `y.sum()` amounts
# to. Here are two mistakes that have been made many times: a factor that is in the forward pass
# only, and a standard deviation that the backward pass takes for a constant.
#
# (A `tg.Function` is an operation of one's own. `forward` computes, on NumPy arrays, and saves in
# `ctx` what the way back will need; `backward` turns the gradient of the output into that of the
# input, as `pull_back` did in lesson 2; and `apply` calls it, with the tape watching.)

# %%
import tinygrad_edu as tg


class WarmSoftmax(tg.Function):
    """softmax(x / 2): exp of each element of a row, as a share of the row's sum of them."""

    @staticmethod
    def forward(ctx, x):
        e = np.exp((x - x.max(-1, keepdims=True)) / 2)
        y = e / e.sum(-1, keepdims=True)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, grad):
        (y,) = ctx.saved_tensors
        return y * (grad - (grad * y).sum(-1, keepdims=True))  # and where is the 2?


class Normalise(tg.Function):
    """Rows with mean 0 and standard deviation 1."""

    @staticmethod
    def forward(ctx, x):
        spread = x.std(-1, keepdims=True)
        ctx.save_for_backward(spread)
        return (x - x.mean(-1, keepdims=True)) / spread

    @staticmethod
    def backward(ctx, grad):
        (spread,) = ctx.saved_tensors  # which changes with x, too
        return (grad - grad.mean(-1, keepdims=True)) / spread


# %% [markdown]
# And here is a gradient check in a dozen lines, which leaves the cotangent to us.


# %%
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
ones = np.ones((2, 5))
for wrong in (WarmSoftmax, Normalise):
    with_ones = check_gradient(wrong.apply, x, ones, rng)
    at_random = check_gradient(wrong.apply, x, rng.standard_normal((2, 5)), rng)
    verdicts = ["passes" if passed else "fails" for passed in (with_ones, at_random)]
    print(f"{wrong.__name__:12} cotangent of ones: {verdicts[0]:8} random: {verdicts[1]}")
    assert with_ones and not at_random

# %% [markdown]
# The rows of a softmax always add up to one. Whatever is done to the inputs, the sum of the outputs
# does not move, so under a cotangent of ones its gradient *is* zero, and a wrong factor before it
# goes unseen. The rows of `Normalise`, whose usual name is layer norm, always add up to zero, with
# the same result. Ones ask the one question that wrong answers get right; random numbers ask all of
# them at once.
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
    "WarmSoftmax": WarmSoftmax.apply,
    "Normalise": Normalise.apply,
}
for name, function in functions.items():
    ours = check_gradient(function, x, rng.standard_normal((2, 5)), rng)
    theirs = tg.gradcheck(function, x, raise_exception=False)
    print(f"{name:13} ours: {ours!s:6} gradcheck: {theirs}")
    assert ours == theirs

# %% [markdown]
# And where ours only shakes its head, it says where and why:

# %%
from textwrap import fill

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


for function, inputs in ((WarmSoftmax.apply, (x,)), (Scale.apply, (x, np.ones(5)))):
    try:
        tg.gradcheck(function, *inputs)
    except GradcheckError as error:
        print(error, end="\n\n")

# %% [markdown]
# One thing no check can do: judge what it was not shown. Nudging a function at positive numbers
# says nothing about negative ones, nor a single row about two. The inputs are the experiment, and
# choosing them is the part that cannot be automated. Also mind kinks, as `relu`, which is
# `max(x, 0)`, has one at 0: there is no slope to compare with, and `gradcheck` says so instead of
# blaming the gradient.

# %%
try:
    tg.gradcheck(lambda t: t.relu(), np.array([0.0, 1.0]))
except GradcheckError as error:
    print(fill(str(error), 100))

# %% [markdown]
# ## The V

# %%
figure, axes = canvas(figsize=(8.4, 5))
for dtype, color in ((np.float64, BLUE), (np.float32, ORANGE)):
    for central, size, shade, line in ((False, 4, 0.4, "--"), (True, 8, 0.8, "-")):
        errors = measured(dtype, central)
        reachable = theory(steps, dtype, central) < 5
        axes.scatter(steps, errors, s=size, color=color, alpha=shade, lw=0)
        axes.loglog(steps[reachable], theory(steps[reachable], dtype, central), color=color,
                    lw=1.2, ls=line)  # fmt: skip
        best = best_step(dtype, central)
        ring = {"marker": "o", "ms": 9, "mfc": "none", "mec": color, "mew": 1.6}
        axes.plot(best, theory(best, dtype, central), **ring)

tilted = {"fontsize": 9.5, "rotation_mode": "anchor"}
axes.text(2e-13, 9e-3, "rounding: as 1 / h", color=BLUE, rotation=-32, **tilted)
axes.text(2e-7, 4e-7, "truncation: as h", color=BLUE, rotation=32, **tilted)
axes.text(7e-4, 4e-9, "truncation:\nas h squared", color=BLUE, fontsize=9.5)
axes.text(2e-5, 5e-12, "float64", color=BLUE, fontsize=13)
axes.text(6e-5, 0.4, "float32", color=ORANGE, fontsize=13)
legend = (
    "dots: measured\nlines: theory\nrings: its best step\n"
    "fine dots, dashed: one-sided\nbold dots, solid: both sides"
)
axes.text(2e-14, 3e-13, legend, color=INK, fontsize=9.5)
axes.set(
    xlabel="step h (units of x)", ylabel="error of the slope (relative)",
    ylim=(1e-13, 10), xlim=(1e-14, 1),
)  # fmt: skip
digits = {dtype: -np.log10(measured_best(dtype, True)[1]) for dtype in (np.float32, np.float64)}
show(
    figure,
    "Smaller steps help until rounding takes over, and each bend of the four Vs is where theory "
    f"puts it: looking to both sides, float64 gets {digits[np.float64]:.0f} digits right and "
    f"float32 {digits[np.float32]:.0f}.",
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
# `lessons/suspects.py` holds eight operations. Three of their gradients are wrong, and none of the
# three for all inputs. Find them, and prove it: `lessons/exercises/lesson_03.py` says how.
#
# ```sh
# python -m lessons.check 3
# ```

# %%
from lessons.check import check

check(3)
