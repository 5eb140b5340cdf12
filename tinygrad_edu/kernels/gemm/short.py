"""Products so short that the way to the kernel is what costs: from array objects, in one call.

A 64 x 64 product takes two microseconds, a row times a matrix less; checking shapes and strides in
Python takes as long again, several times over. Here Python passes three array objects as they are,
and compiled code does the checking.
"""

from numba import njit, types

from ..jit import Kernel
from ..job import ARRAYS, COUNT, write
from ..launch import task
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
from ..pool import run
from .gemm import DIRECT_DEPTH, DONE, FEW, MEDIUM, SHARED, SMALL, THIN_ALONE
from .microkernel import itemsize, pointer, step
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


def short(a, b, c, space, block, threads, pool, task):
    """C = A @ B of two matrices; a, b, c: addresses of array objects.

    Returns DONE; SHARED if it takes more threads, but task, the address of `few_columns`, is 0; and
    0 if this is not the way at all, as C may not take A @ B, or is too large. space: room for
    64 * DIRECT_DEPTH elements per thread, of the dtype of A; block: of a job, see `job`.
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
        if threads == 1 or n * k <= THIN_ALONE:
            few_rows(
                left, a_row, a_col, right, b_row, b_col, result, n * size, size, m, n, k, False,
                like,
            )  # fmt: skip
            return DONE
        if task == 0:
            return SHARED
        pairs = paired(n, like) if m == 1 and b_col == size and threads % 2 == 0 else 0
        parts = 2 if pairs and halves(k) else 1
        ranges, end = -(-threads // parts), pairs if parts == 2 else n
        columns = ((end + ranges - 1) // ranges + 63) // 64 * 64
        write(block, space.ctypes.data)
        for i, value in enumerate((a, b, c, columns, end, parts)):
            write(block + 8 * (ARRAYS + i), value)
        write(block + COUNT, parts * -(-end // columns))
        run(pool, task, block, 1, 1, threads)
        if parts == 2:
            join(result, like, end)
            tiles(left, a_row, a_col, right, b_row, result, n * size, 1, end, n, k, False, like)
        return DONE
    work = m * n * k
    if k > DIRECT_DEPTH or work > MEDIUM or (threads > 1 and work > SMALL):
        return 0
    direct(left, a_row, a_col, right, b_row, b_col, result, n * size, m, n, k, False, like)
    return DONE


@task
def few_columns(arrays, sizes, numbers, piece, slot):
    """A range of the columns of a product with few rows; of a single row half of the sum, too.

    The cut of the sum is the same as on one thread. The later half waits in the workspace.
    """
    space, size = arrays[0], itemsize(arrays[0])
    a, b, c, columns, end, parts = sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5]
    (_, _, m, k), n = shape_of(a), shape_of(b)[3]
    (_, _, a_row, a_col), (_, _, b_row, b_col) = strides_of(a), strides_of(b)
    first = piece // parts * columns
    left, right = data(a, space), step(data(b, space), first * b_col)
    result, width = step(data(c, space), first * size), min(columns, end - first)
    if parts == 2:
        other = step(space, first * size)
        half_row(piece % 2, left, a_col, right, b_row, result, other, width, k, False)
    else:
        room = step(space, slot * 64 * DIRECT_DEPTH * size)
        few_rows(
            left, a_row, a_col, right, b_row, b_col, result, n * size, size, m, width, k, False,
            room,
        )  # fmt: skip


def _signature(dtype):
    room = {"f": types.float32, "d": types.float64}[dtype][::1]
    return types.int64(*[types.int64] * 3, room, *[types.int64] * 4)


here = Kernel(short, _signature, error_model="numpy", nogil=True)
