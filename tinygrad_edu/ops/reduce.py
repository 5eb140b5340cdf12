"""Ops along axes: sums, means, variances, extrema, softmax.

`axis` is None, an int or a tuple, and `keepdims` as in NumPy. Backward puts the reduced axes back
as size 1, so that the gradient broadcasts against the input.
"""

import math

import numpy as np

from ..kernels import empty, switch
from ..kernels import normalize as kernels
from ..kernels.blocks import blockwise
from ..kernels.elementwise import sum_axes


def as_axes(axis, ndim: int) -> tuple[int, ...]:
    """Every spelling of `axis` as a tuple of non-negative ints; NumPy's own error otherwise."""
    if axis is None:
        return tuple(range(ndim))
    if type(axis) is tuple and set(axis) <= set(range(ndim)) and len(set(axis)) == len(axis):
        return axis  # as most are: NumPy takes ten times as long to say so
    return np.lib.array_utils.normalize_axis_tuple(axis, ndim)


def reduced(ctx, a, axis, keepdims):
    """Remembers the reduction on `ctx` and gives the output's shape."""
    ctx.axes, ctx.in_shape = as_axes(axis, a.ndim), a.shape
    ctx.kept = tuple(1 if i in ctx.axes else n for i, n in enumerate(a.shape))
    ctx.count = math.prod(a.shape[i] for i in ctx.axes)
    if keepdims:
        return ctx.kept
    return tuple(n for i, n in enumerate(a.shape) if i not in ctx.axes)


class Sum:
    @staticmethod
    def forward(ctx, a, axis, keepdims):
        reduced(ctx, a, axis, keepdims)
        return sum_axes(a, ctx.axes, keepdims)

    @staticmethod
    def backward(ctx, grad):
        return np.broadcast_to(grad.reshape(ctx.kept), ctx.in_shape)


def mean_of(a: np.ndarray, axes: tuple[int, ...], keepdims: bool, count: float) -> np.ndarray:
    """The sum over `count`; float16 is averaged in float32, where its sum cannot overflow."""
    total = sum_axes(a, axes, keepdims, np.dtype(np.float32) if a.dtype == np.float16 else None)
    out = empty(total.shape, a.dtype)
    if not switch.off:
        with np.errstate(invalid="ignore", divide="ignore"):
            np.divide(total, total.dtype.type(count), out=out, casting="same_kind")
    return out


class Mean:
    @staticmethod
    def forward(ctx, a, axis, keepdims):
        reduced(ctx, a, axis, keepdims)
        return mean_of(a, ctx.axes, keepdims, ctx.count)

    @staticmethod
    def backward(ctx, grad):
        grad = grad.reshape(ctx.kept)
        if grad.dtype == np.float16:  # which may be too small for the count
            grad = grad.astype(np.float32)
        return np.broadcast_to(grad / ctx.count, ctx.in_shape)


def center(a: np.ndarray, axes: tuple[int, ...], count: int) -> np.ndarray:
    """The mean, axes kept, in a's dtype but at least float32.

    It is added up in float64 and rounded once: deviations from it may be as small as its error.
    """
    total = sum_axes(a, axes, True, np.result_type(a.dtype, np.float64))
    return (total / (count or np.nan)).astype(np.result_type(a.dtype, np.float32), copy=False)


class Variance:
    """The mean squared deviation, divided by (count - ddof); NaN where that is not above 0."""

    @staticmethod
    def forward(ctx, a, axis, keepdims, ddof):
        reduced(ctx, a, axis, keepdims)
        ctx.divisor = ctx.count - ddof if ctx.count > ddof else np.nan
        ctx.save_for_backward(a)
        squares = blockwise(lambda a, mean: (a - mean) ** 2, a, center(a, ctx.axes, ctx.count))
        out = mean_of(squares, ctx.axes, keepdims, ctx.divisor)
        return out.astype(a.dtype, copy=False)

    @staticmethod
    def backward(ctx, grad):
        (a,) = ctx.saved_tensors
        mean = center(a, ctx.axes, ctx.count)
        share = grad.reshape(ctx.kept) * grad.dtype.type(2 / ctx.divisor)
        return blockwise(lambda share, a, mean: share * (a - mean), share, a, mean)


class Extreme:
    """The largest (or smallest) along axes; tied elements share the gradient equally.

    Where that is NaN, so is the gradient.
    """

    pick: staticmethod

    @classmethod
    def forward(cls, ctx, a, axis, keepdims):
        out = empty(reduced(ctx, a, axis, keepdims), a.dtype)
        if not switch.off:
            cls.pick(a, axis=ctx.axes, keepdims=keepdims, out=out)
        ctx.save_for_backward(a, out)
        return out

    @classmethod
    def backward(cls, ctx, grad):
        a, out = ctx.saved_tensors
        kept, tied = out.reshape(ctx.kept), empty(a.shape, bool, "workspace")
        if not switch.off:
            np.equal(a, kept, out=tied)
        ties = 1 if switch.off else tied.sum(axis=ctx.axes, keepdims=True)
        del tied
        with np.errstate(divide="ignore", invalid="ignore"):  # NaN is equal to nothing, and stays
            share = (grad.reshape(ctx.kept) / ties).astype(grad.dtype)
        with np.errstate(invalid="ignore"):
            return blockwise(lambda share, a, kept: (a == kept) * share, share, a, kept)


class Max(Extreme):
    pick = staticmethod(np.max)


class Min(Extreme):
    pick = staticmethod(np.min)


class Softmax:
    log = False

    @classmethod
    def forward(cls, ctx, a, axis):
        ctx.axis = axis
        out = kernels.softmax(a, axis, cls.log)
        ctx.save_for_backward(out)
        return out

    @classmethod
    def backward(cls, ctx, grad):
        (out,) = ctx.saved_tensors
        return kernels.softmax_backward(grad, out, ctx.axis, cls.log)


class LogSoftmax(Softmax):
    log = True
