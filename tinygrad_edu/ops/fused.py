"""The ops of a transformer that are worth fusing: norms, losses, attention, embedding."""

import numpy as np

from ..kernels import attention as attention_kernels
from ..kernels import cross_entropy as loss_kernels
from ..kernels import empty, gather
from ..kernels import normalize as norm_kernels
from ..kernels.allocator import is_counted
from ..kernels.blocks import rows_of
from ..kernels.launch import computed_in
from .movement import heads_of


class LayerNorm:
    """Normalises the last `row_ndim` axes; `center` False is RMS norm."""

    @staticmethod
    def forward(ctx, x, weight, bias, eps, row_ndim, center):
        ctx.row_ndim = row_ndim
        y, *ctx.statistics = norm_kernels.layer_norm(
            rows_of(x, row_ndim), as_vector(weight), as_vector(bias), eps, center
        )
        ctx.save_for_backward(x, weight)
        return y.reshape(x.shape)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        grads = norm_kernels.layer_norm_backward(
            rows_of(grad, ctx.row_ndim),
            rows_of(x, ctx.row_ndim),
            as_vector(weight),
            *ctx.statistics,
            ctx.needs_input_grad[:3],
        )
        return tuple(
            None if g is None else g.reshape(shape)
            for g, shape in zip(grads, ctx.input_shapes[:3], strict=True)
        )


def as_vector(array: np.ndarray | None) -> np.ndarray | None:
    return None if array is None else array.reshape(array.size)


def reduce_losses(losses, target, reduction):
    """Per-row losses (N,) -> the loss, and what each row's gradient is divided by.

    Those of float16 are added up in float32, where their sum cannot overflow.
    """
    wide = computed_in(losses.dtype)
    one = wide.type(1)
    if reduction == "none":
        return losses, one
    total = losses.sum(dtype=wide)
    if reduction == "sum":
        return np.asarray(total, losses.dtype), one
    count = target.row_weights(wide).sum() if target.is_ids else wide.type(len(losses))
    # If no row counts, the mean is 0 / 0, as in PyTorch, and the gradient is zero. If rows do, but
    # their weights cancel or smoothing alone gives them any, neither is finite.
    divisor = count if count or losses.any() else one
    return np.asarray(total / count, losses.dtype), divisor


class CrossEntropy:
    """Logits (N, C) -> loss; see the kernel for targets, class weights and smoothing."""

    @staticmethod
    def forward(ctx, logits, target, reduction):
        losses, lse = loss_kernels.cross_entropy(logits, target)
        loss, ctx.divisor = reduce_losses(losses, target, reduction)
        ctx.target, ctx.lse = target, lse
        ctx.save_for_backward(logits)
        return loss

    @staticmethod
    def backward(ctx, grad):
        (logits,), lse = ctx.saved_tensors, ctx.lse
        rows = np.broadcast_to(grad / ctx.divisor, lse.shape)
        out = empty(logits.shape, logits.dtype)
        return loss_kernels.cross_entropy_backward(rows, logits, lse, ctx.target, out)


class LinearCrossEntropy:
    """x (N, K), weight (C, K), bias (C,) -> loss, with the logits made in blocks.

    The weight is used some rows at a time, and its gradient is handed over as it is finished. The
    logits are kept for backward if they are not too many and nobody counts memory; else, and with
    `recompute`, backward makes them again. That changes no bit.
    """

    by_rows = 1

    @staticmethod
    def forward(ctx, x, weight, bias, target, reduction, recompute):
        keeps = any(ctx.needs_input_grad) and not (recompute or is_counted())
        keeps = keeps and loss_kernels.may_keep(len(x), len(weight), x.itemsize)
        ctx.logits = [] if keeps else None
        losses, lse = loss_kernels.linear_cross_entropy(x, weight, bias, target, ctx.logits)
        loss, ctx.divisor = reduce_losses(losses, target, reduction)
        ctx.target, ctx.lse = target, lse
        ctx.save_for_backward(x, weight, bias)
        return loss

    @staticmethod
    def backward(ctx, grad):
        (x, weight, bias), lse = ctx.saved_tensors, ctx.lse
        rows = np.broadcast_to(grad / ctx.divisor, lse.shape)
        dweight = ctx.row_gradient(1)
        add_rows = None if dweight is None else dweight.add_rows
        dx, dbias = loss_kernels.linear_cross_entropy_backward(
            rows, x, weight, bias, lse, ctx.target, ctx.needs_input_grad[:3], add_rows, ctx.logits
        )
        return dx, dweight and dweight.rest(), dbias


class Attention:
    """q (B, H, T, D), k (B, H, S, D), v (B, H, S, E) -> (B, H, T, E)"""

    @staticmethod
    def forward(ctx, q, k, v, options):
        out, ctx.lse = attention_kernels.attention(q, k, v, options)
        ctx.options = options
        ctx.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    def backward(ctx, grad):
        return attention_kernels.attention_backward(grad, *ctx.saved_tensors, ctx.lse, ctx.options)


class SelfAttention:
    """qkv (B, T, 3 * C), whose parts each hold the heads side by side -> (B, T, C)

    SplitHeads, Attention and MergeHeads in one: every head is read, and its result written, where
    it lies in the whole. Short dtypes are converted here, all heads at once.
    """

    @staticmethod
    def forward(ctx, qkv, n_head, options):
        b, t, c = qkv.shape
        dtype = computed_in(qkv.dtype)
        out = empty((b, t, c // 3), dtype)
        parts = heads_of(qkv.astype(dtype, copy=False), n_head, 3)
        _, ctx.lse = attention_kernels.attention(*parts, options, *heads_of(out, n_head))
        out = out.astype(qkv.dtype, copy=False)
        ctx.n_head, ctx.options = n_head, options
        ctx.save_for_backward(qkv, out)
        return out

    @staticmethod
    def backward(ctx, grad):
        n_head, dtype = ctx.n_head, ctx.lse.dtype
        qkv, out = (x.astype(dtype, copy=False) for x in ctx.saved_tensors)
        whole = empty(qkv.shape, dtype)
        attention_kernels.attention_backward(
            *heads_of(grad, n_head), *heads_of(qkv, n_head, 3), *heads_of(out, n_head), ctx.lse,
            ctx.options, heads_of(whole, n_head, 3),
        )  # fmt: skip
        return whole


class Embedding:
    """weight (V, C), ids (...) -> (..., C); the row `padding_idx` receives no gradient."""

    by_rows = 0

    @staticmethod
    def forward(ctx, weight, ids, padding_idx):
        ctx.ids = ids
        ctx.padding_idx = None if padding_idx is None else padding_idx % len(weight)
        return weight.take(ids)

    @staticmethod
    def backward(ctx, grad):
        dweight = ctx.row_gradient(0)
        rows, values = gather.sum_rows(grad, ctx.ids)
        if ctx.padding_idx is not None:
            values[rows == ctx.padding_idx] = 0
        dweight.add_picked(rows, values)
        return dweight.rest(), None
