"""Array objects seen from compiled code: `id(array)` goes in, and nothing else.

Handing an array to a compiled function costs Python half a microsecond; handing over an integer, a
tenth. So Python passes the addresses of array objects, which its caller keeps alive, and compiled
code reads where the numbers are and how they lie from where NumPy keeps it (`PyArrayObject`, the
same since NumPy 1.7):

    header | data | number of axes (int32, padded) | shape | strides | base | dtype | flags (int32)
"""

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

HEADER = object.__basicsize__
TYPE = HEADER - 8  # the last word of the header: the address of the class
DATA, AXES, SHAPE, STRIDES, DTYPE, FLAGS = (HEADER + offset for offset in (0, 8, 16, 24, 40, 48))
WRITEABLE = 0x400


@intrinsic
def word(typingctx, address):
    """The int64 at an address."""

    def codegen(context, builder, signature, args):
        place = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.load(place)

    return types.int64(types.int64), codegen


@intrinsic
def data(typingctx, array, like):
    """The data pointer of an array object, of the type of pointer `like`."""

    def codegen(context, builder, signature, args):
        i64 = ir.IntType(64)
        place = builder.inttoptr(builder.add(args[0], i64(DATA)), i64.as_pointer())
        return builder.inttoptr(builder.load(place), args[1].type)

    return like(types.int64, like), codegen


@njit(error_model="numpy")
def axes(array):
    """The number of axes."""
    return word(array + AXES) & 0xFFFFFFFF


@njit(error_model="numpy")
def alike(array, other):
    """Whether another object, of whatever class, is an array of the same class and dtype."""
    return word(array + TYPE) == word(other + TYPE) and word(array + DTYPE) == word(other + DTYPE)


@njit(error_model="numpy")
def _four(array, field, alone):
    at = word(array + field)
    if axes(array) == 2:
        return alone, alone, word(at), word(at + 8)
    return word(at), word(at + 8), word(at + 16), word(at + 24)


@njit(error_model="numpy")
def shape_of(array):
    """The shape (b0, b1, rows, columns); an array of two axes is a batch of one matrix."""
    return _four(array, SHAPE, 1)


@njit(error_model="numpy")
def strides_of(array):
    """The strides in bytes, of the same four axes."""
    return _four(array, STRIDES, 0)
