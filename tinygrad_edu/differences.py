"""Derivatives of a user's function in two ways: by central differences, and by backward.

    <c, f(x + h v) - f(x - h v)> / 2h  ~  d<c, f>/dv

for a direction v and a cotangent c (one number per output element), up to truncation (h^2) and
roundoff (eps |f| / h). Two step sizes, h and h/2, cancel the h^2 term (Richardson) and show
whether the quotients settle at all: beside a kink they do not.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import tape
from .tensor import Tensor, apply, constant

STEP = 5e-4  # times the input's own scale: h^4 truncation and eps / h roundoff are both near 1e-12
EPS = np.finfo(np.float64).eps


class GradcheckError(AssertionError):
    """A gradient is wrong, or `f` is such that it cannot be checked; the message says which."""


@dataclass(frozen=True)
class Slope:
    """A derivative by central differences, and how far to trust it."""

    value: float
    noise: float  # what roundoff alone may have added
    smooth: bool  # the quotients settle as the step shrinks, from both sides alike

    def agrees(self, analytic: float, tolerance: float) -> bool:
        allowed = self.noise + tolerance * max(abs(analytic), abs(self.value))
        return abs(analytic - self.value) <= allowed  # False for NaN


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
    return float(np.linalg.norm((cotangent * out).ravel()))


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
            raise ValueError("gradcheck needs at least one floating-point Tensor, array or number")
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

    def slope(self, values: dict, i: int, direction: np.ndarray, cotangents: list) -> Slope:
        """The derivative of <cotangents, f> by input `i` along `direction`."""
        y = {}
        for t in (-2, -1, 0, 1, 2):  # in units of half a step
            moved = values[i].copy(order="K")
            moved[...] += t * STEP / 2 * direction
            y[t] = self.outputs({**values, i: moved})
            if not all(np.isfinite(out).all() for out in y[t]):
                raise GradcheckError(
                    f"f is not finite when input {i} moves by {STEP:g} of its scale: they lie "
                    "at the edge of where f is defined; choose others"
                )

        def quotient(a: int, b: int) -> float:
            rise = [after - before for after, before in zip(y[b], y[a], strict=True)]
            return pair(cotangents, rise) / ((b - a) * STEP / 2)

        central_full, central_half = quotient(-2, 2), quotient(-1, 1)
        noise = 64 * EPS * math.hypot(*map(weight_of, cotangents, y[0])) / STEP
        # On a smooth f the quotients of the two sides differ by f'' h, which halves with the step.
        bend_full, bend_half = quotient(0, 2) - quotient(-2, 0), quotient(0, 1) - quotient(-1, 0)
        size = max(abs(quotient(0, 1)), abs(quotient(-1, 0)), abs(central_full))
        unsettled = abs(central_full - central_half) > 1e-3 * size + noise
        kink = (
            abs(bend_half) > 1e-3 * size + noise and abs(bend_full - bend_half) < abs(bend_half) / 2
        )
        return Slope((4 * central_half - central_full) / 3, noise, not (unsettled or kink))

    def elements(self, values: dict, i: int, picks: Sequence, cotangents: list) -> list[Slope]:
        """Partial derivatives by the elements of input `i` at the flat indices `picks`."""
        slopes = []
        for pick in picks:
            at = np.unravel_index(pick, values[i].shape)
            direction = np.zeros(values[i].shape)
            unit = direction[at] = self.scales[i][at]
            slope = self.slope(values, i, direction, cotangents)
            slopes.append(Slope(slope.value / unit, slope.noise / unit, slope.smooth))
        return slopes
