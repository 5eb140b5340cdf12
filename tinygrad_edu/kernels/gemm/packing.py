"""Packing: copy a panel of A or B into the order in which the micro-kernel reads it.

The micro-kernel walks along k and wants, for each k, the next `width` numbers side by side: mr of
A, nv vectors of B. A sliver is exactly that, `width` rows (of A, or of B transposed) stored as
(k, width):

    rows in memory          sliver
    r0: a b c d ...         a e i m | b f j n | c g k o | d h l p ...
    r1: e f g h ...         k = 0     k = 1     k = 2     k = 3
    r2: i j k l ...
    r3: m n o p ...

After packing everything is read once, in order, from few pages, whatever the strides were:
transposed operands cost nothing extra. Where the rows already lie side by side in memory (stride
of one element), a step of k is one wide copy. Where k is contiguous, four rows at a time (two in
float64) are transposed in registers, four columns at a time, since moving elements within 16 bytes
is what vector units do most cheaply:

    r0: a b c d | e f g h | ...          a i q y | e m u C | ...   columns 0, 4, ...
    r1: i j k l | m n o p | ...    ->    b j r z | f n v D | ...   columns 1, 5, ...
    r2: q r s t | u v w x | ...          c k s A | g o w E | ...   columns 2, 6, ...
    r3: y z A B | C D E F | ...          d l t B | h p x F | ...   columns 3, 7, ...

in two rounds, in each of which one vector and another are interleaved like the two halves of a deck
of cards. Any other strides take a plain loop.

Rows past the last one repeat the last one: the sums they lead to are never stored.
"""

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from .microkernel import CPU, I32, I64, Emit, itemsize, lanes, load, raw, step, store

LANE_BYTES = 16  # within which vector units move elements most cheaply
A, B = 0, 1  # whose sliver: A's are mr wide, B's nv vectors


def _width(e, side):
    return CPU.mr if side == A else CPU.nv * e.lanes


@intrinsic(prefer_literal=True)
def width(typingctx, side, pointer):
    """Rows in a sliver, a constant."""

    def codegen(context, builder, signature, args):
        e = Emit(builder, context.get_value_type(pointer.dtype))
        return I64(_width(e, side.literal_value))

    return types.intp(side, pointer), codegen


@intrinsic(prefer_literal=True)
def transpose_block(typingctx, side, source, row, target, rows):
    """Pack `lanes` steps of k of a sliver from rows that are contiguous along k."""

    def codegen(context, builder, signature, args):
        e = Emit(builder, context.get_value_type(source.dtype))
        base, stride, out, count = raw(builder, args[1]), args[2], raw(builder, args[3]), args[4]
        n, last = _width(e, side.literal_value), builder.sub(count, I64(1))
        unit = min(e.lanes, LANE_BYTES // e.size)
        for first in range(0, n, unit):
            height, vectors = min(unit, n - first), []
            for i in range(first, first + height):
                index = builder.select(builder.icmp_signed("<", last, I64(i)), last, I64(i))
                vectors.append(e.load(e.at(base, builder.mul(index, stride))))
            vectors += [ir.Constant(e.vector, ir.Undefined)] * (unit - height)
            for j, columns in enumerate(_transposed(e, vectors)):
                for k in range(j, e.lanes, unit):
                    keep = list(range(k - j, k - j + height))
                    keep = ir.Constant(ir.VectorType(I32, height), keep)
                    column = builder.shuffle_vector(columns, columns, keep)
                    e.store(column, e.at(out, (k * n + first) * e.size))
        return context.get_dummy_value()

    return types.void(side, source, types.intp, target, types.intp), codegen


def _transposed(e, rows):
    """Each square of len(rows) columns transposed: vector j holds columns j, j + len(rows), ..."""
    unit = len(rows)
    half, indices = unit // 2, ir.VectorType(I32, e.lanes)
    places = [(start, i) for start in range(0, e.lanes, unit) for i in range(unit)]
    low, high = (
        ir.Constant(indices, [start + skip + i // 2 + e.lanes * (i % 2) for start, i in places])
        for skip in (0, half)
    )
    shuffle = e.builder.shuffle_vector
    for _ in range(unit.bit_length() - 1):
        pairs = list(zip(rows[:half], rows[half:], strict=True))
        rows = [shuffle(x, y, order) for x, y in pairs for order in (low, high)]
    return rows


@intrinsic(prefer_literal=True)
def copy_step(typingctx, side, source, target, rows):
    """Pack one step of k of a sliver whose rows lie side by side in memory."""

    def codegen(context, builder, signature, args):
        e = Emit(builder, context.get_value_type(source.dtype))
        base, out, count = raw(builder, args[1]), raw(builder, args[2]), args[3]
        n = _width(e, side.literal_value)
        with builder.if_else(builder.icmp_signed("==", count, I64(n))) as (full, part):
            with full:
                e.store(e.load(base, n), out)
            with part:
                for first in range(0, n, e.lanes):
                    value = e.masked_load(e.at(base, first * e.size), e.below(count, first))
                    keep = list(range(min(e.lanes, n - first)))
                    value = builder.shuffle_vector(
                        value, value, ir.Constant(ir.VectorType(I32, len(keep)), keep)
                    )
                    e.store(value, e.at(out, first * e.size))
        return context.get_dummy_value()

    return types.void(side, source, target, types.intp), codegen


@njit(error_model="numpy")
def pack(side, source, row, column, rows, k, target):
    """Slivers of rows 0..rows of a (rows, k) matrix with strides row and column, in bytes.

    side: A or B, a constant.
    """
    size, block, wide = itemsize(source), lanes(source), width(side, source)
    if row == size and (column != size or k < block):
        for k0 in range(0, k, 16):  # few rows of memory at a time, all slivers of each
            k1 = min(k, k0 + 16)
            for r in range(0, rows, wide):
                for kk in range(k0, k1):
                    out = step(target, (r * k + kk * wide) * size)
                    copy_step(side, step(source, r * size + kk * column), out, min(wide, rows - r))
        return
    for r in range(0, rows, wide):
        base, out, count = step(source, r * row), step(target, r * k * size), min(wide, rows - r)
        done = 0
        while column == size and k >= block and done < k:
            kk = min(done, k - block)  # the last block overlaps the one before
            there = step(out, kk * wide * size)
            transpose_block(side, step(base, kk * size), row, there, count)
            done = kk + block
        for kk in range(done, k):
            for i in range(wide):
                value = load(step(base, min(i, count - 1) * row + kk * column))
                store(step(out, (kk * wide + i) * size), value)
