"""Derivatives of a user's function in two ways: by central differences, and by backward.

    <c, f(x + h v) - f(x - h v)> / 2h  ~  d<c, f>/dv

for a direction v and a cotangent c (one number per output element), up to truncation (h^2) and
roundoff (eps |f| / h). Two step sizes, h and h/2, cancel the h^2 term (Richardson) and show
whether the quotients settle at all: beside a kink they do not. Where they disagree with backward,
shorter steps tell a wrong gradient, wrong at every step, from a step that was too long for `f`.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import tape
from .tensor import Tensor, apply, constant

STEP = 5e-4  # times the input's own scale: h^4 truncation and eps / h roundoff are both near 1e-12
SHORTER = (1.0, 1e-2, 1e-4)  # times STEP: tried in turn until backward is confirmed
EPS = np.finfo(np.float64).eps


class GradcheckError(AssertionError):
    """A gradient is wrong, or `f` is such that it cannot be checked; the message says which."""


@dataclass(frozen=True)
class Slope:
    """A derivative by central differences, and how far to trust it."""

    value: float
    noise: float  # what roundoff alone may have added
    smooth: bool  # the quotients settle as the step shrinks, from both sides alike
    size: float  # the largest of the quotients, one-sided ones too
    drift: float  # how far the quotient went from one step to half of it

    def allowed(self, analytic: float, tolerance: float) -> float:
        return self.noise + tolerance * max(abs(analytic), abs(self.value))

    def agrees(self, analytic: float, tolerance: float) -> bool:
        miss = abs(analytic - self.value)  # NaN is below nothing
        return math.isfinite(analytic) and miss <= self.allowed(analytic, tolerance)

    def per(self, unit: float) -> "Slope":
        value, noise, size, drift = self.value, self.noise, self.size, self.drift
        return Slope(value / unit, noise / unit, self.smooth, size / unit, drift / unit)


NOWHERE = Slope(math.nan, math.inf, False, 0.0, math.inf)  # f is not finite on the way


def settle(trials: Iterable[Slope], analytic: float, tolerance: float) -> Slope:
    """The first of the `trials`, longest step first, that confirms `analytic`; else the best one.

    A shorter step has more noise. It confirms only if the miss of the first one would stand far
    above that, and not if the first one settled on a clearly different number: below its rounding
    any f is a staircase, and a gradient of zeros right.
    """
    trials = iter(trials)
    first = next(trials)
    if first.agrees(analytic, tolerance):
        return first
    miss = abs(analytic - first.value)
    precise = first.smooth and first.drift <= 1e-5 * first.size
    ruled_out = first.smooth and miss > 1e-2 * first.size + first.noise
    if precise and ruled_out:
        return first
    tried = [first]
    for slope in trials:
        tried.append(slope)
        clear = slope.noise <= 1e-4 * max(slope.size, first.size) and not slope.noise > 0.1 * miss
        if clear and not ruled_out and slope.agrees(analytic, tolerance):
            return slope
    trusted = [
        s
        for s in tried
        if s.smooth and s.noise <= 1e-3 * s.size and not s.agrees(analytic, tolerance)
    ]
    if precise or not trusted:
        return first
    return min(trusted, key=lambda s: s.noise + s.drift)


class Pairing:
    """The op sum_k <cotangent_k, output_k>, which turns the outputs of `f` into one scalar."""

    @staticmethod
    def forward(ctx, *outputs, cotangents):
        ctx.cotangents = cotangents
        return np.asarray(pair(cotangents, outputs))

    @staticmethod
    def backward(ctx, grad):
        return tuple(grad * c for c in ctx.cotangents)


def pair(cotangents: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> float:
    return math.fsum(float((c * out).sum()) for c, out in zip(cotangents, outputs, strict=True))


def step_scale(x: np.ndarray) -> np.ndarray:
    """Each element's own magnitude, at least 1% of the typical one, and 1 if all are 0."""
    typical = math.sqrt(float((x * x).mean())) if x.size else 0.0
    return np.maximum(np.abs(x), 0.01 * typical or 1.0)


def weight_of(cotangent: np.ndarray, out: np.ndarray) -> float:
    return float(np.hypot.reduce((cotangent * out).ravel()))  # whose squares may overflow


class Probe:
    """`f` as a function of `values`: a float64 array for each floating input, by position."""

    def __init__(self, f: Callable[..., Any], inputs: tuple) -> None:
        self.f, self.inputs = f, inputs
        arrays = [x.data if isinstance(x, Tensor) else x for x in inputs]
        self.values = {
            i: np.array(x, np.float64, order="K")  # "K": a transposed input stays transposed
            for i, x in enumerate(arrays)
            if isinstance(x, (float, np.ndarray, np.generic)) and np.asarray(x).dtype.kind == "f"
        }
        if not self.values:
            kinds = [f"{type(x).__name__} {getattr(x, 'dtype', '')}".strip() for x in inputs]
            given = ", ".join(kinds) or "nothing"
            raise ValueError(
                "gradcheck needs at least one floating-point Tensor, array or number, got "
                f"{given}: write numbers as 1.0, and lists as arrays"
            )
        self.scales = {i: step_scale(x) for i, x in self.values.items()}

    def call(self, values: dict, wanted: Sequence[int]) -> tuple[dict, tuple[Tensor, ...]]:
        """Fresh leaves (gradients for the inputs `wanted`), and the outputs of `f` on them."""
        leaves = {i: constant(x.copy(order="K"), i in wanted) for i, x in values.items()}
        result = self.f(*(leaves.get(i, x) for i, x in enumerate(self.inputs)))
        outputs = tuple(result) if isinstance(result, (tuple, list)) else (result,)
        for k, out in enumerate(outputs):
            if not isinstance(out, Tensor):
                raise TypeError(
                    f"gradcheck: output {k} of f is a {type(out).__name__}, not a Tensor"
                )
            if out.dtype != np.float64:
                raise TypeError(
                    f"gradcheck: output {k} of f is {out.dtype} for float64 inputs: differences in "
                    "lower precision say nothing, so f has to keep the dtype of its inputs"
                )
        return leaves, outputs

    def outputs(self, values: dict) -> list[np.ndarray]:
        with tape.no_grad():
            return [np.array(out.data) for out in self.call(values, ())[1]]

    def gradients(self, cotangents: list, wanted: Sequence[int] | None = None) -> dict:
        """What backward gives for each input; zeros where nothing arrived."""
        with tape.enable_grad():
            leaves, outputs = self.call(self.values, self.values if wanted is None else wanted)
            if not any(out.requires_grad for out in outputs):
                raise GradcheckError(
                    "the output of f is not connected to any floating-point input: is it made "
                    "from .data or .detach(), under no_grad(), or from other values?"
                )
            loss = apply(Pairing, *outputs, cotangents=cotangents)
            try:
                loss.backward()
            except Exception as error:
                if wanted is not None:
                    raise
                culprits = [str(i) for i in self.values if self.raises(cotangents, i)]
                raise GradcheckError(
                    f"backward raised {type(error).__name__}: {error}\n"
                    f"  for the gradient of input {', '.join(culprits) or 'unknown'} of f"
                ) from error
        return {i: np.zeros(x.shape) if x.grad is None else x.grad for i, x in leaves.items()}

    def raises(self, cotangents: list, i: int) -> bool:
        try:
            self.gradients(cotangents, [i])
        except GradcheckError:
            return False
        except Exception:
            return True
        return False

    def slope(
        self, values: dict, i: int, direction: np.ndarray, cotangents: list, step: float = STEP
    ) -> Slope:
        """The derivative of <cotangents, f> by input `i` along `direction`."""
        y = {}
        for t in (-2, -1, 0, 1, 2):  # in units of half a step
            moved = values[i].copy(order="K")
            moved[...] += t * step / 2 * direction
            y[t] = self.outputs({**values, i: moved})
            if not all(np.isfinite(out).all() for out in y[t]):
                return NOWHERE

        def quotient(a: int, b: int) -> float:
            rise = [after - before for after, before in zip(y[b], y[a], strict=True)]
            return pair(cotangents, rise) / ((b - a) * step / 2)

        central_full, central_half = quotient(-2, 2), quotient(-1, 1)
        # On a smooth f the quotients of the two sides differ by f'' h, which halves with the step.
        bend_full, bend_half = quotient(0, 2) - quotient(-2, 0), quotient(0, 1) - quotient(-1, 0)
        size = max(abs(quotient(0, 1)), abs(quotient(-1, 0)), abs(central_full))
        drift = abs(central_full - central_half)
        # Both f and the inputs moved are rounded: the latter counts where f is 0 and flat. Where
        # the quotients differ, or are 0, f may be what is left of numbers near 1 that cancel.
        regular = max(drift, abs(bend_full - 2 * bend_half)) < 1e-5 * size
        sums = y[0] if regular else [np.maximum(np.abs(out), 1) for out in y[0]]
        noise = 64 * EPS * (math.hypot(*map(weight_of, cotangents, sums)) + size) / step
        unsettled = drift > 1e-3 * size + noise
        kink = abs(bend_half) > max(1e-3 * size + noise, abs(bend_full) * 2 / 3)
        value = (4 * central_half - central_full) / 3
        return Slope(value, noise, not (unsettled or kink), size, drift)

    def along(
        self, i: int, direction: np.ndarray, cotangents: list, analytic: float, tolerance: float
    ) -> Slope:
        """`slope` at the step that suits `f`, to compare with `analytic`."""
        trials = (
            self.slope(self.values, i, direction, cotangents, STEP * shorter) for shorter in SHORTER
        )
        return self.defined(settle(trials, analytic, tolerance), i)

    def defined(self, slope: Slope, i: int) -> Slope:
        if slope is NOWHERE:
            raise GradcheckError(
                f"f is not finite when input {i} moves by {STEP:g} of its scale: they lie "
                "at the edge of where f is defined; choose others"
            )
        return slope

    def elements(
        self,
        values: dict,
        i: int,
        picks: Sequence,
        cotangents: list,
        given: Sequence[float] | None = None,
        tolerance: float = 0.0,
    ) -> list[Slope]:
        """Partial derivatives by the elements of input `i` at the flat indices `picks`.

        Where they miss the ones `given` by backward, shorter steps are tried, and at last one to
        the element's own scale, should it be much smaller than the others.
        """

        def trials(at: tuple) -> Iterable[Slope]:
            unit, own = self.scales[i][at], abs(values[i][at])
            moves = [(unit, shorter) for shorter in SHORTER]
            for scale, shorter in [*moves, (own, 1.0)] if 0 < own < unit else moves:
                direction = np.zeros(values[i].shape)
                direction[at] = scale
                slope = self.slope(values, i, direction, cotangents, STEP * shorter)
                yield slope if slope is NOWHERE else slope.per(scale)

        slopes = []
        for k, pick in enumerate(picks):
            tried = trials(np.unravel_index(pick, values[i].shape))
            slope = next(iter(tried)) if given is None else settle(tried, given[k], tolerance)
            slopes.append(self.defined(slope, i))
        return slopes
