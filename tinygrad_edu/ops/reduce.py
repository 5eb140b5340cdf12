"""Ops along axes: sums, means, variances, extrema, softmax.

`axis` is None, an int or a tuple, and `keepdims` as in NumPy. Backward puts the reduced axes back
as size 1, so that the gradient broadcasts against the input.
"""

import math

import numpy as np

from ..kernels import empty
from ..kernels import normalize as kernels


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
        out = empty(reduced(ctx, a, axis, keepdims), a.dtype)
        return np.sum(a, axis=ctx.axes, keepdims=keepdims, out=out)

    @staticmethod
    def backward(ctx, grad):
        return np.broadcast_to(grad.reshape(ctx.kept), ctx.in_shape)


def averaged(function, a, out, **options):
    """`function` of `a` into `out`; float16 is added up in float32, where it cannot overflow."""
    if a.dtype != np.float16:
        return function(a, out=out, **options)
    np.copyto(out, function(a, dtype=np.float32, **options), casting="same_kind")
    return out


class Mean:
    @staticmethod
    def forward(ctx, a, axis, keepdims):
        out = empty(reduced(ctx, a, axis, keepdims), a.dtype)
        return averaged(np.mean, a, out, axis=ctx.axes, keepdims=keepdims)

    @staticmethod
    def backward(ctx, grad):
        grad = grad.reshape(ctx.kept)
        if grad.dtype == np.float16:  # which may be too small for the count
            grad = grad.astype(np.float32)
        return np.broadcast_to(grad / ctx.count, ctx.in_shape)


class Variance:
    """The mean squared deviation, divided by (count - ddof)."""

    @staticmethod
    def forward(ctx, a, axis, keepdims, ddof):
        out = empty(reduced(ctx, a, axis, keepdims), a.dtype)
        ctx.ddof = ddof
        ctx.save_for_backward(a)
        return averaged(np.var, a, out, axis=ctx.axes, keepdims=keepdims, ddof=ddof)

    @staticmethod
    def backward(ctx, grad):
        (a,) = ctx.saved_tensors
        centred = a - np.mean(a, axis=ctx.axes, keepdims=True)
        return grad.reshape(ctx.kept) * (2 / (ctx.count - ctx.ddof)) * centred


class Extreme:
    """The largest (or smallest) along axes; tied elements share the gradient equally."""

    pick: staticmethod

    @classmethod
    def forward(cls, ctx, a, axis, keepdims):
        out = empty(reduced(ctx, a, axis, keepdims), a.dtype)
        cls.pick(a, axis=ctx.axes, keepdims=keepdims, out=out)
        ctx.save_for_backward(a, out)
        return out

    @classmethod
    def backward(cls, ctx, grad):
        a, out = ctx.saved_tensors
        tied = a == out.reshape(ctx.kept)
        share = grad.reshape(ctx.kept) / np.maximum(tied.sum(axis=ctx.axes, keepdims=True), 1)
        return tied * share.astype(grad.dtype)


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
