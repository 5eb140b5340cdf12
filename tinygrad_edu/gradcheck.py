"""The gradient reference: is what `backward` gives the derivative of what `forward` computes?

For every input, a random direction v and a random cotangent c, central differences of <c, f> along
v have to equal <gradient under c, v>. A random cotangent matters: the outputs of a softmax add up
to 1, so a cotangent of ones would accept any multiple of its gradient, zero included.

That pass costs a few calls of `f` per input. Only if it fails, at shorter steps too, does a second
one go through the input element by element, to say where the gradient is wrong and what the mistake
looks like, or that it is right after all: elements of very different scales suit no common step.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from .differences import GradcheckError, Probe, Slope

__all__ = ["GradcheckError", "gradcheck"]

MOST_ELEMENTS = 2000  # the second pass looks at a random sample of a larger input
PATTERN_ELEMENTS = 24  # enough to recognise a cause by


def gradcheck(
    f: Callable[..., Any],
    *inputs: Any,
    rng: np.random.Generator | None = None,
    tolerance: float = 1e-6,
    directions: int = 3,
    raise_exception: bool = True,
) -> bool:
    """Compares the gradients of `f(*inputs)` with central differences, for every floating input.

    `f` gives one float64 Tensor or a tuple of them. Floating inputs (Tensors, arrays, numbers) are
    copied to float64 leaves; others are passed on as they are, and the inputs stay untouched.
    Tensors that `f` uses without being handed them are not checked (but receive gradients).
    `tolerance` is relative, above a noise floor of roundoff. Each of the `directions` has its own
    cotangent, from `rng` (by default the same ones every time). Raises `GradcheckError` with a
    verdict, or returns False if `raise_exception` is False.

        tg.gradcheck(lambda x, w: (x @ w).tanh(), np.ones((2, 3)), np.ones((3, 4)))
    """
    if isinstance(f, type):
        raise TypeError(f"gradcheck calls f(*inputs), and {f.__name__} is a class: pass its .apply")
    rng = np.random.default_rng(0) if rng is None else rng
    if not isinstance(rng, np.random.Generator):
        raise TypeError(
            f"gradcheck: rng must be a numpy.random.Generator, not {rng!r}: "
            "np.random.default_rng(seed) makes one"
        )
    if not isinstance(directions, (int, np.integer)) or directions < 1:
        raise ValueError(f"gradcheck: directions must be 1 or more, not {directions!r}")
    try:
        check(Probe(f, inputs), rng, tolerance, directions)
    except GradcheckError:
        if raise_exception:
            raise
        return False
    return True


def check(probe: Probe, rng: np.random.Generator, tolerance: float, directions: int) -> None:
    first, second = probe.outputs(probe.values), probe.outputs(probe.values)
    for k, (out, again) in enumerate(zip(first, second, strict=True)):
        if not np.isfinite(out).all():
            at = where_first(~np.isfinite(out))
            raise GradcheckError(
                f"output {k} of f is {out[at]} at {at}: it has no derivative there"
            )
        if out.shape != again.shape or np.abs(out - again).max(initial=0) > 1e-10 * largest(out):
            raise GradcheckError(
                f"f is not deterministic: output {k} differs between two calls with equal inputs "
                "(a random mask? make its generator inside f, from a fixed seed)"
            )
    for _ in range(directions):
        cotangents = [rng.standard_normal(out.shape) for out in first]
        gradients = probe.gradients(cotangents)
        wrong = {}
        for i, x in probe.values.items():
            signs = rng.choice([-1.0, 1.0], x.shape)
            direction = signs * rng.uniform(0.5, 1, x.shape) * probe.scales[i]
            analytic = float((gradients[i] * direction).sum())
            slope = probe.along(i, direction, cotangents, analytic, tolerance)
            if not slope.agrees(analytic, tolerance):
                wrong[i] = (direction, analytic, slope)
        for n, (i, miss) in enumerate(wrong.items()):
            message = verdict(probe, i, cotangents, gradients[i], *miss, tolerance, rng)
            others = ", ".join(map(str, list(wrong)[n + 1 :]))
            if message:
                raise GradcheckError(
                    message + (f"\n  also wrong: input {others}" if others else "")
                )


def largest(x: np.ndarray) -> float:
    return float(np.abs(x).max(initial=0))


def where_first(mask: np.ndarray) -> tuple[int, ...]:
    return tuple(int(n) for n in np.argwhere(mask)[0])


def verdict(
    probe: Probe,
    i: int,
    cotangents: list,
    gradient: np.ndarray,
    direction: np.ndarray,
    analytic: float,
    along: Slope,
    tolerance: float,
    rng: np.random.Generator,
) -> str | None:
    """The second pass: where the gradient of input `i` is wrong, and what that looks like.

    None if every element is right and the slope along `direction` missed by its steps alone.
    """
    x = probe.values[i]
    name = f"input {i} of f, shape {x.shape}"
    picks = np.arange(x.size)
    if x.size > MOST_ELEMENTS:
        picks = np.sort(rng.choice(x.size, MOST_ELEMENTS, replace=False))
    given = gradient.reshape(x.size)[picks]
    slopes = probe.elements(probe.values, i, picks, cotangents, given, tolerance)
    typical = 1e-9 * max((abs(s.value) for s in slopes), default=0.0)
    bad = [
        k
        for k, (g, s) in enumerate(zip(given, slopes, strict=True))
        if not (s.agrees(g, tolerance) or abs(g - s.value) <= typical)
    ]
    real = [k for k in bad if slopes[k].smooth or not np.isfinite(given[k])]
    if not bad and not along.smooth and len(picks) == x.size:
        pairs = zip(given, slopes, strict=True)
        allowed = np.array([max(s.allowed(g, tolerance), typical) for g, s in pairs])
        mixed = ((x != 0) & (np.abs(x) < probe.scales[i])).any()
        hidden = float(allowed @ np.abs(direction).reshape(x.size))
        if mixed and hidden <= 0.1 * abs(analytic - along.value):
            return None
    if not real and (bad or not along.smooth):
        at = f" (at {index_of(picks[bad[0]], x)})" if bad else ""
        return (
            f"f is not differentiable at {name}{at}: the difference quotients do not settle as the "
            "step shrinks, or differ between the two sides; move the inputs away from the kink"
        )
    if not real:
        return (
            f"the gradient of {name}, is wrong: along a random direction backward gives "
            f"{analytic:.9g} and central differences give {along.value:.9g}, though none of "
            f"{len(picks)} elements looked at shows it\n  likely cause: no simple pattern"
        )
    misses = [abs(given[k] - slopes[k].value) for k in real]
    worst = real[int(np.argmax([math.inf if math.isnan(m) else m for m in misses]))]
    value, expected = float(given[worst]), slopes[worst].value
    ratio = f", ratio {apart(value / expected)}" if abs(expected) > slopes[worst].noise else ""
    sampled = "" if len(picks) == x.size else f", a random sample of {x.size}"
    return (
        f"the gradient of {name}, is wrong\n"
        f"  worst at {index_of(picks[worst], x)}: backward gives {value:.9g}, "
        f"central differences give {expected:.9g}{ratio}\n"
        f"  {len(real)} of {len(picks)} elements looked at{sampled} are wrong\n"
        f"  likely cause: {cause(probe, i, cotangents, given, slopes, picks, worst)}"
    )


def index_of(pick: int, x: np.ndarray) -> tuple[int, ...]:
    return tuple(int(n) for n in np.unravel_index(pick, x.shape))


def apart(ratio: float) -> str:
    """In 6 digits, or as many as it takes to tell it from 1."""
    texts = (f"{ratio:.{digits}g}" for digits in range(6, 18))
    return next((text for text in texts if text != "1"), "1")


def close(a: np.ndarray, b: np.ndarray, slopes: Sequence[Slope]) -> bool:
    allowed = np.array([s.noise for s in slopes]) * 4 + 1e-5 * largest(b)
    return largest(b) > 0 and bool((np.abs(a - b) <= allowed).all())


def cause(probe, i, cotangents, given, slopes, picks, worst) -> str:
    """What a wrong gradient looks like: the first known mistake that explains every number."""
    if not np.isfinite(given).all():
        return "backward gives NaN or infinity where f itself is finite"
    if not given.any():
        return "zero gradient: backward gives nothing (or zeros) for this input"
    keep = [k for k, s in enumerate(slopes) if s.smooth]
    given, picks, slopes = given[keep], picks[keep], [slopes[k] for k in keep]
    wanted, x = np.array([s.value for s in slopes]), probe.values[i]
    factor = float(given @ wanted / (wanted @ wanted)) if wanted.any() else 0.0
    scaled = close(given, factor * wanted, slopes)
    if scaled and abs(factor + 1) < 1e-5:
        return "wrong sign: the gradient is -1 times what it should be"
    if not scaled and len(picks) == x.size and is_square(x):
        if close(given, wanted.reshape(x.shape).swapaxes(-1, -2).ravel(), slopes):
            return "transposed: the gradient's last two axes are swapped"
    # The other mistakes are tried out: which change of the question makes the answer right?
    few = np.unique(np.r_[keep.index(worst), : min(len(picks), PATTERN_ELEMENTS)])
    for text, values, changed in variations(probe, i, cotangents):
        trial = probe.elements(values, i, picks[few], changed)
        if close(given[few], np.array([s.value for s in trial]), trial):
            return text
    if scaled:
        axes = broadcast_axes(x.shape, cotangents)
        sizes = {math.prod(n for _, n in axes), *(n for _, n in axes)} - {1}
        mean = [n for n in sizes if abs(factor * n - 1) < 1e-5]
        hint = f" (1/{mean[0]}: a mean, not a sum, over a broadcast axis?)" if mean else ""
        return f"constant factor: the gradient is {apart(factor)} times what it should be{hint}"
    return "no simple pattern"


def is_square(x: np.ndarray) -> bool:
    return x.ndim >= 2 and x.shape[-1] == x.shape[-2] > 1


def broadcast_axes(shape: tuple[int, ...], cotangents: list) -> list[tuple[int, int]]:
    """(axis, size) of the output's axes along which an input of `shape` must have been repeated."""
    if len(cotangents) != 1:
        return []
    out = cotangents[0].shape
    padded = (1,) * (len(out) - len(shape)) + shape
    axes = [(a, n) for a, n in enumerate(out) if n > 1 and padded[len(padded) - len(out) + a] == 1]
    return axes if len(padded) == len(out) else []


def variations(probe: Probe, i: int, cotangents: list) -> Iterator[tuple[str, dict, list]]:
    """Questions that a mistaken backward may have answered: (mistake, inputs, cotangents)."""
    axes = broadcast_axes(probe.values[i].shape, cotangents)
    for group in [axes, *([[axis] for axis in axes] if len(axes) > 1 else [])]:
        for end in (0, -1):
            kept = np.zeros(cotangents[0].shape)
            at = [slice(None)] * kept.ndim
            for axis, _ in group:
                at[axis] = end
            kept[tuple(at)] = cotangents[0][tuple(at)]
            names = ", ".join(str(axis) for axis, _ in group)
            text = f"missing sum over broadcast axis {names} of the output: one slice is taken"
            if group:
                yield text, probe.values, [kept]
    for j, other in probe.values.items():
        if j != i and is_square(other):
            swapped = {**probe.values, j: other.swapaxes(-1, -2)}
            yield f"missing transpose: input {j} is used untransposed", swapped, cotangents
    if len(cotangents) == 1 and is_square(cotangents[0]):
        yield (
            "missing transpose: the incoming gradient is used untransposed",
            probe.values,
            [cotangents[0].swapaxes(-1, -2)],
        )
