"""Products so short that the way to the kernel is what costs: from array objects, in one call.

A 64 x 64 product takes two microseconds, a row times a matrix less; checking shapes and strides in
Python takes as long again, several times over. Here Python passes the addresses of three array
objects and nothing else. Shapes, strides and data pointers are read from the objects by compiled
code, where NumPy keeps them (`PyArrayObject`, the same since NumPy 1.7):

    header | data pointer | number of axes (int32, padded) | shape pointer | strides pointer
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ..jit import Kernel
from .entries import unpacked
from .gemm import DIRECT, DIRECT_DEPTH, FEW, SMALL, THIN
from .microkernel import pointer

HEADER = object.__basicsize__
DATA, SHAPE, STRIDES = 0, 16, 24  # offsets after the header


@intrinsic
def word(typingctx, address):
    """The int64 at an address."""

    def codegen(context, builder, signature, args):
        place = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.load(place)

    return types.int64(types.int64), codegen


@intrinsic
def data(typingctx, address, like):
    """The data pointer of the array object at an address, of the type of pointer `like`."""

    def codegen(context, builder, signature, args):
        i64 = ir.IntType(64)
        place = builder.inttoptr(builder.add(args[0], i64(HEADER + DATA)), i64.as_pointer())
        return builder.inttoptr(builder.load(place), args[1].type)

    return like(types.int64, like), codegen


def short(a, b, c, space):
    """C (m, n) = A (m, k) @ B (k, n) on the calling thread; False, and nothing done, if too large.

    a, b, c: addresses of 2-D arrays of one dtype, shapes fitting, C contiguous; `space`: room for
    64 * DIRECT_DEPTH elements.
    """
    a_shape, b_shape = word(a + HEADER + SHAPE), word(b + HEADER + SHAPE)
    a_strides, b_strides = word(a + HEADER + STRIDES), word(b + HEADER + STRIDES)
    m, k, n = word(a_shape), word(a_shape + 8), word(b_shape + 8)
    a_row, a_col = word(a_strides), word(a_strides + 8)
    b_row, b_col = word(b_strides), word(b_strides + 8)
    size, room = space.itemsize, pointer(space)
    thin = m <= FEW and (b_col == size or b_row == size)
    if m * n * k == 0 or n <= FEW < m or k > 4 * DIRECT_DEPTH:
        return False
    if not thin and (k > DIRECT_DEPTH or m * n * k > SMALL):
        return False
    left, right, result = data(a, room), data(b, room), data(c, room)
    unpacked(
        left, a_row, a_col, right, b_row, b_col, result, n * size, size, result, 0, 0, result, 0,
        0, False, m, n, k, THIN if thin else DIRECT, room,
    )  # fmt: skip
    return True


def _signature(dtype):
    scalar = {"f": types.float32, "d": types.float64}[dtype]
    return types.boolean(types.int64, types.int64, types.int64, scalar[::1])


kernel = Kernel(short, _signature, error_model="numpy", nogil=True)
