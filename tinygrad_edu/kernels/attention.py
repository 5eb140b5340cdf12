"""Scaled-dot-product attention over blocks of queries, without ever storing the score matrix.

    scores = scale * q k^T + mask      (T, S), causal: query i sees keys 0 .. i + S - T
    out    = softmax(scores) v

One thread does one head, a block of QUERIES queries at a time. A block needs its own rows of the
scores only and, when causal, only the keys up to its last query: later keys are skipped rather than
masked. Forward keeps the output and one log-sum-exp per query; backward makes each block of
probabilities again from them (Dao et al., FlashAttention, arXiv 2205.14135):

    p = exp(scores - lse)      dv += p^T do      dp = do v^T
    ds = p * (dp - sum(do * out)) * scale        dq = ds k      dk += ds^T q

With dropout, p is multiplied by the mask where it meets v, and dp likewise.

The scores of a block are stored transposed, (keys, QUERIES). Then a row holds one key's scores for
all queries of the block, so that maximum, exp and sum over keys work on whole vectors of queries,
and both products that read the scores find them in the micro-kernel's order without packing.

Letters: B batch, H heads, T queries, S keys, D head size of q and k, E of v.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit

from . import launch
from .allocator import empty, zeros
from .elementwise import threshold_and_scale
from .gemm.microkernel import CPU, itemsize, step
from .gemm.packing import A, B, pack, width
from .gemm.unpacked import DEPTH, dots, thin
from .launch import carray, operand, summing_task
from .philox import U32, U64
from .scores import (
    CHUNK,
    LARGEST,
    MR,
    NV,
    QUERIES,
    SUM,
    clear_rest,
    drop,
    fold,
    mask_scores,
    multiply_keys,
    multiply_queries,
    multiply_scores,
    part,
    seen,
)
from .vector_math import exp


@dataclass(frozen=True)
class Options:
    scale: float
    is_causal: bool
    mask: np.ndarray | None = None  # broadcasts to (B, H, T, S): bool "may attend", or added
    dropout_p: float = 0.0
    dropout_key: int = 0


@njit(error_model="numpy")
def pack_scaled_queries(q, q_row, count, d, scale, target):
    """Slivers of scale * Q^T (d, count)."""
    pack(B, q, q_row, itemsize(q), count, d, target)
    wide = width(B, q)
    values = carray(target, -(-count // wide) * wide * d)  # whole slivers
    for i in range(len(values)):
        values[i] *= scale


# Where sizes[...] keep what: dimensions, flags, then four byte strides (b, h, row, 1) per array.
DIMENSIONS, STRIDES = 16, 4


@njit(error_model="numpy")
def head(arrays, sizes, which, piece, heads):
    """The array's pointer at this piece's batch and head, and its bytes from row to row."""
    at = DIMENSIONS + STRIDES * which
    offset = piece // heads * sizes[at] + piece % heads * sizes[at + 1]
    return step(arrays[which], offset), sizes[at + 2]


@summing_task
def attention_task(arrays, sizes, numbers, piece, slot):
    heads, t, s, d, e = sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]
    causal, has_mask, room, size = sizes[5], sizes[6], sizes[7], itemsize(arrays[0])
    key, threshold, wide = U64(sizes[8]), U32(sizes[9]), width(B, arrays[0])
    q, q_row = head(arrays, sizes, 0, piece, heads)
    k, k_row = head(arrays, sizes, 1, piece, heads)
    v, v_row = head(arrays, sizes, 2, piece, heads)
    out, out_row = head(arrays, sizes, 3, piece, heads)
    mask, mask_row = head(arrays, sizes, 4, piece, heads)
    mask_column = sizes[DIMENSIONS + STRIDES * 4 + 3]
    lse = carray(step(arrays[5], piece * t * size), t)
    # Workspace: K in panels, V in slivers, Q^T in slivers, the scores
    at_k = step(arrays[6], slot * room * size)
    at_v = step(at_k, (s + MR) * d * size)
    at_q = step(at_v, (e + wide) * s * size)
    at_p = step(at_q, QUERIES * d * size)
    p = carray(at_p, (s, QUERIES))
    at_stats = step(at_p, s * QUERIES * size)
    stats = carray(at_stats, (3, QUERIES))
    top, total, factors = stats[0], stats[1], stats[2]
    kind = p.dtype.type
    scale, dropped = kind(numbers[0]), kind(numbers[1])
    pack(A, k, k_row, size, s, d, at_k)
    pack(B, v, size, v_row, e, s, at_v)
    for i0 in range(0, t, QUERIES):
        queries = min(QUERIES, t - i0)
        future = i0 + s - t if causal else s
        keys = max(0, min(s, future + queries)) if causal else s
        block_out = step(out, i0 * out_row)
        clear_rest(p, keys, queries)
        pack_scaled_queries(step(q, i0 * q_row), q_row, queries, d, scale, at_q)
        multiply_scores(at_k, keys, d, at_q, queries, future, at_p, QUERIES * size)
        block_mask = step(mask, i0 * mask_row)
        mask_scores(p, has_mask, keys, queries, future, block_mask, mask_row, mask_column)
        chunks = -(-queries // CHUNK)
        for c in range(chunks):
            place = c * CHUNK * size
            fold(LARGEST, step(at_p, place), seen(c, future, keys), step(at_stats, place))
        for i in range(chunks * CHUNK):  # a query that may attend to nothing gets zeros, not NaN
            top[i] = kind(0) if top[i] == kind(-np.inf) else top[i]
        for j in range(keys):
            hidden = max(0, j - future) // CHUNK
            p[j, : hidden * CHUNK] = kind(0)
            row, most = part(at_p, j, hidden, chunks), part(at_stats, 0, hidden, chunks)
            for i in range(len(row)):
                row[i] = exp(row[i] - most[i])
        for c in range(chunks):
            place = c * CHUNK * size
            target = step(at_stats, QUERIES * size + place)
            fold(SUM, step(at_p, place), seen(c, future, keys), target)
        if threshold:
            for j in range(keys):
                drop(factors, key, threshold, dropped, piece, i0 // QUERIES, j)
                row = p[j]
                for i in range(chunks * CHUNK):
                    row[i] *= factors[i]
        if keys > 0:
            multiply_keys(
                at_p, QUERIES * size, queries, at_v, s, e, keys, future, block_out, out_row
            )
        for i in range(queries):
            lse[i0 + i] = np.log(total[i]) + top[i]
            share = kind(1) / total[i] if total[i] != kind(0) else kind(0)
            row = carray(step(block_out, i * out_row), e)
            for j in range(e):
                row[j] = row[j] * share if keys > 0 else kind(0)


@summing_task
def one_query_task(arrays, sizes, numbers, piece, slot):
    """The same for a single query, without dropout: keys and values are read where they are."""
    heads, s, d, e, has_mask, room = sizes[0], sizes[2], sizes[3], sizes[4], sizes[6], sizes[7]
    size = itemsize(arrays[0])
    q, _ = head(arrays, sizes, 0, piece, heads)
    k, k_row = head(arrays, sizes, 1, piece, heads)
    v, v_row = head(arrays, sizes, 2, piece, heads)
    out, _ = head(arrays, sizes, 3, piece, heads)
    mask, _ = head(arrays, sizes, 4, piece, heads)
    mask_column = sizes[DIMENSIONS + STRIDES * 4 + 3]
    at_p = step(arrays[6], slot * room * size)
    space = step(at_p, s * size)
    p, row, lse = carray(at_p, s), carray(out, e), carray(step(arrays[5], piece * size), 1)
    kind = p.dtype.type
    scale, most, total = kind(numbers[0]), kind(-np.inf), kind(0)
    dots(q, 0, size, k, k_row, at_p, 0, size, 1, s, d, False, space)
    for j in range(s):
        p[j] *= scale
        if has_mask:
            p[j] += carray(step(mask, j * mask_column), 1)[0]
        most = p[j] if p[j] > most else most
    most = kind(0) if most == kind(-np.inf) else most  # it may attend to nothing: zeros, not NaN
    for j in range(s):
        p[j] = exp(p[j] - most)
        total += p[j]
    thin(at_p, 0, size, v, v_row, out, 0, 1, e, s, False, space)
    lse[0] = np.log(total) + most
    share = kind(1) / total if total != kind(0) else kind(0)
    for j in range(e):
        row[j] *= share


@summing_task
def attention_backward_task(arrays, sizes, numbers, piece, slot):
    heads, t, s, d, e = sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]
    causal, has_mask, room, size = sizes[5], sizes[6], sizes[7], itemsize(arrays[0])
    key, threshold, wide = U64(sizes[8]), U32(sizes[9]), width(B, arrays[0])
    q, q_row = head(arrays, sizes, 0, piece, heads)
    k, k_row = head(arrays, sizes, 1, piece, heads)
    v, v_row = head(arrays, sizes, 2, piece, heads)
    out, out_row = head(arrays, sizes, 3, piece, heads)
    mask, mask_row = head(arrays, sizes, 4, piece, heads)
    mask_column = sizes[DIMENSIONS + STRIDES * 4 + 3]
    lse = carray(step(arrays[5], piece * t * size), t)
    grad, grad_row = head(arrays, sizes, 7, piece, heads)
    dq, dq_row = head(arrays, sizes, 8, piece, heads)
    dk, dk_row = head(arrays, sizes, 9, piece, heads)
    dv, dv_row = head(arrays, sizes, 10, piece, heads)
    # Workspace: K and V in panels, K in slivers, of a block Q^T, dO^T, Q, dO, p and ds
    at_k = step(arrays[6], slot * room * size)
    at_v = step(at_k, (s + MR) * d * size)
    at_k_slivers = step(at_v, (s + MR) * e * size)
    at_qt = step(at_k_slivers, (d + wide) * s * size)
    at_gt = step(at_qt, QUERIES * d * size)
    at_q = step(at_gt, QUERIES * e * size)
    at_g = step(at_q, QUERIES * (d + wide) * size)
    at_p = step(at_g, QUERIES * (e + wide) * size)
    at_ds = step(at_p, s * QUERIES * size)
    p, ds = carray(at_p, (s, QUERIES)), carray(at_ds, (s, QUERIES))
    at_stats = step(at_ds, s * QUERIES * size)
    stats = carray(at_stats, (3, QUERIES))
    shift, delta, factors = stats[0], stats[1], stats[2]
    kind = p.dtype.type
    scale, dropped = kind(numbers[0]), kind(numbers[1])
    pack(A, k, k_row, size, s, d, at_k)
    pack(A, v, v_row, size, s, e, at_v)
    pack(B, k, size, k_row, d, s, at_k_slivers)
    for j in range(s):
        carray(step(dk, j * dk_row), d)[:] = kind(0)
        carray(step(dv, j * dv_row), e)[:] = kind(0)
    shift[:], delta[:] = kind(0), kind(0)
    for i0 in range(0, t, QUERIES):
        queries = min(QUERIES, t - i0)
        future = i0 + s - t if causal else s
        keys = max(0, min(s, future + queries)) if causal else s
        block_q, block_g = step(q, i0 * q_row), step(grad, i0 * grad_row)
        block_dq = step(dq, i0 * dq_row)
        for i in range(queries):
            if keys == 0:
                carray(step(block_dq, i * dq_row), d)[:] = kind(0)
            shift[i] = lse[i0 + i] if lse[i0 + i] != kind(-np.inf) else kind(0)
            g_i = carray(step(block_g, i * grad_row), e)
            out_i = carray(step(out, (i0 + i) * out_row), e)
            total = kind(0)
            for j in range(e):
                total += g_i[j] * out_i[j]
            delta[i] = total  # sum(do * out) equals sum(p * dp) over the keys, and is cheaper
        if keys == 0:
            continue
        clear_rest(p, keys, queries)
        clear_rest(ds, keys, queries)
        pack_scaled_queries(block_q, q_row, queries, d, scale, at_qt)
        pack(B, block_g, grad_row, size, queries, e, at_gt)
        pack(B, block_q, size, q_row, d, queries, at_q)
        pack(B, block_g, size, grad_row, e, queries, at_g)
        multiply_scores(at_k, keys, d, at_qt, queries, future, at_p, QUERIES * size)
        multiply_scores(at_v, keys, e, at_gt, queries, future, at_ds, QUERIES * size)
        block_mask = step(mask, i0 * mask_row)
        mask_scores(p, has_mask, keys, queries, future, block_mask, mask_row, mask_column)
        chunks = -(-queries // CHUNK)
        for j in range(keys):
            hidden = max(0, j - future)  # fewer than queries, as j < keys
            ds[j, :hidden] = kind(0)
            hidden //= CHUNK
            p[j, : hidden * CHUNK] = kind(0)
            p_j, ds_j = part(at_p, j, hidden, chunks), part(at_ds, j, hidden, chunks)
            shift_j, delta_j = part(at_stats, 0, hidden, chunks), part(at_stats, 1, hidden, chunks)
            if threshold:
                drop(factors, key, threshold, dropped, piece, i0 // QUERIES, j)
                factor = part(at_stats, 2, hidden, chunks)
                for i in range(len(p_j)):
                    probability = exp(p_j[i] - shift_j[i])
                    ds_j[i] = probability * (ds_j[i] * factor[i] - delta_j[i]) * scale
                    p_j[i] = probability * factor[i]
            else:
                for i in range(len(p_j)):
                    p_j[i] = exp(p_j[i] - shift_j[i])
                    ds_j[i] = p_j[i] * (ds_j[i] - delta_j[i]) * scale
        multiply_queries(at_p, QUERIES * size, keys, at_g, e, queries, future, dv, dv_row)
        multiply_queries(at_ds, QUERIES * size, keys, at_q, d, queries, future, dk, dk_row)
        multiply_keys(
            at_ds, QUERIES * size, queries, at_k_slivers, s, d, keys, future, block_dq, dq_row
        )


def attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    options: Options,
    out: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """q (B, H, T, D), k (B, H, S, D), v (B, H, S, E) -> out (B, H, T, E), lse (B, H, T).

    `out` is made unless given: contiguous rows, of the dtype that `computed_in` says.
    """
    b, h, t, d = q.shape
    s, e = v.shape[2:]
    if d == 0 or e == 0:  # the micro-kernel needs something to sum
        out, lse = attention(*with_columns(q, k, v), options)
        return out[..., :e], lse
    dtype = launch.computed_in(q.dtype)
    lse = empty((b, h, t), dtype)
    if out is None:
        (out,) = heads_last([(b, h, t, e)], dtype)
    wide, task = tile_width(dtype), attention_task
    room = (s + MR) * d + (e + wide) * s + QUERIES * d + (s + 3) * QUERIES
    if t == 1 <= s and not options.dropout_p:
        task, room = one_query_task, s + max(e, DEPTH * tile_width(dtype))
    run(task, [q, k, v, out], lse, [], room, options)
    return out.astype(q.dtype, copy=False), lse


def attention_backward(
    grad: np.ndarray,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    out: np.ndarray,
    lse: np.ndarray,
    options: Options,
    grads: Sequence[np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of q, k and v, into `grads` if given; those are like `out` of `attention`."""
    dtype, d, (s, e) = lse.dtype, q.shape[3], v.shape[2:]
    if d == 0 or e == 0:
        dq, dk, dv = attention_backward(*with_columns(grad, q, k, v, out), lse, options)
        return dq[..., :d], dk[..., :d], dv[..., :e]
    if grads is None:
        grads = heads_last([x.shape for x in (q, k, v)], dtype)
    wide = tile_width(dtype)
    room = (
        (s + MR) * (d + e) + (d + wide) * s + 2 * QUERIES * (d + e + wide) + (2 * s + 3) * QUERIES
    )
    run(attention_backward_task, [q, k, v, out], lse, [grad, *grads], room, options)
    return tuple(g.astype(q.dtype, copy=False) for g in grads)


def run(task, heads, lse, more, room: int, options: Options) -> None:
    """Starts a task, one piece per head; `room`: elements of workspace per thread."""
    (b, h, t, d), (s, e), dtype = heads[0].shape, heads[2].shape[2:], lse.dtype
    mask = full_mask(options.mask, (b, h, t, s), dtype)
    room = -(-room // 16) * 16
    workers = min(launch.threads(), max(1, b * h))
    space = empty(room * workers, dtype, "workspace")
    heads, more = ([row_contiguous(x, dtype) for x in arrays] for arrays in (heads, more))
    arrays = [*heads, mask, lse, space, *more]
    strides = []
    for x in arrays:
        strides += [0] * STRIDES if x is None or x.ndim < 4 else x.strides
    threshold, dropped = threshold_and_scale(options.dropout_p)
    sizes = [h, t, s, d, e, options.is_causal, mask is not None, room]
    sizes += [options.dropout_key, threshold]
    sizes += [0] * (DIMENSIONS - len(sizes)) + strides
    task(b * h, arrays, sizes, [options.scale, dropped], workers)


def full_mask(mask, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray | None:
    """What is added to the scores, seen with their shape: broadcast axes have stride 0."""
    if mask is None:
        return None
    if mask.dtype == bool:
        mask = np.where(mask, dtype.type(0), dtype.type(-np.inf))
    return np.broadcast_to(np.asarray(mask, dtype), shape)


def row_contiguous(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """x with rows that are contiguous in memory; a copy if need be."""
    return x if x.dtype == dtype and x.strides[3] == x.itemsize else operand(x, dtype)


def with_columns(*arrays: np.ndarray) -> list[np.ndarray]:
    """Rows (B, H, T, 0) as rows of a single 0, which changes no product."""
    return [x if x.shape[3] else zeros((*x.shape[:3], 1), x.dtype) for x in arrays]


def tile_width(dtype: np.dtype) -> int:
    return NV * CPU.vector_bytes // dtype.itemsize


def heads_last(shapes: list[tuple[int, ...]], dtype: np.dtype) -> list[np.ndarray]:
    """Arrays (B, H, T, D) laid out in memory as (B, T, H, D), or, n alike, as (B, T, n, H, D).

    That is how the projections before and after attention see them: merging the heads is free, and
    so is joining the gradients of q, k and v that one projection made.
    """
    (b, h, t, d), n = shapes[0], len(shapes)
    if shapes.count(shapes[0]) == n:
        whole = empty((b, t, n, h, d), dtype)
        return [whole[:, :, i].swapaxes(1, 2) for i in range(n)]
    return [array for shape in shapes for array in heads_last([shape], dtype)]
