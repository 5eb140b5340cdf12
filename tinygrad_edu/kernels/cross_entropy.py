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
from .matmul import matmul

LOGIT_BLOCK_BYTES = 16 * 1024 * 1024


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


def cross_entropy(z: np.ndarray, target: Target) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, C) -> losses (N,), log-sum-exp (N,)."""
    n, c = z.shape
    losses, lse = empty((n,), z.dtype), empty((n,), z.dtype)
    for rows in row_blocks(n, c * z.itemsize):
        block, part = z[rows], target.rows(rows)
        top = block.max(axis=1, keepdims=True)
        shifted = block - top
        np.exp(shifted, out=shifted)
        lse[rows] = np.log(shifted.sum(axis=1)) + top[:, 0]
        if part.is_plain:
            _, ids = part.counted()
            chosen = block[np.arange(len(block)), ids]
            weight = part.row_weights(z.dtype)
            # where, not a product: an ignored row of infinities must not give NaN
            losses[rows] = np.where(weight == 0, 0, weight * (lse[rows] - chosen))
        else:
            log_p = block - lse[rows, None]
            a = part.coefficients(c, z.dtype)
            losses[rows] = -np.where(a == 0, 0, a * log_p).sum(axis=1)
    return losses, lse


def cross_entropy_backward(
    grad: np.ndarray, z: np.ndarray, lse: np.ndarray, target: Target, out: np.ndarray
) -> np.ndarray:
    """Row gradients (N,) -> gradient of the logits (N, C), into `out` (which may be `z`)."""
    n, c = z.shape
    for rows in row_blocks(n, c * z.itemsize):
        d, part, g = out[rows], target.rows(rows), grad[rows]
        np.subtract(z[rows], lse[rows, None], out=d)
        np.exp(d, out=d)
        if part.is_plain:
            _, ids = part.counted()
            scale = g * part.row_weights(z.dtype)
            d *= scale[:, None]
            d[np.arange(len(d)), ids] -= scale
            d[scale == 0] = 0
        else:
            a = part.coefficients(c, z.dtype)
            d *= a.sum(axis=1, keepdims=True)
            d -= a
            d *= g[:, None]
    return out


def logit_blocks(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None
) -> Iterator[tuple[slice, np.ndarray]]:
    """Rows of x (N, K) and their logits (rows, C), a block at a time."""
    for rows in row_blocks(len(x), len(weight) * x.itemsize, LOGIT_BLOCK_BYTES):
        z = matmul(x[rows], weight.T)
        if bias is not None:
            z += bias
        yield rows, z


def linear_cross_entropy(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, target: Target
) -> tuple[np.ndarray, np.ndarray]:
    """x (N, K), weight (C, K), bias (C,) -> losses (N,), log-sum-exp (N,)."""
    losses, lse = empty((len(x),), x.dtype), empty((len(x),), x.dtype)
    for rows, z in logit_blocks(x, weight, bias):
        losses[rows], lse[rows] = cross_entropy(z, target.rows(rows))
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
    for rows, z in logit_blocks(x, weight, bias):
        dz = cross_entropy_backward(grad[rows], z, lse[rows], target.rows(rows), out=z)
        if needs[0]:
            dx[rows] = matmul(dz, weight)
        if needs[1]:
            dweight += matmul(dz.T, x[rows])
        if needs[2]:
            dbias += dz.sum(axis=0)
    return dx, dweight, dbias
