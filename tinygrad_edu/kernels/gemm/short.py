"""Products so short that the way to the kernel is what costs: from array objects, in one call.

A 64 x 64 product takes two microseconds, a row times a matrix less; checking shapes and strides in
Python takes as long again, several times over. Here Python passes three array objects as they are,
and compiled code does the checking.
"""

from numba import njit, prange, types

from ..jit import Kernel
from ..objects import (
    DATA,
    FLAGS,
    SHAPE,
    STRIDES,
    WRITEABLE,
    alike,
    axes,
    data,
    shape_of,
    strides_of,
    word,
)  # fmt: skip
from .gemm import DIRECT_DEPTH, DONE, FEW, MEDIUM, SHARED, SMALL, THIN_ALONE
from .microkernel import pointer, step
from .unpacked import direct, few_rows, half_row, halves, join, paired, tiles


@njit(error_model="numpy")
def fits(a, b, c, size):
    """Whether C can take A @ B: matrices of one kind and dtype and of shapes that fit, and C is
    contiguous, writeable, and overlaps neither.
    """
    for x in (a, b, c):
        if not alike(a, x) or axes(x) != 2:
            return False
    a_shape, b_shape = word(a + SHAPE), word(b + SHAPE)
    c_shape = word(c + SHAPE)
    m, k, n = word(a_shape), word(a_shape + 8), word(b_shape + 8)
    c_strides = word(c + STRIDES)
    if word(b_shape) != k or word(c_shape) != m or word(c_shape + 8) != n or m * n * k == 0:
        return False
    if word(c_strides + 8) != size or word(c_strides) != n * size:
        return False
    start = word(c + DATA)
    end = start + m * n * size
    for x, rows, columns in ((a, m, k), (b, k, n)):
        strides, first = word(x + STRIDES), word(x + DATA)
        row, column = word(strides), word(strides + 8)
        if row < 0 or column < 0:
            return False
        if first < end and start < first + (rows - 1) * row + (columns - 1) * column + size:
            return False
    return word(c + FLAGS) & WRITEABLE != 0


def short(a, b, c, space, threads):
    """C = A @ B of two matrices on the calling thread; a, b, c: addresses of array objects.

    Returns DONE; SHARED if `short_on_threads` should do it; 0 if this is not the way at all, as C
    may not take A @ B, or is too large. space: room for 64 * DIRECT_DEPTH elements, of the dtype
    of A.
    """
    size, like = space.itemsize, pointer(space)
    if not fits(a, b, c, size):
        return 0
    (_, _, m, k), n = shape_of(a), shape_of(b)[3]
    (_, _, a_row, a_col), (_, _, b_row, b_col) = strides_of(a), strides_of(b)
    left, right, result = data(a, like), data(b, like), data(c, like)
    if n <= FEW < m or k > 4 * DIRECT_DEPTH or (m == 1 and n > 64 * DIRECT_DEPTH):
        return 0
    if m <= FEW and (b_row == size or b_col == size):
        if threads > 1 and n * k > THIN_ALONE:
            return SHARED
        few_rows(
            left, a_row, a_col, right, b_row, b_col, result, n * size, size, m, n, k, False, like
        )
        return DONE
    work = m * n * k
    if k > DIRECT_DEPTH or work > MEDIUM or (threads > 1 and work > SMALL):
        return 0
    direct(left, a_row, a_col, right, b_row, b_col, result, n * size, m, n, k, False, like)
    return DONE


def short_on_threads(a, b, c, space, threads):
    """The same for what is SHARED: few rows. space: room as in `short` for each thread.

    Each takes a range of columns; for a single row two share one, each half of the sum, with the
    same cut as on one thread.
    """
    size, like = space.itemsize, pointer(space)
    (_, _, m, k), n = shape_of(a), shape_of(b)[3]
    (_, _, a_row, a_col), (_, _, b_row, b_col) = strides_of(a), strides_of(b)
    left, right, result = data(a, like), data(b, like), data(c, like)
    shared = m == 1 and halves(k) and b_col == size and threads % 2 == 0
    parts = 2 if shared else 1
    ranges, end = -(-threads // parts), paired(n, like) if parts == 2 else n
    share = ((n + ranges - 1) // ranges + 63) // 64 * 64
    for slot in prange(parts * ranges):
        first, last = slot // parts * share, min(end, (slot // parts + 1) * share)
        if first >= last:
            continue
        if parts == 2:
            half_row(
                slot % 2, left, a_col, step(right, first * size), b_row,
                step(result, first * size), step(like, first * size), last - first, k, False,
            )  # fmt: skip
        else:
            room = step(like, slot * 64 * DIRECT_DEPTH * size)
            few_rows(
                left, a_row, a_col, step(right, first * b_col), b_row, b_col,
                step(result, first * size), n * size, size, m, last - first, k, False, room,
            )  # fmt: skip
    if parts == 2:
        join(result, like, end)
        tiles(left, a_row, a_col, right, b_row, result, n * size, 1, end, n, k, False, like)


def _signature(result):
    def signature(dtype):
        room = {"f": types.float32, "d": types.float64}[dtype][::1]
        return result(*[types.int64] * 3, room, types.int64)

    return signature


here = Kernel(short, _signature(types.int64), error_model="numpy", nogil=True)
on_threads = Kernel(
    short_on_threads, _signature(types.void), error_model="numpy", nogil=True, parallel=True
)
