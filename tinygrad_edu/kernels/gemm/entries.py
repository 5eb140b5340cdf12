"""The two compiled functions that matmul calls: one on the calling thread, one on all threads.

Both take array objects as they are (`id(array)`, see `objects`), whatever their strides.
"""

from numba import njit, prange, types

from ..jit import Kernel
from ..objects import data, shape_of, strides_of
from .blocked import blocked, fetch_add, finish
from .gemm import BLOCKED, COUNTER, DIRECT
from .microkernel import itemsize, pointer, step
from .unpacked import direct, dots, thin


@njit(error_model="numpy")
def unpacked(
    a, a_row, a_col, b, b_row, b_col, c, c_row, c_col, bias, bias_row, bias_col, extra, extra_row,
    todo, add, m, n, k, way, space,
):  # fmt: skip
    """One product, or a piece of one, without packing A. For DIRECT, C is contiguous along n."""
    size = itemsize(a)
    if way == DIRECT:
        direct(a, a_row, a_col, b, b_row, b_col, c, c_row, m, n, k, add, space)
    elif b_col == size:
        thin(a, a_row, a_col, b, b_row, c, c_row, m, n, k, add, space)
    else:
        dots(a, a_row, a_col, b, b_col, c, c_row, c_col, m, n, k, add, space)
    if todo:
        if c_col == size:
            finish(c, c_row, bias, bias_row, bias_col, extra, extra_row, todo, m, n)
        else:
            for j in range(n):  # column by column, each an (m, 1) matrix
                finish(
                    step(c, j * c_col), c_row, step(bias, j * bias_col), bias_row, bias_col,
                    step(extra, j * size), extra_row, todo, m, 1,
                )  # fmt: skip


@njit(error_model="numpy")
def repeated(array):
    """The strides of an array that broadcasts: 0 along axes of size 1."""
    shape, strides = shape_of(array), strides_of(array)
    row = strides[2] if shape[2] > 1 else 0
    return strides[0], strides[1], row, strides[3] if shape[3] > 1 else 0


@njit(error_model="numpy")
def moved(start, strides, i0, i1, row, column):
    """Pointer to element (i0, i1, row, column) of an array that starts at `start`."""
    offset = i0 * strides[0] + i1 * strides[1] + row * strides[2] + column * strides[3]
    return step(start, offset)


def matmul_here(a, b, c, bias, extra, todo, add, way, space):
    """C (m, n) (+)= A (m, k) @ B (k, n) (+ bias) on the calling thread; way is DIRECT or THIN."""
    like, size = pointer(space), space.itemsize
    (_, _, m, k), n = shape_of(a), shape_of(b)[3]
    (_, _, a_row, a_col), (_, _, b_row, b_col) = strides_of(a), strides_of(b)
    (_, _, c_row, c_col), (_, _, bias_row, bias_col) = strides_of(c), repeated(bias)
    unpacked(
        data(a, like), a_row, a_col, data(b, like), b_row, b_col,
        data(c, like), c_row, c_col if n > 1 else size, data(bias, like), bias_row, bias_col,
        data(extra, like), strides_of(extra)[2], todo, add, m, n, k, way, like,
    )  # fmt: skip


@njit(error_model="numpy")
def _pieces(c, plan):
    """How many pieces of the size in the plan the results of a batch are cut into."""
    b0, b1, m, n = shape_of(c)
    return b0 * b1 * -(-m // plan[0]) * -(-n // plan[1])


@njit(error_model="numpy")
def _share(
    slot, threads, a, b, c, bias, extra, todo, add, way, plan, taken, room, a_count, b_count
):  # fmt: skip
    """One thread's share of a batch (b0, b1, m, n): its own pieces, then what others left."""
    like, size, height, width, k = pointer(room), room.itemsize, plan[0], plan[1], plan[2]
    (_, b1, m, n), count = shape_of(c), _pieces(c, plan)
    a_steps, b_steps, c_steps = strides_of(a), strides_of(b), strides_of(c)
    bias_steps, extra_steps = repeated(bias), strides_of(extra)
    c_col = c_steps[3] if n > 1 else size
    a_room = step(like, slot * (a_count + b_count) * size)
    b_room = step(a_room, a_count * size)
    down, across = -(-m // height), -(-n // width)
    for i in range(threads):
        owner = (slot + i) % threads
        while True:
            piece = fetch_add(taken, COUNTER * owner, 1)
            if piece >= (owner + 1) * count // threads:
                break
            index, piece = piece // (down * across), piece % (down * across)
            i0, i1 = index // b1, index % b1
            r0, j0 = piece // across * height, piece % across * width
            rows, columns = min(height, m - r0), min(width, n - j0)
            pa = moved(data(a, like), a_steps, i0, i1, r0, 0)
            pb = moved(data(b, like), b_steps, i0, i1, 0, j0)
            pc = step(moved(data(c, like), c_steps, i0, i1, r0, 0), j0 * c_col)
            terms = moved(data(bias, like), bias_steps, i0, i1, r0, j0)
            more = step(moved(data(extra, like), extra_steps, i0, i1, r0, 0), j0 * size)
            if way == BLOCKED:
                blocked(
                    pa, a_steps[2], a_steps[3], pb, b_steps[2], b_steps[3],
                    pc, c_steps[2], terms, bias_steps[2], bias_steps[3], more, extra_steps[2],
                    todo, add, rows, columns, plan, a_room, b_room,
                )  # fmt: skip
            else:
                unpacked(
                    pa, a_steps[2], a_steps[3], pb, b_steps[2], b_steps[3],
                    pc, c_steps[2], c_col, terms, bias_steps[2], bias_steps[3],
                    more, extra_steps[2], todo, add, rows, columns, k, way, b_room,
                )  # fmt: skip


def matmul_threads(
    threads, a, b, c, bias, extra, todo, add, way, plan, taken, room, a_count, b_count
):
    """C (m, n) (+)= A (m, k) @ B (k, n) (+ bias) on `threads` threads.

    All of them may have two more leading axes, which are those of a batch of products.
    """
    for slot in range(threads):
        taken[COUNTER * slot] = slot * _pieces(c, plan) // threads
    for slot in prange(threads):
        _share(
            slot, threads, a, b, c, bias, extra, todo, add, way, plan, taken, room, a_count, b_count
        )


def room_of(dtype):
    """The type of workspace, which tells compiled code what the elements are."""
    return {"f": types.float32, "d": types.float64}[dtype][::1]


OBJECTS = [types.int64] * 5  # the addresses of a, b, c, bias, extra
WHAT = types.int64, types.boolean, types.int64  # todo, add, way


def _here(dtype):
    return types.void(*OBJECTS, *WHAT, room_of(dtype))


def _threads(dtype):
    counts = types.int64[::1], types.int64[::1], room_of(dtype), types.int64, types.int64
    return types.void(types.int64, *OBJECTS, *WHAT, *counts)


here = Kernel(matmul_here, _here, error_model="numpy", nogil=True)
on_threads = Kernel(matmul_threads, _threads, error_model="numpy", nogil=True, parallel=True)
