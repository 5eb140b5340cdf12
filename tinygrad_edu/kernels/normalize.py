"""Layer norm, RMS norm and softmax: formulas over rows, each with its backward beside it.

Every function takes rows flattened to (N, C) and works through them in cache-sized blocks.
Backward recomputes the normalised rows from two numbers per row instead of storing them.

    xhat = (x - mean) * rstd        y = xhat * weight + bias
    dx   = rstd * (h - mean(h) - xhat * mean(h * xhat)),  h = dy * weight

RMS norm is the same with mean = 0 and without the mean(h) term (Zhang and Sennrich, 1910.07467).
"""

import numpy as np

from .allocator import empty, zeros
from .blocks import row_blocks


def layer_norm(
    x: np.ndarray, weight: np.ndarray | None, bias: np.ndarray | None, eps: float, center: bool
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """(N, C) -> y (N, C), mean (N, 1) or None, rstd (N, 1); `center` False gives RMS norm."""
    n, c = x.shape
    y, rstd = empty((n, c), x.dtype), empty((n, 1), x.dtype)
    mean = empty((n, 1), x.dtype) if center else None
    square = None
    for rows in row_blocks(n, c * x.itemsize):
        v = y[rows]
        if center:
            np.mean(x[rows], axis=1, keepdims=True, out=mean[rows])
            np.subtract(x[rows], mean[rows], out=v)
        else:
            np.copyto(v, x[rows])
        square = np.multiply(v, v, out=None if square is None else square[: len(v)])
        r = np.mean(square, axis=1, keepdims=True, out=rstd[rows])
        r += eps
        np.sqrt(r, out=r)
        np.divide(1, r, out=r)
        v *= r
        if weight is not None:
            v *= weight
        if bias is not None:
            v += bias
    return y, mean, rstd


def layer_norm_backward(
    grad: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray | None,
    mean: np.ndarray | None,
    rstd: np.ndarray,
    needs: tuple[bool, bool, bool],
) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """Gradients of x (N, C), weight (C,) and bias (C,), as `needs` asks."""
    n, c = x.shape
    dx = empty((n, c), x.dtype) if needs[0] else None
    dweight = zeros((c,), x.dtype) if needs[1] else None
    dbias = zeros((c,), x.dtype) if needs[2] else None
    for rows in row_blocks(n, c * x.itemsize):
        g = grad[rows]
        if needs[0] or needs[1]:
            xhat = x[rows] - mean[rows] if mean is not None else x[rows].copy()
            xhat *= rstd[rows]
        if needs[1]:
            dweight += np.einsum("nc,nc->c", g, xhat)
        if needs[2]:
            dbias += g.sum(axis=0)
        if needs[0]:
            d = np.multiply(g, 1 if weight is None else weight, out=dx[rows])
            projection = np.einsum("nc,nc->n", d, xhat)[:, None] / c
            xhat *= projection
            if mean is not None:
                d -= d.mean(axis=1, keepdims=True)
            d -= xhat
            d *= rstd[rows]
    return dx, dweight, dbias


def softmax(x: np.ndarray, axis: int, log: bool) -> np.ndarray:
    """softmax or log-softmax of `x` along `axis`, shifted by the maximum so exp cannot overflow."""
    out = empty(x.shape, x.dtype)
    if x.size == 0:
        return out
    np.subtract(x, x.max(axis=axis, keepdims=True), out=out)
    if log:
        out -= np.log(np.exp(out).sum(axis=axis, keepdims=True))
    else:
        np.exp(out, out=out)
        out /= out.sum(axis=axis, keepdims=True)
    return out


def softmax_backward(grad: np.ndarray, y: np.ndarray, axis: int, log: bool) -> np.ndarray:
    """From the output alone: y (g - sum(g y)), or g - exp(y) sum(g) for the logarithm."""
    out = empty(y.shape, y.dtype)
    if log:
        np.exp(y, out=out)
        out *= grad.sum(axis=axis, keepdims=True)
        return np.subtract(grad, out, out=out)
    np.multiply(grad, y, out=out)
    total = out.sum(axis=axis, keepdims=True)
    np.subtract(grad, total, out=out)
    out *= y
    return out
