"""Ops that move numbers and compute nothing. Where NumPy can give a view, so do they."""

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ..kernels import concatenate, copy, empty, zeros


def reshaped(a: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The same elements in another shape: a view, or a copy from `empty`."""
    try:
        return a.reshape(shape, copy=False)
    except ValueError:  # no view of this memory has that shape
        return copy(a).reshape(shape)


class Reshape:
    @staticmethod
    def forward(ctx, a, shape):
        ctx.in_shape = a.shape
        return reshaped(a, shape)

    @staticmethod
    def backward(ctx, grad):
        return grad.reshape(ctx.in_shape)


class Permute:
    @staticmethod
    def forward(ctx, a, axes):
        ctx.axes = axes
        return a.transpose(axes)

    @staticmethod
    def backward(ctx, grad):
        return grad.transpose([ctx.axes.index(i) for i in range(grad.ndim)])


class Index:
    """a[index]; an element picked twice receives both gradients."""

    @staticmethod
    def forward(ctx, a, index):
        ctx.index, ctx.in_shape = index, a.shape
        out = a[index]
        # An index of plain slices and integers gives a view, and picks nothing twice.
        ctx.is_view = isinstance(out, np.ndarray) and np.may_share_memory(out, a)
        return out if ctx.is_view else copy(out)  # NumPy's memory is on nobody's account

    @staticmethod
    def backward(ctx, grad):
        out = zeros(ctx.in_shape, grad.dtype)
        if ctx.is_view:
            out[ctx.index] = grad
        else:
            wide = out.astype(np.float32) if out.dtype == np.float16 else out
            np.add.at(wide, ctx.index, grad)
            if wide is not out:
                out[...] = wide
        return out


class Split:
    """Cuts into parts of the given sizes along one axis; each part is a view."""

    @staticmethod
    def forward(ctx, a, sizes, axis):
        ctx.axis = axis
        ends = list(itertools.accumulate(sizes))
        before = (slice(None),) * axis
        return tuple(
            a[(*before, slice(end - size, end))] for size, end in zip(sizes, ends, strict=True)
        )

    @staticmethod
    def backward(ctx, *grads):
        return joined(grads, ctx.axis)


class SplitHeads:
    """(B, T, parts * H * D) -> `parts` views (B, H, T, D)"""

    @staticmethod
    def forward(ctx, a, n_head, parts):
        return tuple(heads_of(a, n_head, parts))

    @staticmethod
    def backward(ctx, *grads):
        return reshaped(joined(grads, 1).transpose(0, 2, 1, 3), ctx.input_shapes[0])


def heads_of(a: np.ndarray, n_head: int, parts: int = 1) -> list[np.ndarray]:
    """(B, T, parts * H * D) -> `parts` views (B, H, T, D)"""
    b, t, c = a.shape
    heads = reshaped(a, (b, t, parts * n_head, c // (parts * n_head))).transpose(0, 2, 1, 3)
    return [heads[:, i * n_head : (i + 1) * n_head] for i in range(parts)]


class MergeHeads:
    """(B, H, T, D) -> (B, T, H * D)"""

    @staticmethod
    def forward(ctx, a):
        b, h, t, d = a.shape
        return reshaped(a.transpose(0, 2, 1, 3), (b, t, h * d))

    @staticmethod
    def backward(ctx, grad):
        b, h, t, d = ctx.input_shapes[0]
        return reshaped(grad, (b, t, h, d)).transpose(0, 2, 1, 3)


def joined(parts: Sequence[np.ndarray], axis: int) -> np.ndarray:
    """The parts as one array, which takes no copy if they are one in memory."""
    whole = side_by_side(parts, axis)
    return concatenate(parts, axis) if whole is None else whole


def side_by_side(parts: Sequence[np.ndarray], axis: int) -> np.ndarray | None:
    """The array of which `parts` are the consecutive slices along `axis`, if memory holds one."""
    first, count = parts[0], 0
    for part in parts:
        offset = part.ctypes.data - first.ctypes.data
        if (
            part.strides != first.strides
            or part.dtype != first.dtype
            or offset != count * first.strides[axis]
            or owner(part) is not owner(first)
        ):
            return None
        count += part.shape[axis]
    shape = (*first.shape[:axis], count, *first.shape[axis + 1 :])
    return as_strided(first, shape, first.strides)


def owner(array: np.ndarray) -> object:
    """Whose memory a view looks into."""
    while getattr(array, "base", None) is not None:
        array = array.base
    return array


class Concatenate:
    @staticmethod
    def forward(ctx, *arrays, axis):
        ctx.axis = axis
        ctx.ends = list(itertools.accumulate(array.shape[axis] for array in arrays))
        return concatenate(arrays, axis)

    @staticmethod
    def backward(ctx, grad):
        return tuple(np.split(grad, ctx.ends[:-1], axis=ctx.axis))


class Stack:
    @staticmethod
    def forward(ctx, *arrays, axis):
        ctx.axis = axis
        return concatenate([np.expand_dims(array, axis) for array in arrays], axis)

    @staticmethod
    def backward(ctx, grad):
        return tuple(np.moveaxis(grad, ctx.axis, 0))


class Cast:
    """The same numbers in another dtype; the engine casts the gradient back."""

    @staticmethod
    def forward(ctx, a, dtype):
        out = empty(a.shape, dtype)
        np.copyto(out, a, casting="unsafe")
        return out

    @staticmethod
    def backward(ctx, grad):
        return grad
