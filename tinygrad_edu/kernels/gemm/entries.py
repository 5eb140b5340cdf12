"""The two compiled functions that matmul calls: one on the calling thread, one on all threads.

Array layouts (C, F, strided) and read-only arrays are different types to Numba. Declared as "any
strides, read-only", one signature per element type accepts them all.
"""

from numba import njit, prange, types

from ..jit import Kernel
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


def matmul_here(a, b, c, bias, extra, todo, add, way, space):
    """C (m, n) (+)= A (m, k) @ B (k, n) (+ bias) on the calling thread; way is DIRECT or THIN."""
    (m, k), n = a.shape, b.shape[1]
    bias_row = bias.strides[0] if bias.shape[0] > 1 else 0
    bias_col = bias.strides[1] if bias.shape[1] > 1 else 0
    c_col = c.strides[1] if n > 1 else c.itemsize
    unpacked(
        pointer(a), a.strides[0], a.strides[1], pointer(b), b.strides[0], b.strides[1],
        pointer(c), c.strides[0], c_col, pointer(bias), bias_row, bias_col,
        pointer(extra), extra.strides[0], todo, add, m, n, k, way, pointer(space),
    )  # fmt: skip


@njit(error_model="numpy")
def _pieces(c, plan):
    """How many pieces of the size in the plan the results of a batch are cut into."""
    down, across = -(-c.shape[2] // plan[0]), -(-c.shape[3] // plan[1])
    return c.shape[0] * c.shape[1] * down * across


@njit(error_model="numpy")
def _share(
    slot, threads, a, b, c, bias, extra, todo, add, way, plan, taken, room, a_count, b_count
):  # fmt: skip
    """One thread's share of a batch (b0, b1, m, n): its own pieces, then what others left."""
    m, n, height, width, k = *c.shape[2:], plan[0], plan[1], plan[2]
    size, b1, count = a.itemsize, c.shape[1], _pieces(c, plan)
    bias_row = bias.strides[2] if bias.shape[2] > 1 else 0
    bias_col = bias.strides[3] if bias.shape[3] > 1 else 0
    c_col = c.strides[3] if n > 1 else size
    a_room = step(pointer(room), slot * (a_count + b_count) * size)
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
            pa = step(pointer(a), i0 * a.strides[0] + i1 * a.strides[1] + r0 * a.strides[2])
            pb = step(pointer(b), i0 * b.strides[0] + i1 * b.strides[1] + j0 * b.strides[3])
            pc = step(
                pointer(c),
                i0 * c.strides[0] + i1 * c.strides[1] + r0 * c.strides[2] + j0 * c_col,
            )
            terms = step(
                pointer(bias),
                i0 * bias.strides[0] + i1 * bias.strides[1] + r0 * bias_row + j0 * bias_col,
            )
            more = step(
                pointer(extra),
                i0 * extra.strides[0] + i1 * extra.strides[1] + r0 * extra.strides[2] + j0 * size,
            )
            if way == BLOCKED:
                blocked(
                    pa, a.strides[2], a.strides[3], pb, b.strides[2], b.strides[3],
                    pc, c.strides[2], terms, bias_row, bias_col, more, extra.strides[2],
                    todo, add, rows, columns, plan, a_room, b_room,
                )  # fmt: skip
            else:
                unpacked(
                    pa, a.strides[2], a.strides[3], pb, b.strides[2], b.strides[3],
                    pc, c.strides[2], c_col, terms, bias_row, bias_col, more, extra.strides[2],
                    todo, add, rows, columns, k, way, b_room,
                )  # fmt: skip


def matmul_threads(
    threads, a, b, c, bias, extra, todo, add, way, plan, taken, room, a_count, b_count
):
    """C (b0, b1, m, n) (+)= A (b0, b1, m, k) @ B (b0, b1, k, n) (+ bias) on `threads` threads."""
    for slot in range(threads):
        taken[COUNTER * slot] = slot * _pieces(c, plan) // threads
    for slot in prange(threads):
        _share(
            slot, threads, a, b, c, bias, extra, todo, add, way, plan, taken, room, a_count, b_count
        )


def _operands(dtype, ndim):
    scalar = {"f": types.float32, "d": types.float64}[dtype]
    given, result = (
        types.Array(scalar, ndim, "A", readonly=readonly) for readonly in (True, False)
    )
    return (given, given, result, given, result, types.intp, types.boolean, types.intp), scalar[::1]


def _here(dtype):
    operands, space = _operands(dtype, 2)
    return types.void(*operands, space)


def _threads(dtype):
    operands, space = _operands(dtype, 4)
    counts = types.int64[::1]
    room = (space, types.intp, types.intp)
    return types.void(types.intp, *operands, counts, counts, *room)


here = Kernel(matmul_here, _here, error_model="numpy", nogil=True)
on_threads = Kernel(matmul_threads, _threads, error_model="numpy", nogil=True, parallel=True)
