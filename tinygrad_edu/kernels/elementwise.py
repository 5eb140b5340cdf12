"""GELU, sums and dropout, element by element, in one pass over memory.

GELU(x) = x * Phi(x), with Phi the normal distribution function; its tanh form replaces Phi by
0.5 * (1 + tanh(u)), u = sqrt(2/pi) * (x + 0.044715 x^3) (Hendrycks and Gimpel, arXiv 1606.08415).
That factor is the logistic function of 2u, so exp is all it takes.
"""

import math

import numpy as np
from numba import njit

from . import switch
from .allocator import empty
from .launch import SMALL, operand, pieces, span, task
from .philox import U32, U64, philox
from .vector_math import exp

CUBIC = 0.044715
TWICE = 2 * math.sqrt(2 / math.pi)
ROOT_HALF = math.sqrt(0.5)
DENSITY = 1 / math.sqrt(2 * math.pi)

# erfc(x) * exp(x^2) * (1 + 2x) for x >= 0 is smooth in t = (x - 3.75) / (x + 3.75), so a short
# Chebyshev series in t is enough: 24 terms give erf to an absolute error of 5e-16.
ERFC_SERIES = (
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
)


@njit(error_model="numpy", fastmath={"contract"})
def logistic_of_gelu(x):
    """0.5 * (1 + tanh(u)), in the type of x."""
    kind = type(x)
    two_u = kind(TWICE) * (x + kind(CUBIC) * (x * x * x))
    return kind(1) / (kind(1) + exp(-two_u))


SIDE_BY_SIDE = 64  # elements whose series are summed together, so that the sums vectorise


@njit(error_model="numpy")
def normal_cdf(x, out, work):
    """Phi(x) = 0.5 * (1 + erf(x / sqrt 2)) in float64, absolute error below 1e-15.

    x: at most SIDE_BY_SIDE numbers; work: float64 (3, SIDE_BY_SIDE).
    """
    t, older, newer = work[0], work[1], work[2]
    for i in range(len(x)):
        z = min(abs(np.float64(x[i]) * ROOT_HALF), 30.0)  # Phi is 0 or 1 by then; inf / inf is NaN
        t[i] = 2.0 * (z - 3.75) / (z + 3.75)
        older[i] = newer[i] = 0.0
    for term in range(len(ERFC_SERIES) - 1, 0, -1):  # Clenshaw's recurrence
        coefficient = ERFC_SERIES[term]
        for i in range(len(x)):
            sum_i = t[i] * newer[i] - older[i] + coefficient
            older[i] = newer[i]
            newer[i] = sum_i
    for i in range(len(x)):
        value = np.float64(x[i]) * ROOT_HALF
        z = min(abs(value), 30.0)
        series = 0.5 * t[i] * newer[i] - older[i] + ERFC_SERIES[0]
        tail = 0.5 * exp(-z * z) * series / (1.0 + 2.0 * z)
        out[i] = np.nan if value != value else tail if value < 0.0 else 1.0 - tail


@task
def gelu_task(arrays, sizes, numbers, piece, slot):
    n, step, tanh = sizes[0], sizes[1], sizes[2]
    first, last = piece * step, min(n, (piece + 1) * step)
    x, y = span(arrays[0], first, last), span(arrays[1], first, last)
    kind = x.dtype.type
    if tanh:
        for i in range(len(x)):
            y[i] = x[i] * logistic_of_gelu(x[i])
    else:
        cdf, work = np.empty(SIDE_BY_SIDE), np.empty((3, SIDE_BY_SIDE))
        for start in range(0, last - first, SIDE_BY_SIDE):
            some, target = x[start : start + SIDE_BY_SIDE], y[start : start + SIDE_BY_SIDE]
            normal_cdf(some, cdf, work)
            for i in range(len(some)):
                target[i] = some[i] * kind(cdf[i])


@task
def gelu_backward_task(arrays, sizes, numbers, piece, slot):
    n, step, tanh = sizes[0], sizes[1], sizes[2]
    first, last = piece * step, min(n, (piece + 1) * step)
    x, grad, dx = (
        span(arrays[0], first, last),
        span(arrays[1], first, last),
        span(arrays[2], first, last),
    )
    kind = x.dtype.type
    if tanh:  # s + x s', with s' = s (1 - s) * 2u'
        for i in range(len(x)):
            v = x[i]
            s = logistic_of_gelu(v)
            square = min(v * v, kind(1e6))  # s is 0 or 1 by then; 0 * inf is NaN
            slope = kind(TWICE) * (kind(1) + kind(3 * CUBIC) * square)
            dx[i] = grad[i] * (s + v * s * (kind(1) - s) * slope)
    else:
        cdf, work = np.empty(SIDE_BY_SIDE), np.empty((3, SIDE_BY_SIDE))
        for start in range(0, last - first, SIDE_BY_SIDE):
            some, upstream = x[start : start + SIDE_BY_SIDE], grad[start : start + SIDE_BY_SIDE]
            target = dx[start : start + SIDE_BY_SIDE]
            normal_cdf(some, cdf, work)
            for i in range(len(some)):
                v = np.float64(some[i])
                target[i] = upstream[i] * kind(cdf[i] + v * DENSITY * exp(-0.5 * v * v))


def gelu(x: np.ndarray, tanh: bool) -> np.ndarray:
    """GELU of every element, in its tanh form or exact."""
    source = operand(x)
    out = empty(x.shape, source.dtype)
    count, step = pieces(x.size, 1)
    gelu_task(count, [source, out], [x.size, step, tanh])
    return out.astype(x.dtype, copy=False)


def gelu_backward(x: np.ndarray, grad: np.ndarray, tanh: bool) -> np.ndarray:
    """grad * d GELU(x)/dx."""
    source = operand(x)
    out = empty(x.shape, source.dtype)
    count, step = pieces(x.size, 1)
    gelu_backward_task(count, [source, operand(grad, source.dtype), out], [x.size, step, tanh])
    return out.astype(x.dtype, copy=False)


@task
def add_task(arrays, sizes, numbers, piece, slot):
    n, step = sizes[0], sizes[1]
    first, last = piece * step, min(n, (piece + 1) * step)
    a, b, y = (
        span(arrays[0], first, last),
        span(arrays[1], first, last),
        span(arrays[2], first, last),
    )
    for i in range(len(a)):
        y[i] = a[i] + b[i]


def add(a: np.ndarray, b: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """a + b, broadcast; on all threads where both are many contiguous floats of one shape.

    `out` may be either of them.
    """
    if out is None:
        same = a.shape == b.shape and a.dtype is b.dtype
        shape = a.shape if same else np.broadcast_shapes(a.shape, b.shape)
        out = empty(shape, a.dtype if same else np.result_type(a, b))
    if switch.off:
        return out
    alike = a.shape == b.shape and a.dtype == b.dtype == out.dtype and a.dtype.char in "fd"
    if out.size < SMALL or not (
        alike and a.dtype.isnative
        and a.flags.c_contiguous and b.flags.c_contiguous and out.flags.c_contiguous
    ):  # fmt: skip
        return np.add(a, b, out=out)
    count, step = pieces(a.size, 1)
    add_task(count, [a, b, out], [a.size, step])
    return out


RUN = 128  # elements that NumPy adds up one after the other, at most, where it adds in pairs


def sum_axes(
    a: np.ndarray, axes: tuple[int, ...], keepdims: bool = False, dtype: np.dtype | None = None
) -> np.ndarray:
    """The sum over `axes`, which leave the shape or become 1, in a's dtype or in `dtype`.

    NumPy adds in pairs along the last axis in memory, and one after the other along any other:
    there a large sum swallows small terms (in float16 it stays at 2048 when ones are added). So
    long sums of that kind, and all in float16, are taken in the next larger dtype.
    """
    kept = tuple(1 if axis in axes else n for axis, n in enumerate(a.shape))
    shape = kept if keepdims else tuple(n for i, n in enumerate(a.shape) if i not in axes)
    out = empty(shape, a.dtype if dtype is None else dtype)
    inner = a.ndim
    while inner - 1 in axes and a.flags.c_contiguous:
        inner -= 1
    in_runs = math.prod(a.shape[axis] for axis in axes if axis < inner)
    wide = {np.float16: np.float32, np.float32: np.float64}.get(a.dtype.type, a.dtype)
    narrow = wide == out.dtype or (a.dtype == out.dtype != np.float16 and in_runs < RUN)
    total = out if narrow else empty(shape, wide, "workspace")
    if switch.off:
        return out
    np.add.reduce(a, axis=axes, keepdims=keepdims, dtype=total.dtype, out=total)
    if total is not out:
        np.copyto(out, total, casting="same_kind")
    return out


WORDS = 64  # consecutive elements that take the same word of four of consecutive counters


@task
def dropout_task(arrays, sizes, numbers, piece, slot):
    """y = x * mask / (1 - p). Element 256 c + 64 w + l: word w of counter 64 c + l."""
    n, step = sizes[0], sizes[1]
    key, threshold = U64(sizes[2]), U32(sizes[3])
    first, last = piece * step, min(n, (piece + 1) * step)
    x, y = span(arrays[0], first, last), span(arrays[1], first, last)
    kind = x.dtype.type
    scale, zero = kind(numbers[0]), kind(0)
    factors = np.empty(4 * WORDS, x.dtype)
    for start in range(0, last - first, 4 * WORDS):
        counter = U64((first + start) // 4)
        low, high = U32(counter), U32(counter >> U64(32))
        for i in range(WORDS):
            a, b, c, d = philox(U32(low + U32(i)), high, U32(0), U32(0), key)
            factors[i] = scale if a >= threshold else zero
            factors[WORDS + i] = scale if b >= threshold else zero
            factors[2 * WORDS + i] = scale if c >= threshold else zero
            factors[3 * WORDS + i] = scale if d >= threshold else zero
        end = min(start + 4 * WORDS, last - first)
        block_x, block_y = x[start:end], y[start:end]
        for i in range(len(block_x)):
            block_y[i] = block_x[i] * factors[i]


def threshold_and_scale(p: float) -> tuple[int, float]:
    """A random uint32 below the threshold means "drop"; the rest is scaled."""
    return min(round(p * 2**32), 2**32 - 1), 1 / (1 - p) if p < 1 else 0.0


def dropout(x: np.ndarray, p: float, key: int) -> np.ndarray:
    """Zero with probability `p`, else x / (1 - p).

    The bits are a function of `key` (below 2^63) and the element's place alone.
    """
    source = operand(x)
    out = empty(x.shape, source.dtype)
    threshold, scale = threshold_and_scale(p)
    count, step = pieces(x.size, 1)
    dropout_task(count, [source, out], [x.size, step, key, threshold], [scale])
    return out.astype(x.dtype, copy=False)
