"""Softmax followed by cross-entropy, fused: neither probabilities nor their logs are stored.

For one row of logits z with target y, class weights w and label smoothing s over C classes,

    loss = -sum_c a_c log softmax(z)_c,    a_c = (1 - s) w_y [c = y] + (s / C) w_c
         = A lse - sum_c a_c z_c,          A = sum_c a_c,  lse = log(sum_c exp(z_c))
    dloss/dz_c = A softmax(z)_c - a_c

Forward keeps one number per row, lse. Classes may come in several chunks: forward carries a largest
logit, a sum of exponentials relative to it, and sum_c a_c z_c from chunk to chunk; backward needs
nothing but lse. `linear_cross_entropy` makes the logits themselves, x @ weight.T + bias, a chunk of
the vocabulary at a time. Backward makes them again, so that neither all of them nor the whole
weight need be there at once, or takes those that forward was asked to keep: the same numbers, for
more memory and a product less.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .allocator import empty, zeros
from .blocks import Rows, row_blocks, row_units
from .launch import computed_in, operand, pieces, rows, seen_as, span, summing_task, task
from .matmul import matmul
from .normalize import column_sums
from .vector_math import LANES, exp, maximum

KEPT_LOGITS = 1 << 28  # bytes that may be kept for backward: 1024 tokens of GPT-2 are 206 MB
LOGIT_BLOCK_BYTES = 32 * 1024 * 1024  # of logits at a time: rows enough for a product near its peak


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
        if self.class_weight is None or not counted.any():  # there may be no classes then
            return counted.astype(dtype)
        return np.where(counted, self.class_weight[ids], 0).astype(dtype)

    def coefficients(
        self, n_classes: int, dtype: np.dtype, start: int = 0, stop: int | None = None
    ) -> np.ndarray:
        """(N, stop - start): a_c of some classes, for class probabilities and label smoothing."""
        stop, smooth = n_classes if stop is None else stop, self.label_smoothing
        weight = np.ones(n_classes, dtype) if self.class_weight is None else self.class_weight
        some, share = weight[start:stop], smooth / max(1, n_classes)
        if not self.is_ids:
            p = self.classes[:, start:stop]
            return (((1 - smooth) * p + share) * some).astype(dtype, "C")
        counted, ids = self.counted()
        a = np.broadcast_to(share * some, (len(ids), len(some))).astype(dtype, "C")
        own = np.flatnonzero((start <= ids) & (ids < stop))
        a[own, ids[own] - start] += (1 - smooth) * weight[ids[own]]
        a[~counted] = 0
        return a

    def totals(self, n_classes: int, dtype: np.dtype) -> np.ndarray:
        """(N,): A, the sum of each row's a_c over all classes."""
        if self.is_plain:
            return self.row_weights(dtype)
        if self.is_ids:
            weight = self.class_weight
            mean = 1 if weight is None else weight.sum(dtype=float) / max(1, n_classes)
            smooth, counted = self.label_smoothing, self.counted()[0]
            return ((1 - smooth) * self.row_weights(dtype) + smooth * mean * counted).astype(dtype)
        out = empty((len(self.classes),), dtype)
        for block in row_blocks(len(out), n_classes * dtype.itemsize):
            self.rows(block).coefficients(n_classes, dtype).sum(axis=1, out=out[block])
        return out

    @property
    def is_plain(self) -> bool:
        """One class id per row and no smoothing: a_c is a single number per row."""
        return self.is_ids and self.label_smoothing == 0

    def own_classes(self) -> np.ndarray:
        """(N,) int64: the class whose logit a kernel looks at, -1 where a_c is a general matrix."""
        ids = self.counted()[1] if self.is_plain else np.full(len(self.classes), -1)
        return operand(ids, np.dtype(np.int64))


@summing_task
def cross_entropy_task(arrays, sizes, numbers, piece, slot):
    n, c, step, start, is_last = sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]
    first, last = piece * step, min(n, (piece + 1) * step)
    z, losses = rows(arrays[0], first, last, c), span(arrays[1], first, last)
    lse, sums = span(arrays[2], first, last), span(arrays[3], first, last)
    totals, ids = span(arrays[4], first, last), span(seen_as(arrays[5], np.int64), first, last)
    kind = z.dtype.type
    lanes = np.empty(LANES, z.dtype)
    for i in range(last - first):
        row, before, weight = z[i], lse[i], totals[i]
        top = maximum(row, lanes)
        top = before if before > top else top
        # exp(-inf - -inf) would make NaN of a row that has had nothing but -inf so far
        shift = top if top > kind(-np.inf) else kind(0)
        total = kind(0)
        for j in range(c):
            total += exp(row[j] - shift)
        total += sums[i] * exp(before - shift)
        # not a product where the weight is 0: an ignored row of infinities must not give NaN
        counts, own = weight != kind(0), ids[i] - start
        if counts and 0 <= own < c:
            losses[i] += weight * row[own]
        if is_last:
            lse[i] = np.log(total) + top
            losses[i] = (weight * lse[i] if counts else kind(0)) - losses[i]
        else:
            lse[i], sums[i] = top, total


@dataclass(frozen=True)
class Running:
    """What forward knows of each row after some classes. The last ones make it the result."""

    losses: np.ndarray  # (N,): sum_c a_c z_c, at last the loss
    lse: np.ndarray  # (N,): the largest logit, at last log-sum-exp
    sums: np.ndarray  # (N,): the sum of exp(z_c - largest)

    @classmethod
    def start(cls, n: int, dtype: np.dtype) -> "Running":
        lse = empty((n,), dtype)
        lse.fill(-np.inf)
        return cls(zeros((n,), dtype), lse, zeros((n,), dtype))

    def rows(self, rows: slice) -> "Running":
        return Running(self.losses[rows], self.lse[rows], self.sums[rows])

    def add(self, z: np.ndarray, target: Target, start: int, n_classes: int) -> None:
        """Takes in the logits z (N, c) of the classes from `start` on."""
        (n, c), source = z.shape, operand(z)
        dtype = source.dtype
        if not target.is_plain:
            for block in row_blocks(n, c * dtype.itemsize):
                a = target.rows(block).coefficients(n_classes, dtype, start, start + c)
                np.multiply(a, source[block], out=a, where=a != 0)  # 0 times infinity is 0 here
                self.losses[block] += a.sum(axis=1)
        count, step = pieces(n, c)
        totals = target.totals(n_classes, dtype)
        arrays = [source, self.losses, self.lse, self.sums, totals, target.own_classes()]
        cross_entropy_task(count, arrays, [n, c, step, start, start + c == n_classes])


def cross_entropy(z: np.ndarray, target: Target) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, C) -> losses (N,), log-sum-exp (N,)."""
    running = Running.start(len(z), computed_in(z.dtype))
    running.add(z, target, 0, z.shape[1])
    return running.losses.astype(z.dtype, copy=False), running.lse


@task
def cross_entropy_backward_task(arrays, sizes, numbers, piece, slot):
    n, c, step, start, in_place = sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]
    first, last = piece * step, min(n, (piece + 1) * step)
    z, dz = rows(arrays[0], first, last, c), rows(arrays[1], first, last, c)
    lse, scales = span(arrays[2], first, last), span(arrays[3], first, last)
    ids = span(seen_as(arrays[4], np.int64), first, last)
    for i in range(last - first):
        given, out, shift, scale = z[i], dz[i], lse[i], scales[i]
        if scale == z.dtype.type(0):
            out[:] = scale
            continue
        if not in_place:
            for j in range(c):
                out[j] = given[j]
        for j in range(c):  # one array: two that may be the same memory would not be vectorised
            out[j] = exp(out[j] - shift) * scale
        own = ids[i] - start
        if 0 <= own < c:
            out[own] -= scale


def cross_entropy_backward(
    grad: np.ndarray,
    z: np.ndarray,
    lse: np.ndarray,
    target: Target,
    out: np.ndarray,
    start: int = 0,
    n_classes: int | None = None,
) -> np.ndarray:
    """Row gradients (N,) -> gradient of the logits (N, c), into `out` (which may be `z`).

    z may be the logits of some classes, from `start` on, out of `n_classes`.
    """
    (n, c), source = z.shape, operand(z)
    dtype, n_classes = source.dtype, c if n_classes is None else n_classes
    fits = out.dtype == dtype and out.flags.c_contiguous
    dz = out if fits else empty((n, c), dtype)
    scales = operand(grad * target.totals(n_classes, dtype), dtype)
    count, step = pieces(n, c)
    arrays = [source, dz, operand(lse, dtype), scales, target.own_classes()]
    cross_entropy_backward_task(count, arrays, [n, c, step, start, dz is source])
    if not target.is_plain:
        for block in row_blocks(n, c * dtype.itemsize):
            a = target.rows(block).coefficients(n_classes, dtype, start, start + c)
            a *= grad[block, None]
            dz[block] -= a
    if not fits:
        np.copyto(out, dz, casting="same_kind")
    return out


def may_keep(n: int, n_classes: int, itemsize: int) -> bool:
    """Whether the logits of n rows are few enough to be kept for backward."""
    return n * n_classes * itemsize <= KEPT_LOGITS


def logit_units(n: int, weight: Rows, dtype: np.dtype) -> tuple[list[tuple[int, int]], list[slice]]:
    """Chunks of the vocabulary, (start, stop) each, and the blocks of the n rows of x."""
    chunks = row_units(len(weight), weight.shape[1] * dtype.itemsize)
    widest = chunks[0][1] * dtype.itemsize
    return chunks, [slice(*block) for block in row_units(n, widest, LOGIT_BLOCK_BYTES)]


def linear_cross_entropy(
    x: np.ndarray,
    weight: Rows,
    bias: np.ndarray | None,
    target: Target,
    kept: list[np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """x (N, K), weight (C, K), bias (C,) -> losses (N,), log-sum-exp (N,).

    Asks for each chunk of the weight's rows once, in order, and drops it before the next. The
    logits, in blocks, are added to `kept`, if given, for backward.
    """
    running = Running.start(len(x), computed_in(x.dtype))
    chunks, blocks = logit_units(len(x), weight, running.lse.dtype)
    for start, stop in chunks:
        chunk = weight.rows(start, stop)
        for block in blocks:
            z = matmul(x[block], chunk.T, bias=None if bias is None else bias[start:stop])
            running.rows(block).add(z, target.rows(block), start, len(weight))
            if kept is not None:
                kept.append(z)
            del z  # its memory serves the next block, if it is not kept
        del chunk
    return running.losses.astype(x.dtype, copy=False), running.lse


def linear_cross_entropy_backward(
    grad: np.ndarray,
    x: np.ndarray,
    weight: Rows,
    bias: np.ndarray | None,
    lse: np.ndarray,
    target: Target,
    needs: tuple[bool, bool, bool],
    add_weight_rows: Callable[[int, np.ndarray], None] | None,
    kept: list[np.ndarray] | None = None,
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Gradients of x and bias, as `needs` (x, weight, bias) asks, from row gradients (N,).

    That of the weight goes to `add_weight_rows(start, block)`, rows start .. start + len(block) - 1
    at a time, in ascending order; it may keep the block. Asks for the weight as forward does.
    Uses up the logits that forward `kept`.
    """
    dx = empty(x.shape, x.dtype) if needs[0] else None
    dbias = zeros(bias.shape, bias.dtype) if needs[2] else None
    chunks, blocks = logit_units(len(x), weight, lse.dtype)
    for start, stop in chunks:
        chunk = weight.rows(start, stop)
        dweight = empty(chunk.shape, weight.dtype) if needs[1] else None
        for block in blocks:
            if kept:
                z = kept.pop(0)
            else:
                z = matmul(x[block], chunk.T, bias=None if bias is None else bias[start:stop])
            dz = cross_entropy_backward(
                grad[block], z, lse[block], target.rows(block), z, start, len(weight)
            )
            if needs[0]:
                matmul(dz, chunk, out=dx[block], accumulate=start > 0)
            if needs[1]:
                matmul(dz.T, x[block], out=dweight, accumulate=block.start > 0)
            if needs[2]:
                dbias[start:stop] += column_sums(dz)
            del z, dz  # their memory serves the next block
        del chunk
        if needs[1]:
            add_weight_rows(start, dweight)
        del dweight
    return dx, dbias
