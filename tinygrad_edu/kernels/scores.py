"""What attention does with a block of scores, (keys, QUERIES), that some queries see only part of.

Query i of the block sees the keys 0 .. future + i. A tile of a product, or a chunk of a row, in
which no query sees any key is left out: in a text of 64 tokens, a third of the work.
"""

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic

from .gemm.microkernel import CPU, I64, Emit, itemsize, raw, step, tile
from .gemm.packing import B, width
from .philox import U32, philox

QUERIES = 96  # in a block: whole tiles for every tile shape of the micro-kernel
WORDS = QUERIES // 4
CHUNK = 16  # queries to take or to leave at once: a vector, or a few; at least MR
MR, NV = CPU.mr, CPU.nv


@njit(error_model="numpy")
def multiply_scores(k, m, d, q, n, future, c, c_row):
    """C (m, n) = K (m, d) @ Q^T (d, n), K in panels and Q^T in slivers.

    Tiles of C that hold only keys after their queries (see `mask_scores`) are left as they are.
    """
    size, wide = itemsize(k), width(B, k)
    for j in range(0, n, wide):
        sliver, columns = step(q, j * d * size), min(wide, n - j)
        for i in range(0, min(m, future + j + columns), MR):
            panel, target = step(k, i * d * size), step(c, i * c_row + j * size)
            tile(
                MR, NV, True, panel, size, MR * size, sliver, wide * size, d,
                target, c_row, min(MR, m - i), columns, False,
            )  # fmt: skip


@njit(error_model="numpy")
def multiply_keys(p, p_row, m, b, b_depth, n, keys, future, c, c_row):
    """C (m, n) = P (m, keys) @ B (keys, n): P contiguous along m, B in slivers of `b_depth`.

    Of each MR queries only the keys that one of them sees are summed (one, if they see none).
    """
    size, wide = itemsize(p), width(B, p)
    for j in range(0, n, wide):
        sliver, columns = step(b, j * b_depth * size), min(wide, n - j)
        for i in range(0, m, MR):
            rows, target = min(MR, m - i), step(c, i * c_row + j * size)
            tile(
                MR, NV, True, step(p, i * size), size, p_row, sliver, wide * size,
                max(1, min(keys, future + i + rows)), target, c_row, rows, columns, False,
            )  # fmt: skip


@njit(error_model="numpy")
def multiply_queries(p, p_row, m, b, n, queries, future, c, c_row):
    """C (m, n) += P (m, queries) @ B (queries, n): P contiguous along queries, B in slivers.

    Of each MR keys only the queries that see one of them are summed.
    """
    size, wide = itemsize(p), width(B, p)
    for j in range(0, n, wide):
        sliver, columns = step(b, j * queries * size), min(wide, n - j)
        for i in range(0, m, MR):
            first = max(0, i - future)
            tile(
                MR, NV, False, step(p, i * p_row + first * size), p_row, size,
                step(sliver, first * wide * size), wide * size, queries - first,
                step(c, i * c_row + j * size), c_row, min(MR, m - i), columns, True,
            )  # fmt: skip


@njit(error_model="numpy")
def part(rows, j, first, last):
    """Of row j of a matrix (rows, QUERIES), the chunks first .. last - 1."""
    return carray(
        step(rows, (j * QUERIES + first * CHUNK) * itemsize(rows)), (last - first) * CHUNK
    )


@njit(error_model="numpy")
def seen(c, future, keys):
    """How many keys some query of chunk c sees."""
    return max(0, min(keys, future + (c + 1) * CHUNK))


@njit(error_model="numpy")
def mask_scores(scores, has_mask, keys, queries, future, mask, mask_row, mask_column):
    """Scores (keys, QUERIES) += mask (a pointer, byte strides), and -inf for keys after a query.

    `future`: query i of the block sees keys up to future + i, or `keys` if not causal.
    """
    hidden = scores.dtype.type(-np.inf)
    if has_mask:
        for j in range(keys):
            for i in range(max(0, j - future), queries):
                scores[j, i] += carray(step(mask, i * mask_row + j * mask_column), 1)[0]
    for j in range(max(0, future + 1), keys):
        row = scores[j]
        for i in range(min(j - future, queries)):
            row[i] = hidden


@njit(error_model="numpy")
def drop(factors, key, threshold, scale, piece, block, j):
    """The dropout factors of key j for the queries of a block."""
    zero = factors.dtype.type(0)
    for i in range(WORDS):
        a, b, c, d = philox(U32(i), U32(j), U32(block), U32(piece), key)
        factors[i] = scale if a >= threshold else zero
        factors[WORDS + i] = scale if b >= threshold else zero
        factors[2 * WORDS + i] = scale if c >= threshold else zero
        factors[3 * WORDS + i] = scale if d >= threshold else zero


@njit(error_model="numpy")
def clear_rest(block, keys, queries):
    """Zeros where a last block (keys, QUERIES) has no queries.

    Vectors and tiles reach into it. Their results are dropped, but whatever the memory held before
    may be a denormal number, and one of those makes some CPUs a hundred times slower.
    """
    end = max(-(-queries // CHUNK) * CHUNK, -(-queries // MR) * MR)  # none reaches further
    for j in range(keys):
        block[j, queries:end] = 0


LARGEST, SUM = 0, 1


@intrinsic(prefer_literal=True)
def fold(typingctx, how, rows, count, out):
    """out[:CHUNK] = the largest (from -inf) or the sum of a chunk's first `count` rows, in order.

    As with the micro-kernel's sums, a phi node per vector keeps the result in registers.
    """

    def codegen(context, builder, signature, args):
        e = Emit(builder, context.get_value_type(rows.dtype))
        largest = how.literal_value == LARGEST
        source, target, count = raw(builder, args[1]), raw(builder, args[3]), args[2]
        start = ir.Constant(e.vector, [float("-inf") if largest else 0.0] * e.lanes)
        places = [at * CPU.vector_bytes for at in range(CHUNK // e.lanes)]
        for place in places:
            before, loop = builder.block, builder.append_basic_block("fold")
            body, done = (builder.append_basic_block(name) for name in ("row", "folded"))
            builder.branch(loop)
            builder.position_at_end(loop)
            j, value = builder.phi(I64), builder.phi(e.vector)
            builder.cbranch(builder.icmp_signed("<", j, count), body, done)
            builder.position_at_end(body)
            offset = builder.add(builder.mul(j, I64(QUERIES * e.size)), I64(place))
            row = e.load(e.at(source, offset))
            if largest:
                more = builder.select(builder.fcmp_ordered(">", row, value), row, value)
            else:
                more = builder.fadd(value, row)
            for phi, first, following in (
                (j, I64(0), builder.add(j, I64(1))),
                (value, start, more),
            ):
                phi.add_incoming(first, before)
                phi.add_incoming(following, body)
            builder.branch(loop)
            builder.position_at_end(done)
            e.store(value, e.at(target, place))
        return context.get_dummy_value()

    return types.void(how, rows, types.intp, rows), codegen
