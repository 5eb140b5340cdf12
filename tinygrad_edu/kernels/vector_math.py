"""exp and what follows from it, written so that a compiler can do sixteen at a time.

A library's `exp` is a call per element, and calls do not vectorise. This one has no branch and no
call: split x = n ln 2 + r with a whole n and |r| <= ln 2 / 2, so that exp(x) = 2^n exp(r). A
polynomial gives exp(r), and 2^n is a float whose exponent bits are n.

    relative error of exp    float32 1.2e-7, float64 2.3e-16: about one unit in the last place
    results below 2^-124 (float32) or 2^-1020 (float64) become 0; NaN and infinity come through

The polynomials are least-maximum fits on [-ln 2 / 2, ln 2 / 2]; coefficients from the constant up.
Adding 1.5 * 2^23 (1.5 * 2^52) to a float rounds it to a whole number and leaves that number in the
lowest bits.
"""

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload

F = np.float32


@intrinsic
def half_power(typingctx, shifted):
    """2^(n-1) from a float with n in its lowest bits; the results of exp near overflow need 2^128.

    n is moved to where the exponent is, and the exponent's bias, less one, is added.
    """
    width, mantissa, bias = (32, 23, 126) if shifted == types.float32 else (64, 52, 1022)

    def codegen(context, builder, signature, args):
        integer = ir.IntType(width)
        bits = builder.shl(builder.bitcast(args[0], integer), integer(mantissa))
        bits = builder.add(bits, integer(bias << mantissa))
        return builder.bitcast(bits, args[0].type)

    return shifted(shifted), codegen


@njit(error_model="numpy", fastmath={"contract"})
def exp32(x):
    shifted = x * F(1.44269504) + F(12582912.0)
    n = shifted - F(12582912.0)
    r = x - n * F(0.693359375)  # ln 2 in two parts: the first has few bits, so n times it is exact
    r = r - n * F(-2.12194440e-4)
    p = F(0.001394116075)
    p = p * r + F(0.008375168288)
    p = p * r + F(0.04166635227)
    p = p * r + F(0.1666641501)
    p = p * r + F(0.5000000047)
    p = p * r + F(1.0)
    p = p * r + F(1.0)
    y = p * half_power(shifted) * F(2.0)
    y = F(np.inf) if x > F(88.72283) else y
    return F(0.0) if x < F(-86.0) else y


@njit(error_model="numpy", fastmath={"contract"})
def exp64(x):
    shifted = x * 1.4426950408889634 + 6755399441055744.0
    n = shifted - 6755399441055744.0
    r = x - n * 0.693147180369123816490
    r = r - n * 1.90821492927058770002e-10
    p = 2.511009561188623717e-8
    p = p * r + 2.763271507163225413e-7
    p = p * r + 2.755724076173925926e-6
    p = p * r + 2.480148527837006257e-5
    p = p * r + 1.984126989019370597e-4
    p = p * r + 1.388888895250540645e-3
    p = p * r + 8.333333333319545561e-3
    p = p * r + 4.166666666648737961e-2
    p = p * r + 0.1666666666666668088
    p = p * r + 0.5000000000000018478
    p = p * r + 1.0
    p = p * r + 1.0
    y = p * half_power(shifted) * 2.0
    y = np.inf if x > 709.782712893384 else y
    return 0.0 if x < -707.0 else y


def exp(x):
    """e^x of one float32 or float64, inside a kernel."""


@overload(exp)
def _exp(x):
    if x == types.float32:
        return lambda x: exp32(x)
    return lambda x: exp64(x)


LANES = 64


@njit(error_model="numpy")
def maximum(row, lanes):
    """The largest element of a row, NaN left out; `lanes` is room for LANES partial maxima.

    One running maximum is a chain that cannot be vectorised; LANES of them are side by side.
    """
    lanes[:] = -np.inf
    whole = len(row) // LANES * LANES
    for start in range(0, whole, LANES):
        part = row[start : start + LANES]
        for i in range(LANES):
            lanes[i] = part[i] if part[i] > lanes[i] else lanes[i]
    top = lanes[0]
    for i in range(1, LANES):
        top = lanes[i] if lanes[i] > top else top
    for i in range(whole, len(row)):
        top = row[i] if row[i] > top else top
    return top
