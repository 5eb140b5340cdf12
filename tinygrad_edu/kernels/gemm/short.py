"""Products so short that the way to the kernel is what costs: from array objects, in one call.

A 64 x 64 product takes two microseconds, a row times a matrix less; checking shapes and strides in
Python takes as long again, several times over. Here Python passes three array objects as they are,
and compiled code does the checking.
"""

from numba import njit, prange, types

from ..jit import Kernel
from ..objects import DATA, FLAGS, SHAPE, STRIDES, WRITEABLE, data, shape_of, strides_of, word
from .entries import room_of, unpacked
from .gemm import DIRECT, DIRECT_DEPTH, FEW, SMALL, THIN
from .microkernel import itemsize, pointer, step
from .unpacked import half_row, halves, join, paired, tiles


@njit(error_model="numpy")
def fits(a, b, c, size):
    """Whether C can take A @ B: shapes fit, C is contiguous, writeable, and overlaps neither."""
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


@njit(error_model="numpy")
def columns(a, b, c, like, first, last, way, room):
    """Columns first .. last - 1 of C = A @ B; `like`: a pointer to the element type."""
    a_strides, b_strides = word(a + STRIDES), word(b + STRIDES)
    m, k = word(word(a + SHAPE)), word(word(a + SHAPE) + 8)
    b_col, size, n = word(b_strides + 8), itemsize(like), word(word(b + SHAPE) + 8)
    right, result = step(data(b, like), first * b_col), step(data(c, like), first * size)
    unpacked(
        data(a, like), word(a_strides), word(a_strides + 8), right, word(b_strides), b_col,
        result, n * size, size, result, 0, 0, result, 0,
        0, False, m, last - first, k, way, room,
    )  # fmt: skip


@njit(error_model="numpy")
def way(a, b, c, size):
    """THIN or DIRECT, or -1 if this is not the way to compute C = A @ B."""
    if not fits(a, b, c, size):
        return -1
    a_shape, b_strides = word(a + SHAPE), word(b + STRIDES)
    m, k, n = word(a_shape), word(a_shape + 8), word(word(b + SHAPE) + 8)
    if n <= FEW < m or k > 4 * DIRECT_DEPTH or (m == 1 and n > 64 * DIRECT_DEPTH):
        return -1
    if m <= FEW and (word(b_strides) == size or word(b_strides + 8) == size):
        return THIN
    return DIRECT if k <= DIRECT_DEPTH and m * n * k <= SMALL else -1


def short(a, b, c, space):
    """C (m, n) = A (m, k) @ B (k, n); False, and nothing done, if this is not the way.

    a, b, c: addresses of 2-D arrays of one dtype; space: room for 64 * DIRECT_DEPTH elements.
    """
    chosen, like = way(a, b, c, space.itemsize), pointer(space)
    if chosen >= 0:
        columns(a, b, c, like, 0, word(word(b + SHAPE) + 8), chosen, like)
    return chosen >= 0


def short_on_threads(a, b, c, space, threads):
    """The same for few rows; space: room as in `short` for each thread.

    Each takes a range of columns; for a single row two share one, each half of the sum, with the
    same cut as on one thread.
    """
    size, like = space.itemsize, pointer(space)
    if way(a, b, c, size) != THIN:
        return False
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
            columns(a, b, c, like, first, last, THIN, room)
    if parts == 2:
        join(result, like, end)
        tiles(left, a_row, a_col, right, b_row, result, n * size, 1, end, n, k, False, like)
    return True


def _signature(*more):
    def signature(dtype):
        return types.boolean(types.int64, types.int64, types.int64, room_of(dtype), *more)

    return signature


here = Kernel(short, _signature(), error_model="numpy", nogil=True)
on_threads = Kernel(
    short_on_threads, _signature(types.int64), error_model="numpy", nogil=True, parallel=True
)
