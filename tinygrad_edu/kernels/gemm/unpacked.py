"""Products too small or too thin for packing to pay.

Packing copies every element once so that it can be read many times. A 64 x 64 product reads its
operands from the nearest cache anyway, and a product with one row (a decoding step) uses each
element of B exactly once: the copy would cost more than it saves. Three paths read the operands
where they are:

    direct   small products: the register tile with A's own strides; only slivers of B that do
             not lie side by side in memory are packed
    thin     few rows, B contiguous along n: B is streamed once, a few rows at a time,
             adding to C; for a single row of A, in two halves of the sum
    dots     few rows, B contiguous along k (x @ W.T): dot products, several rows of B at a
             time, each with a vector of partial sums whose lanes are added up at the end
"""

from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from .microkernel import CPU, I32, I64, Emit, itemsize, lanes, load, raw, step, store, tile, zero
from .packing import B, pack, width

NV = CPU.nv
# Fewer than when packed: with arbitrary strides each row of A needs an address register.
ROWS = min(CPU.mr, 8)
DEPTH = 32  # rows of B that `thin` streams at a time
STREAMS = 6  # for one row of A: longer rows of B, fewer at a time
DOTS = 6  # rows of B.T that `dots` streams for one row of A
NEAR = 24576  # bytes of them up to which the next ones are asked for, half of the nearest cache


@intrinsic(prefer_literal=True)
def dot_tile(typingctx, mr, nr, a, a_row, b, b_column, k, c, c_row, c_column, rows, columns, add):
    """C[:rows, :columns] (+)= A[:mr, :k] @ B[:k, :nr], both contiguous along k; C any strides."""
    literals = [literal.literal_value for literal in (mr, nr)]

    def codegen(context, builder, signature, args):
        scalar = context.get_value_type(a.dtype)
        _emit_dots(Emit(builder, scalar), *literals, *args[2:])
        return context.get_dummy_value()

    at = types.intp
    return types.void(mr, nr, a, at, b, at, at, c, at, at, at, at, types.boolean), codegen


def _emit_dots(e, mr, nr, a, a_row, b, b_column, k, c, c_row, c_column, rows, columns, add):
    builder = e.builder
    a, b, c = (raw(builder, p) for p in (a, b, c))

    def starts(base, count, valid, stride):  # past the last row the last row again
        last = builder.sub(valid, I64(1))
        index = [
            builder.select(builder.icmp_signed("<", last, I64(i)), last, I64(i))
            for i in range(count)
        ]
        return [e.at(base, builder.mul(i, stride)) for i in index]

    a_starts, b_starts = starts(a, mr, rows, a_row), starts(b, nr, columns, b_column)
    group = builder.mul(I64(nr), b_column)
    ahead = builder.select(builder.icmp_signed("<=", group, I64(NEAR)), group, I64(0))
    zeros = ir.Constant(e.vector, None)
    whole = builder.and_(k, I64(-e.lanes))
    before = builder.block
    head, loop, after = (
        builder.append_basic_block("dots." + part) for part in ("head", "k", "rest")
    )
    builder.branch(head)
    builder.position_at_end(head)
    at = builder.phi(I64)
    sums = [builder.phi(e.vector) for _ in range(mr * nr)]
    builder.cbranch(builder.icmp_signed("<", at, whole), loop, after)

    def products(read):
        offset = builder.mul(at, I64(e.size))
        a_vectors = [read(e.at(start, offset)) for start in a_starts]
        b_vectors = [read(e.at(start, offset)) for start in b_starts]
        pairs = [(x, y) for x in a_vectors for y in b_vectors]
        return [e.multiply_add(x, y, s) for (x, y), s in zip(pairs, sums, strict=True)]

    builder.position_at_end(loop)
    later = builder.add(builder.mul(at, I64(e.size)), ahead)
    for start in b_starts:  # of the rows that follow: these are too short to show a pattern
        e.prefetch(e.at(start, later), write=False)
    total = products(e.load)
    at.add_incoming(I64(0), before)
    at.add_incoming(builder.add(at, I64(e.lanes)), loop)
    for phi, value in zip(sums, total, strict=True):
        phi.add_incoming(zeros, before)
        phi.add_incoming(value, loop)
    builder.branch(head)

    builder.position_at_end(after)
    with builder.if_then(builder.icmp_signed("<", whole, k)):
        mask = e.below(builder.sub(k, whole), 0)
        more = products(lambda place: e.masked_load(place, mask))
        rest = builder.block
    total = [builder.phi(e.vector) for _ in sums]
    for phi, without, value in zip(total, sums, more, strict=True):
        phi.add_incoming(without, after)
        phi.add_incoming(value, rest)
    values = [_lane_sum(e, vector) for vector in total]  # side by side, before any branch
    for i in range(mr):
        for j in range(nr):
            inside = builder.and_(
                builder.icmp_signed("<", I64(i), rows), builder.icmp_signed("<", I64(j), columns)
            )
            with builder.if_then(inside):
                value = values[i * nr + j]
                place = e.at(
                    c, builder.add(builder.mul(I64(i), c_row), builder.mul(I64(j), c_column))
                )
                with builder.if_else(add) as (adding, overwriting):
                    with adding:
                        e.store(builder.fadd(e.load(place, 1), value), place)
                    with overwriting:
                        e.store(value, place)


def _lane_sum(e, vector):
    """Fold the upper half onto the lower until one lane is left: a fixed order, so fixed bits."""
    count = e.lanes
    while count > 1:
        count //= 2
        parts = [
            ir.Constant(ir.VectorType(I32, count), [first + i for i in range(count)])
            for first in (0, count)
        ]
        low, high = (e.builder.shuffle_vector(vector, vector, half) for half in parts)
        vector = e.builder.fadd(low, high)
    return e.builder.extract_element(vector, I32(0))


@intrinsic(prefer_literal=True)
def add_rows(typingctx, rows, a, a_k, b, b_row, c, n):
    """C[:n] += sum of A[r] * B[r, :n] over a literal number of rows; n in pairs of vectors."""

    def codegen(context, builder, signature, args):
        e = Emit(builder, context.get_value_type(a.dtype))
        a_at, b_at, c_at = (raw(builder, args[i]) for i in (1, 3, 5))
        count = rows.literal_value
        factors = [
            e.splat(e.load(e.at(a_at, builder.mul(I64(r), args[2])), 1), e.lanes)
            for r in range(count)
        ]
        starts = [e.at(b_at, builder.mul(I64(r), args[4])) for r in range(count)]
        pair = 2 * CPU.vector_bytes
        with cgutils.for_range(builder, builder.udiv(args[6], I64(2 * e.lanes)), intp=I64) as loop:
            first = builder.mul(loop.index, I64(pair))
            for at in (first, builder.add(first, I64(CPU.vector_bytes))):
                value = e.load(e.at(c_at, at))
                for factor, start in zip(factors, starts, strict=True):
                    value = e.multiply_add(factor, e.load(e.at(start, at)), value)
                e.store(value, e.at(c_at, at))
        return context.get_dummy_value()

    at = types.intp
    return types.void(rows, a, at, b, at, c, at), codegen


@njit(error_model="numpy")
def direct(a, a_row, a_col, b, b_row, b_col, c, c_row, m, n, k, add, space):
    """C (m, n) (+)= A (m, k) @ B (k, n); C contiguous along n; space: room for one sliver of B."""
    size, wide = itemsize(a), width(B, a)
    for j in range(0, n, wide):
        columns = min(wide, n - j)
        sliver, sliver_k = step(b, j * b_col), b_row
        if b_col != size or columns < wide:
            pack(B, sliver, b_col, b_row, columns, k, space)
            sliver, sliver_k = space, wide * size
        for i in range(0, m, ROWS):
            target = step(c, i * c_row + j * size)
            tile(
                ROWS, NV, False, step(a, i * a_row), a_row, a_col, sliver, sliver_k, k,
                target, c_row, min(ROWS, m - i), columns, add,
            )  # fmt: skip


@njit(error_model="numpy")
def halves(k):
    """Where the sum over k of a single row of A is cut, so that two threads can share it; or 0.

    Each then reads rows of B that lie one after the other, not half of every row.
    """
    return k // (2 * STREAMS) * STREAMS


@njit(error_model="numpy")
def paired(n, like):
    """How many of n columns `add_rows` takes: pairs of vectors."""
    return n // (2 * lanes(like)) * (2 * lanes(like))


@njit(error_model="numpy")
def one_row(a, a_col, b, b_row, c, n, k, add):
    """C (n,) (+)= A (k,) @ B (k, n); n in pairs of vectors. Each pass over C adds STREAMS rows."""
    if not add:
        for j in range(n):
            store(step(c, j * itemsize(c)), zero(c))
    for k0 in range(0, k - STREAMS + 1, STREAMS):
        add_rows(STREAMS, step(a, k0 * a_col), a_col, step(b, k0 * b_row), b_row, c, n)
    for kk in range(k // STREAMS * STREAMS, k):
        add_rows(1, step(a, kk * a_col), a_col, step(b, kk * b_row), b_row, c, n)


@njit(error_model="numpy")
def half_row(later, a, a_col, b, b_row, c, space, n, k, add):
    """Half of the sum of a single row, as `one_row`: the earlier into C, the later into space."""
    half = halves(k)
    if later:
        later_a, later_b = step(a, half * a_col), step(b, half * b_row)
        one_row(later_a, a_col, later_b, b_row, space, n, k - half, False)
    else:
        one_row(a, a_col, b, b_row, c, n, half if half else k, add)


@njit(error_model="numpy")
def thin(a, a_row, a_col, b, b_row, c, c_row, m, n, k, add, space):
    """C (m, n) (+)= A (m, k) @ B (k, n) for few rows; B and C contiguous along n.

    space: room for DEPTH steps of a sliver; for a single row also for n elements.
    """
    done = 0
    if m == 1:
        done = paired(n, a)
        half_row(False, a, a_col, b, b_row, c, space, done, k, add)
        if halves(k):
            half_row(True, a, a_col, b, b_row, c, space, done, k, add)
            join(c, space, done)
    tiles(a, a_row, a_col, b, b_row, c, c_row, m, done, n, k, add, space)


@njit(error_model="numpy")
def join(c, other, n):
    """C (n,) += the other half of its sum."""
    here, there = carray(c, n), carray(other, n)
    for j in range(n):
        here[j] += there[j]


@njit(error_model="numpy")
def tiles(a, a_row, a_col, b, b_row, c, c_row, m, first, n, k, add, space):
    """Columns first .. n - 1 of a thin product in register tiles, DEPTH rows of B at a time."""
    size, wide = itemsize(a), width(B, a)
    for k0 in range(0, k, DEPTH):
        depth, plus = min(DEPTH, k - k0), add or k0 > 0
        a_at, b_at, j = step(a, k0 * a_col), step(b, k0 * b_row), first
        while j < n:
            columns, sliver, sliver_k = min(wide, n - j), step(b_at, j * size), b_row
            if columns < wide:
                pack(B, sliver, size, b_row, columns, depth, space)
                sliver, sliver_k = space, wide * size
            for i in range(0, m, 4):
                a_i, c_i, rows = step(a_at, i * a_row), step(c, i * c_row + j * size), min(4, m - i)
                tile(
                    4, NV, False, a_i, a_row, a_col, sliver, sliver_k, depth,
                    c_i, c_row, rows, columns, plus,
                )  # fmt: skip
            j += wide


@njit(error_model="numpy")
def dots(a, a_row, a_col, b, b_col, c, c_row, c_col, m, n, k, add, space):
    """C (m, n) (+)= A (m, k) @ B (k, n) for few rows; B contiguous along k; space: room for A."""
    size = itemsize(a)
    if a_col != size:
        for i in range(m):
            for kk in range(k):
                store(step(space, (i * k + kk) * size), load(step(a, i * a_row + kk * a_col)))
        a, a_row = space, k * size
    if m == 1:
        for j in range(0, n, DOTS):
            out = step(c, j * c_col)
            dot_tile(
                1, DOTS, a, a_row, step(b, j * b_col), b_col, k,
                out, c_row, c_col, 1, min(DOTS, n - j), add,
            )  # fmt: skip
        return
    for j in range(0, n, 2):
        for i in range(0, m, 4):
            out = step(c, i * c_row + j * c_col)
            dot_tile(
                4, 2, step(a, i * a_row), a_row, step(b, j * b_col), b_col, k,
                out, c_row, c_col, min(4, m - i), min(2, n - j), add,
            )  # fmt: skip


@njit(error_model="numpy")
def few_rows(a, a_row, a_col, b, b_row, b_col, c, c_row, c_col, m, n, k, add, space):
    """C (m, n) (+)= A (m, k) @ B (k, n), whichever way B lies; space: as for `thin` and `dots`."""
    if b_col == itemsize(a):
        thin(a, a_row, a_col, b, b_row, c, c_row, m, n, k, add, space)
    else:
        dots(a, a_row, a_col, b, b_col, c, c_row, c_col, m, n, k, add, space)
