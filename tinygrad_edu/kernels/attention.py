"""Scaled-dot-product attention over blocks of queries, without ever storing the score matrix.

    scores = scale * q k^T + mask      (T, S), causal: query i sees keys 0 .. i + S - T
    out    = softmax(scores) v

A block of queries needs its own rows of the scores only, and, when causal, only the keys up to its
last query: later keys are skipped rather than masked. Forward keeps the output and one log-sum-exp
per query; backward makes each block of probabilities again from them
(Dao et al., FlashAttention, arXiv 2205.14135):

    p = exp(scores - lse)      dv += p^T do      dp = do v^T
    ds = p * (dp - sum(do * out)) * scale        dq = ds k      dk += ds^T q

With dropout, p is multiplied by the mask where it meets v, and dp likewise.

Letters: B batch, H heads, T queries, S keys, D head size; a "block" is a range of queries.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .allocator import empty, zeros
from .elementwise import dropout_scale
from .matmul import matmul

SCORE_BLOCK_ELEMENTS = 2 * 1024 * 1024  # of one block of scores: 8 MB in float32


@dataclass(frozen=True)
class Options:
    scale: float
    is_causal: bool
    mask: np.ndarray | None = None  # broadcasts to (B, H, T, S): bool "may attend", or added
    dropout_p: float = 0.0
    dropout_key: int = 0


def query_blocks(q: np.ndarray, k: np.ndarray, is_causal: bool) -> Iterator[tuple[slice, int]]:
    """Ranges of queries, each with the number of keys it needs."""
    b, h, t, _ = q.shape
    s = k.shape[2]
    step = max(16, SCORE_BLOCK_ELEMENTS // max(1, b * h * s))
    step = min(step, 128) if is_causal else step  # short blocks leave more keys out
    for start in range(0, t, step):
        stop = min(start + step, t)
        yield slice(start, stop), (stop + s - t if is_causal else s)


def block_scores(
    q: np.ndarray, k: np.ndarray, rows: slice, keys: int, options: Options
) -> np.ndarray:
    """Masked and scaled scores (B, H, rows, keys) of one block."""
    block = q[:, :, rows]
    scores = empty((*block.shape[:3], keys), q.dtype)
    matmul(block, k[:, :, :keys].swapaxes(2, 3), out=scores)
    scores *= options.scale
    if options.is_causal:
        # Only the last `rows` keys of the block can lie in the future of one of its queries.
        n = rows.stop - rows.start
        future = np.triu(np.ones((n, n), bool), 1)
        np.copyto(scores[..., keys - n :], -np.inf, where=future)
    if options.mask is not None:
        t = options.mask.shape[2]
        mask = options.mask[:, :, rows if t > 1 else slice(None)]
        mask = mask[..., :keys] if mask.shape[3] > 1 else mask
        if mask.dtype == bool:
            np.copyto(scores, -np.inf, where=~mask)
        else:
            scores += mask
    return scores


def block_dropout(shape: tuple[int, ...], rows: slice, options: Options, dtype: np.dtype):
    """The dropout factors of one block: a stream of its own per first query."""
    return dropout_scale(shape, options.dropout_p, options.dropout_key + rows.start, dtype)


def attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, options: Options
) -> tuple[np.ndarray, np.ndarray]:
    """q (B, H, T, D), k (B, H, S, D), v (B, H, S, E) -> out (B, H, T, E), lse (B, H, T)."""
    b, h, t, _ = q.shape
    out, lse = head_last((b, h, t, v.shape[3]), q.dtype), empty((b, h, t), q.dtype)
    for rows, keys in query_blocks(q, k, options.is_causal):
        p = block_scores(q, k, rows, keys, options)
        if keys == 0:
            lse[:, :, rows], out[:, :, rows] = -np.inf, 0
            continue
        top = p.max(axis=3, keepdims=True)
        # A query that may attend to nothing has -inf everywhere; it gets zeros, not NaN.
        np.copyto(top, 0, where=np.isneginf(top))
        p -= top
        np.exp(p, out=p)
        total = p.sum(axis=3, keepdims=True)
        with np.errstate(divide="ignore"):
            lse[:, :, rows] = (np.log(total) + top)[..., 0]
        np.copyto(total, 1, where=total == 0)
        p /= total
        if options.dropout_p:
            p *= block_dropout(p.shape, rows, options, p.dtype)
        matmul(p, v[:, :, :keys], out=out[:, :, rows])
    return out, lse


def attention_backward(
    grad: np.ndarray,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    out: np.ndarray,
    lse: np.ndarray,
    options: Options,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of q, k and v."""
    dq = head_last(q.shape, q.dtype)
    dk, dv = head_last(k.shape, q.dtype, fill=True), head_last(v.shape, q.dtype, fill=True)
    lse = np.where(np.isneginf(lse), 0, lse)
    for rows, keys in query_blocks(q, k, options.is_causal):
        if keys == 0:
            dq[:, :, rows] = 0
            continue
        do = grad[:, :, rows]
        p = block_scores(q, k, rows, keys, options)
        p -= lse[:, :, rows, None]
        np.exp(p, out=p)
        dp = empty(p.shape, p.dtype)
        matmul(do, v[:, :, :keys].swapaxes(2, 3), out=dp)
        # sum(do * out) equals sum(p * dp) over the keys, and is cheaper.
        delta = np.einsum("bhtd,bhtd->bht", do, out[:, :, rows])[..., None]
        if options.dropout_p:
            kept = block_dropout(p.shape, rows, options, p.dtype)
            dp *= kept
            kept *= p
            dv[:, :, :keys] += matmul(kept.swapaxes(2, 3), do)
        else:
            dv[:, :, :keys] += matmul(p.swapaxes(2, 3), do)
        dp -= delta
        dp *= p
        dp *= options.scale
        matmul(dp, k[:, :, :keys], out=dq[:, :, rows])
        dk[:, :, :keys] += matmul(dp.swapaxes(2, 3), q[:, :, rows])
    return dq, dk, dv


def head_last(shape: tuple[int, ...], dtype: np.dtype, fill: bool = False) -> np.ndarray:
    """An array (B, H, T, D) laid out in memory as (B, T, H, D).

    That is how the projections before and after attention see it, so merging the heads is free.
    """
    b, h, t, d = shape
    memory = zeros((b, t, h, d), dtype) if fill else empty((b, t, h, d), dtype)
    return memory.swapaxes(1, 2)
