"""The compiled functions that matmul calls: one task for each way to compute a product.

A piece is a rectangle of C, or of one C of a batch (b0, b1, m, n). The tasks take array objects as
they are (`id(array)`, see `objects`), whatever their strides.
"""

from numba import njit

from ..launch import task
from ..objects import data, shape_of, strides_of
from .blocked import blocked, finish
from .microkernel import itemsize, step
from .unpacked import direct, few_rows

# Where sizes[...] keep what: five array objects, what `finish` is to do, whether to add to C, the
# cuts (height and width of a piece, then as `blocked` reads them), and the elements of workspace
# that a thread has for A and for B.
A, B, C, BIAS, EXTRA, EPILOGUE, ADD, CUTS, A_ROOM, B_ROOM = 0, 1, 2, 3, 4, 5, 6, 7, 13, 14


@njit(error_model="numpy")
def repeated(array):
    """The strides of an array that broadcasts: 0 along axes of size 1."""
    shape, strides = shape_of(array), strides_of(array)
    row = strides[2] if shape[2] > 1 else 0
    return strides[0], strides[1], row, strides[3] if shape[3] > 1 else 0


@njit(error_model="numpy")
def moved(array, strides, at, row, column, like):
    """Pointer to an element of an array: of matrix `at`, in this row and column."""
    offset = at[0] * strides[0] + at[1] * strides[1] + row * strides[2] + column * strides[3]
    return step(data(array, like), offset)


@njit(error_model="numpy")
def piece_of(sizes, piece, like):
    """(pointer, row stride, column stride) of a piece of A, B, C, bias and extra, and its shape."""
    height, width, (_, b1, m, n) = sizes[CUTS], sizes[CUTS + 1], shape_of(sizes[C])
    down, across = -(-m // height), -(-n // width)
    at = piece // (down * across) // b1, piece // (down * across) % b1
    row, column = piece // across % down * height, piece % across * width
    a_steps, b_steps, c_steps = strides_of(sizes[A]), strides_of(sizes[B]), strides_of(sizes[C])
    bias_steps, extra_steps = repeated(sizes[BIAS]), strides_of(sizes[EXTRA])
    a = moved(sizes[A], a_steps, at, row, 0, like)
    b = moved(sizes[B], b_steps, at, 0, column, like)
    c = moved(sizes[C], c_steps, at, row, column, like)
    bias = moved(sizes[BIAS], bias_steps, at, row, column, like)
    extra = moved(sizes[EXTRA], extra_steps, at, row, column, like)
    return (
        (a, a_steps[2], a_steps[3]),
        (b, b_steps[2], b_steps[3]),
        (c, c_steps[2], c_steps[3] if n > 1 else itemsize(like)),
        (bias, bias_steps[2], bias_steps[3]),
        (extra, extra_steps[2]),
        (min(height, m - row), min(width, n - column)),
    )


@njit(error_model="numpy")
def rooms(sizes, slot, like):
    """This thread's workspace for A and for B."""
    size = itemsize(like)
    room = step(like, slot * (sizes[A_ROOM] + sizes[B_ROOM]) * size)
    return room, step(room, sizes[A_ROOM] * size)


@task
def matmul_blocked(arrays, sizes, numbers, piece, slot):
    a, b, c, bias, extra, shape = piece_of(sizes, piece, arrays[0])
    a_room, b_room = rooms(sizes, slot, arrays[0])
    blocked(
        *a, *b, c[0], c[1], *bias, *extra, sizes[EPILOGUE], sizes[ADD] != 0, *shape,
        step(sizes, 8 * CUTS), a_room, b_room,
    )  # fmt: skip


@task
def matmul_direct(arrays, sizes, numbers, piece, slot):
    a, b, c, bias, extra, shape = piece_of(sizes, piece, arrays[0])
    _, room = rooms(sizes, slot, arrays[0])
    direct(*a, *b, c[0], c[1], *shape, sizes[CUTS + 2], sizes[ADD] != 0, room)
    if sizes[EPILOGUE]:
        finish(c[0], c[1], *bias, *extra, sizes[EPILOGUE], *shape)


@task
def matmul_thin(arrays, sizes, numbers, piece, slot):
    a, b, c, bias, extra, (m, n) = piece_of(sizes, piece, arrays[0])
    (_, room), size = rooms(sizes, slot, arrays[0]), itemsize(arrays[0])
    few_rows(*a, *b, *c, m, n, sizes[CUTS + 2], sizes[ADD] != 0, room)
    if sizes[EPILOGUE] and c[2] == size:
        finish(c[0], c[1], *bias, *extra, sizes[EPILOGUE], m, n)
    elif sizes[EPILOGUE]:
        for j in range(n):  # column by column, each an (m, 1) matrix
            terms, more = step(bias[0], j * bias[2]), step(extra[0], j * size)
            finish(
                step(c[0], j * c[2]), c[1], terms, bias[1], bias[2], more, extra[1],
                sizes[EPILOGUE], m, 1,
            )  # fmt: skip
