"""Layer norm, RMS norm and softmax: formulas over rows, each with its backward beside it.

The norms take rows flattened to (N, C). Backward makes the normalised rows again from two numbers
per row instead of storing them.

    xhat = (x - mean) * rstd        y = xhat * weight + bias
    dx   = rstd * (h - mean(h) - xhat * mean(h * xhat)),  h = dy * weight

RMS norm is the same with mean = 0 and without the mean(h) term (Zhang and Sennrich, 1910.07467).
The gradients of weight and bias are sums over all rows: each piece of rows sums its own, and the
pieces' sums are added up in order.
"""

import numpy as np

from . import switch
from .allocator import empty
from .elementwise import sum_axes
from .launch import carray, computed_in, operand, pieces, rows, summing_task

PARTS = 64  # at most so many partial sums over rows


@summing_task
def layer_norm_task(arrays, sizes, numbers, piece, slot):
    n, c, step = sizes[0], sizes[1], sizes[2]
    center, has_weight, has_bias = sizes[3], sizes[4], sizes[5]
    first, last = piece * step, min(n, (piece + 1) * step)
    x, y = rows(arrays[0], first, last, c), rows(arrays[1], first, last, c)
    mean, rstd = rows(arrays[2], first, last, 1), rows(arrays[3], first, last, 1)
    weight, bias = carray(arrays[4], c), carray(arrays[5], c)
    kind = x.dtype.type
    eps, count, middle = kind(numbers[0]), kind(c), kind(0)
    for i in range(last - first):
        row, out = x[i], y[i]
        if center:
            total = kind(0)
            for j in range(c):
                total += row[j]
            middle = total / count
        total = rest = kind(0)
        for j in range(c):
            deviation = row[j] - middle
            rest += deviation
            total += deviation * deviation
        if center:  # what rounding left of the mean, which matters where it is far from 0
            if total < kind(np.inf):
                total = max(kind(0), total - rest * (rest / count))
            middle += rest / count
            mean[i, 0] = middle
        scale = kind(1) / np.sqrt(total / count + eps)
        if total == kind(np.inf):  # the squares overflow: those of shares of the largest do not
            largest = total = kind(0)
            for j in range(c):
                largest = max(largest, abs(row[j] - middle))
            for j in range(c):
                total += ((row[j] - middle) / largest) ** 2
            scale = kind(1) / np.sqrt(total / count) / largest
        rstd[i, 0] = scale
        if has_weight and has_bias:
            for j in range(c):
                out[j] = (row[j] - middle) * scale * weight[j] + bias[j]
        elif has_weight:
            for j in range(c):
                out[j] = (row[j] - middle) * scale * weight[j]
        else:
            for j in range(c):
                out[j] = (row[j] - middle) * scale
            if has_bias:
                for j in range(c):
                    out[j] += bias[j]


def layer_norm(
    x: np.ndarray, weight: np.ndarray | None, bias: np.ndarray | None, eps: float, center: bool
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """(N, C) -> y (N, C), mean (N, 1) or None, rstd (N, 1); `center` False gives RMS norm."""
    (n, c), source = x.shape, operand(x)
    dtype = source.dtype
    y, rstd = empty((n, c), dtype), empty((n, 1), dtype)
    mean = empty((n, 1), dtype) if center else None
    weight, bias = (None if v is None else operand(v, dtype) for v in (weight, bias))
    count, step = pieces(n, c)
    layer_norm_task(
        count,
        [source, y, mean, rstd, weight, bias],
        [n, c, step, center, weight is not None, bias is not None],
        [eps],
    )
    return y.astype(x.dtype, copy=False), mean, rstd


def parts(n: int, c: int) -> tuple[int, int]:
    """`pieces` of n rows, but at most PARTS, as each has a sum of its own."""
    step = max(pieces(n, c)[1], -(-n // PARTS))
    return -(-n // step), step


@summing_task
def layer_norm_backward_task(arrays, sizes, numbers, piece, slot):
    n, c, step = sizes[0], sizes[1], sizes[2]
    center, has_weight = sizes[3], sizes[4]
    need_x, need_weight, need_bias = sizes[5], sizes[6], sizes[7]
    first, last = piece * step, min(n, (piece + 1) * step)
    grad, x = rows(arrays[0], first, last, c), rows(arrays[1], first, last, c)
    mean, rstd = rows(arrays[2], first, last, 1), rows(arrays[3], first, last, 1)
    weight, dx = carray(arrays[4], c), rows(arrays[5], first, last, c)
    dweight, dbias = (
        rows(arrays[6], piece, piece + 1, c)[0],
        rows(arrays[7], piece, piece + 1, c)[0],
    )
    kind = x.dtype.type
    count, middle = kind(c), kind(0)
    if need_weight:
        dweight[:] = kind(0)
    if need_bias:
        dbias[:] = kind(0)
    for i in range(last - first):
        g, row = grad[i], x[i]
        scale = rstd[i, 0]
        if center:
            middle = mean[i, 0]
        if need_weight:
            for j in range(c):
                dweight[j] += g[j] * ((row[j] - middle) * scale)
        if need_bias:
            for j in range(c):
                dbias[j] += g[j]
        if need_x:
            out = dx[i]
            total, projection = kind(0), kind(0)
            if has_weight:
                for j in range(c):
                    h = g[j] * weight[j]
                    total += h
                    projection += h * ((row[j] - middle) * scale)
            else:
                for j in range(c):
                    total += g[j]
                    projection += g[j] * ((row[j] - middle) * scale)
            total = total / count if center else kind(0)
            projection /= count
            if has_weight:
                for j in range(c):
                    xhat = (row[j] - middle) * scale
                    out[j] = (g[j] * weight[j] - total - xhat * projection) * scale
            else:
                for j in range(c):
                    xhat = (row[j] - middle) * scale
                    out[j] = (g[j] - total - xhat * projection) * scale


def layer_norm_backward(
    grad: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray | None,
    mean: np.ndarray | None,
    rstd: np.ndarray,
    needs: tuple[bool, bool, bool],
) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """Gradients of x (N, C), weight (C,) and bias (C,), as `needs` asks."""
    (n, c), source = x.shape, operand(x)
    dtype = source.dtype
    count, step = parts(n, c)
    dx = empty((n, c), dtype) if needs[0] else None
    dweight, dbias = (empty((count, c), dtype) if need else None for need in needs[1:])
    weight = None if weight is None else operand(weight, dtype)
    layer_norm_backward_task(
        count,
        [operand(grad, dtype), source, mean, rstd, weight, dx, dweight, dbias],
        [n, c, step, mean is not None, weight is not None, *needs],
    )
    dx = None if dx is None else dx.astype(x.dtype, copy=False)
    return dx, sum_parts(dweight, x.dtype), sum_parts(dbias, x.dtype)


def sum_parts(sums: np.ndarray | None, dtype: np.dtype) -> np.ndarray | None:
    """Partial sums (pieces, C) -> (C,), added in order."""
    if sums is None:
        return None
    out = empty(sums.shape[1:], sums.dtype)
    if not switch.off:
        np.add.reduce(sums, axis=0, out=out)
    return out.astype(dtype, copy=False)


@summing_task
def column_sums_task(arrays, sizes, numbers, piece, slot):
    n, c, step = sizes[0], sizes[1], sizes[2]
    first, last = piece * step, min(n, (piece + 1) * step)
    x, out = rows(arrays[0], first, last, c), rows(arrays[1], piece, piece + 1, c)[0]
    out[:] = x.dtype.type(0)
    for i in range(last - first):
        row = x[i]
        for j in range(c):
            out[j] += row[j]


def column_sums(x: np.ndarray) -> np.ndarray:
    """(N, C) -> (C,): the gradient of a bias."""
    (n, c), source = x.shape, operand(x)
    count, step = parts(n, c)
    out = empty((count, c), source.dtype)
    column_sums_task(count, [source, out], [n, c, step])
    return sum_parts(out, x.dtype)


def softmax(x: np.ndarray, axis: int, log: bool) -> np.ndarray:
    """softmax or log-softmax of `x` along `axis`, shifted by the maximum so exp cannot overflow."""
    out = empty(x.shape, x.dtype)
    if x.size == 0:
        return out
    powers = empty(x.shape, x.dtype, "workspace") if log else out
    if not switch.off:
        np.subtract(x, x.max(axis=axis, keepdims=True), out=out)
        np.exp(out, out=powers)
    total = sum_axes(powers, (axis % x.ndim,), True, computed_in(x.dtype))
    if switch.off:
        return out
    if log:
        np.subtract(out, np.log(total, out=total), out=out, casting="same_kind")
    else:
        np.divide(out, total, out=out, casting="same_kind")
    return out


def softmax_backward(grad: np.ndarray, y: np.ndarray, axis: int, log: bool) -> np.ndarray:
    """From the output alone: y (g - sum(g y)), or g - exp(y) sum(g) for the logarithm."""
    out, axes = empty(y.shape, y.dtype), (axis % y.ndim,)
    if not switch.off:
        np.exp(y, out=out) if log else np.multiply(grad, y, out=out)
    total = sum_axes(grad if log else out, axes, True)
    if switch.off:
        return out
    if log:
        out *= total
        return np.subtract(grad, out, out=out)
    np.subtract(grad, total, out=out)
    out *= y
    return out
