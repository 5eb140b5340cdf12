"""Softmax followed by cross-entropy, fused: neither probabilities nor their logs are stored.

For one row of logits z with target y, class weights w and label smoothing s over C classes,

    loss = -sum_c a_c log softmax(z)_c,    a_c = (1 - s) w_y [c = y] + (s / C) w_c
    dloss/dz_c = (sum_c a_c) softmax(z)_c - a_c

Forward keeps one number per row, log(sum(exp(z))). `linear_cross_entropy` makes the logits
themselves in blocks of rows, x @ weight.T + bias, and makes them again in backward, so all of
them never exist at once.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .allocator import empty, zeros
from .blocks import row_blocks
from .launch import operand, pieces, rows, seen_as, span, summing_task, task
from .matmul import matmul
from .normalize import column_sums
from .vector_math import LANES, exp, maximum

LOGIT_BLOCK_BYTES = 56 * 1024 * 1024  # enough rows for a product near the machine's peak


@dataclass(frozen=True)
class Target:
    """What the loss compares with: class ids (N,) or class probabilities (N, C)."""

    classes: np.ndarray
    class_weight: np.ndarray | None = None  # (C,)
    ignore_index: int = -100
    label_smoothing: float = 0.0

    @property
    def is_ids(self) -> bool:
        return self.classes.ndim == 1

    def rows(self, rows: slice) -> "Target":
        return Target(
            self.classes[rows], self.class_weight, self.ignore_index, self.label_smoothing
        )

    def counted(self) -> tuple[np.ndarray, np.ndarray]:
        """Which rows count, and their class ids with ignored rows set to class 0."""
        counted = self.classes != self.ignore_index
        return counted, np.where(counted, self.classes, 0)

    def row_weights(self, dtype: np.dtype) -> np.ndarray:
        """(N,): the weight of each row's own class, 0 where ignored, 1 without class weights."""
        if not self.is_ids:
            return np.ones(len(self.classes), dtype)
        counted, ids = self.counted()
        if self.class_weight is None:
            return counted.astype(dtype)
        return np.where(counted, self.class_weight[ids], 0).astype(dtype)

    def coefficients(self, n_classes: int, dtype: np.dtype) -> np.ndarray:
        """(N, C): the general a_c, for class probabilities and label smoothing."""
        weight = np.ones(n_classes, dtype) if self.class_weight is None else self.class_weight
        smooth = self.label_smoothing
        if not self.is_ids:
            return (((1 - smooth) * self.classes + smooth / n_classes) * weight).astype(dtype)
        counted, ids = self.counted()
        a = np.broadcast_to(smooth / n_classes * weight, (len(ids), n_classes)).astype(dtype)
        a[np.arange(len(ids)), ids] += (1 - smooth) * weight[ids]
        a[~counted] = 0
        return a

    @property
    def is_plain(self) -> bool:
        """One class id per row and no smoothing: a_c is a single number per row."""
        return self.is_ids and self.label_smoothing == 0


@summing_task
def cross_entropy_task(arrays, sizes, numbers, piece, slot):
    n, c, step = sizes[0], sizes[1], sizes[2]
    first, last = piece * step, min(n, (piece + 1) * step)
    z, lse = rows(arrays[0], first, last, c), span(arrays[1], first, last)
    losses, weights = span(arrays[2], first, last), span(arrays[3], first, last)
    ids = span(seen_as(arrays[4], np.int64), first, last)
    kind = z.dtype.type
    lanes = np.empty(LANES, z.dtype)
    for i in range(last - first):
        row = z[i]
        top = maximum(row, lanes)
        total = kind(0)
        for j in range(c):
            total += exp(row[j] - top)
        lse[i] = np.log(total) + top
        # not a product where the weight is 0: an ignored row of infinities must not give NaN
        losses[i] = weights[i] * (lse[i] - row[ids[i]]) if weights[i] != kind(0) else kind(0)


def cross_entropy(z: np.ndarray, target: Target) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, C) -> losses (N,), log-sum-exp (N,)."""
    (n, c), source = z.shape, operand(z)
    dtype = source.dtype
    losses, lse = empty((n,), dtype), empty((n,), dtype)
    if target.is_plain:
        _, ids = target.counted()
        weights = target.row_weights(dtype)
    else:
        ids, weights = np.zeros(n, np.int64), np.zeros(n, dtype)
    count, step = pieces(n, c)
    cross_entropy_task(count, [source, lse, losses, weights, operand(ids, np.int64)], [n, c, step])
    if not target.is_plain:
        for block in row_blocks(n, c * dtype.itemsize):
            log_p = source[block] - lse[block, None]
            a = target.rows(block).coefficients(c, dtype)
            losses[block] = -np.where(a == 0, 0, a * log_p).sum(axis=1)
    return losses.astype(z.dtype, copy=False), lse


@task
def cross_entropy_backward_task(arrays, sizes, numbers, piece, slot):
    n, c, step = sizes[0], sizes[1], sizes[2]
    first, last = piece * step, min(n, (piece + 1) * step)
    z, dz = rows(arrays[0], first, last, c), rows(arrays[1], first, last, c)
    lse, scales = span(arrays[2], first, last), span(arrays[3], first, last)
    ids = span(seen_as(arrays[4], np.int64), first, last)
    for i in range(last - first):
        row, out, shift, scale = z[i], dz[i], lse[i], scales[i]
        if scale == z.dtype.type(0):
            out[:] = scale
            continue
        for j in range(c):
            out[j] = exp(row[j] - shift) * scale
        out[ids[i]] -= scale


def cross_entropy_backward(
    grad: np.ndarray, z: np.ndarray, lse: np.ndarray, target: Target, out: np.ndarray
) -> np.ndarray:
    """Row gradients (N,) -> gradient of the logits (N, C), into `out` (which may be `z`)."""
    n, c = z.shape
    if target.is_plain and z.dtype.char in "fd" and z.flags.c_contiguous:
        _, ids = target.counted()
        scales = operand(grad * target.row_weights(z.dtype), z.dtype)
        count, step = pieces(n, c)
        cross_entropy_backward_task(
            count, [z, out, lse, scales, operand(ids, np.int64)], [n, c, step]
        )
        return out
    for block in row_blocks(n, c * z.itemsize):
        d, a = out[block], target.rows(block).coefficients(c, z.dtype)
        np.subtract(z[block], lse[block, None], out=d)
        np.exp(d, out=d)
        d *= a.sum(axis=1, keepdims=True)
        d -= a
        d *= grad[block, None]
    return out


def logit_blocks(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None
) -> Iterator[tuple[slice, np.ndarray]]:
    """Blocks of rows of x (N, K) and their logits (rows, C)."""
    row_bytes = len(weight) * x.itemsize
    count = max(1, -(-len(x) * row_bytes // LOGIT_BLOCK_BYTES))
    for block in row_blocks(len(x), 1, -(-len(x) // count)):  # blocks of equal size
        yield block, matmul(x[block], weight.T, bias=bias)


def linear_cross_entropy(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, target: Target
) -> tuple[np.ndarray, np.ndarray]:
    """x (N, K), weight (C, K), bias (C,) -> losses (N,), log-sum-exp (N,)."""
    losses, lse = empty((len(x),), x.dtype), empty((len(x),), x.dtype)
    for block, z in logit_blocks(x, weight, bias):
        losses[block], lse[block] = cross_entropy(z, target.rows(block))
    return losses, lse


def linear_cross_entropy_backward(
    grad: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    lse: np.ndarray,
    target: Target,
    needs: tuple[bool, bool, bool],
) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """Gradients of x, weight and bias, as `needs` asks, from row gradients (N,)."""
    dx = empty(x.shape, x.dtype) if needs[0] else None
    dweight = zeros(weight.shape, weight.dtype) if needs[1] else None
    dbias = zeros(bias.shape, bias.dtype) if needs[2] else None
    for block, z in logit_blocks(x, weight, bias):
        dz = cross_entropy_backward(grad[block], z, lse[block], target.rows(block), out=z)
        if needs[0]:
            matmul(dz, weight, out=dx[block])
        if needs[1]:
            matmul(dz.T, x[block], out=dweight, accumulate=True)
        if needs[2]:
            dbias += column_sums(dz)
    return dx, dweight, dbias
