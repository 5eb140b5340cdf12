"""GELU, erf and dropout masks: element-wise formulas that NumPy lacks or would do in many passes.

GELU(x) = x * Phi(x), with Phi the normal distribution function; its tanh form replaces Phi by
0.5 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3))) (Hendrycks and Gimpel, arXiv 1606.08415).
"""

import math

import numpy as np

from .allocator import empty
from .blocks import flat, row_blocks

SQRT_2_OVER_PI = math.sqrt(2 / math.pi)
CUBIC = 0.044715

# erfc(x) * exp(x^2) * (1 + 2x) for x >= 0 is smooth in t = (x - 3.75) / (x + 3.75), so a short
# Chebyshev series in t is enough: 24 terms give erf to an absolute error of 5e-16.
ERFC_SERIES = np.array(
    [
        1.1775789345674017541,
        -0.0045900545806464773309,
        -0.084249133366517915584,
        0.059209939998191890498,
        -0.026658668435305752277,
        0.0090749976707052650939,
        -0.0024131635404176081909,
        0.00049077583652580863229,
        -0.000069169733025012063671,
        4.1390279860730101675e-6,
        7.7403830661984906686e-7,
        -2.1886401049234395661e-7,
        1.0764999465670910377e-8,
        4.5219598112182868979e-9,
        -7.7544002088313511065e-10,
        -6.3180883408866844944e-11,
        2.8687950109306698981e-11,
        1.945586854577734723e-13,
        -9.6546967484334389059e-13,
        3.2525481481487398415e-14,
        3.3478119482868053878e-14,
        -1.8645628804193131016e-15,
        -1.2507950530688647086e-15,
        7.4182352566240434579e-17,
    ]
)


def erf(x: np.ndarray) -> np.ndarray:
    """The error function, computed in float64, absolute error below 1e-15."""
    z = np.minimum(np.abs(x, dtype=np.float64), 30.0)  # erf is 1 far earlier, and inf/inf is not
    series = np.polynomial.chebyshev.chebval((z - 3.75) / (z + 3.75), ERFC_SERIES)
    return np.copysign(1 - np.exp(-z * z) * series / (1 + 2 * z), x)


def gelu(x: np.ndarray, tanh: bool) -> np.ndarray:
    """GELU of every element, in its tanh form or exact."""
    out = empty(x.shape, x.dtype)
    source, target = flat(x), flat(out)
    for block in row_blocks(x.size, x.itemsize):
        v, y = source[block], target[block]
        if tanh:
            np.multiply(v, v, out=y)
            y *= CUBIC * SQRT_2_OVER_PI
            y += SQRT_2_OVER_PI
            y *= v
            np.tanh(y, out=y)
        else:
            y[...] = erf(v * math.sqrt(0.5))
        y += 1
        y *= v
        y *= 0.5
    return out


def gelu_backward(x: np.ndarray, grad: np.ndarray, tanh: bool) -> np.ndarray:
    """grad * d GELU(x)/dx."""
    out = empty(x.shape, x.dtype)
    source, upstream, target = flat(x), flat(grad), flat(out)
    for block in row_blocks(x.size, x.itemsize):
        v, y = source[block], target[block]
        square = v * v
        if tanh:
            # 0.5 (1 + t) + 0.5 x (1 - t^2) c (1 + 3 CUBIC x^2)
            #   = 0.5 (1 + t) (1 + x (1 - t) c (1 + 3 CUBIC x^2))
            t = np.tanh((square * (CUBIC * SQRT_2_OVER_PI) + SQRT_2_OVER_PI) * v)
            square *= 3 * CUBIC * SQRT_2_OVER_PI
            square += SQRT_2_OVER_PI
            square *= v
            np.subtract(1, t, out=y)
            y *= square
            y += 1
            t += 1
            y *= t
            y *= 0.5
        else:
            density = np.exp(square * -0.5) * (1 / math.sqrt(2 * math.pi))
            y[...] = 0.5 * (1 + erf(v * math.sqrt(0.5))) + v * density
        y *= upstream[block]
    return out


def dropout_scale(shape: tuple[int, ...], p: float, key: int, dtype: np.dtype) -> np.ndarray:
    """What dropout multiplies by: 0 with probability `p`, else 1 / (1 - p).

    The bits come from a counter-based generator (Philox), so the same `key` gives the same mask
    whenever it is asked for: backward makes the mask again instead of keeping it.
    """
    size = math.prod(shape)
    out = empty(shape, dtype)
    target = flat(out)
    bits = np.random.Philox(key=key)
    threshold = np.uint32(min(round(p * 2**32), 2**32 - 1))
    scale = np.dtype(dtype).type(1 / (1 - p)) if p < 1 else np.dtype(dtype).type(0)
    for block in row_blocks(size, 4):
        words = bits.random_raw((block.stop - block.start + 1) // 2).view(np.uint32)
        keep = words[: block.stop - block.start] >= threshold
        np.multiply(keep, scale, out=target[block])
    return out
