"""Ops that work element by element. Inputs broadcast; the engine sums the gradient back.

Every result comes from `empty`, by a kernel, by `ufunc`, or by `blockwise` for longer formulas.
"""

import numpy as np

from ..kernels import elementwise as kernels
from ..kernels import empty, switch
from ..kernels.blocks import blockwise, broadcast_empty


def ufunc(function: np.ufunc, *arrays: np.ndarray) -> np.ndarray:
    """Runs a NumPy ufunc into memory from `empty`."""
    out = broadcast_empty(arrays)
    return out if switch.off else function(*arrays, out=out)


class Add:
    @staticmethod
    def forward(ctx, a, b):
        return kernels.add(a, b)

    @staticmethod
    def backward(ctx, grad):
        return grad, grad


class Subtract:
    @staticmethod
    def forward(ctx, a, b):
        return ufunc(np.subtract, a, b)

    @staticmethod
    def backward(ctx, grad):
        return grad, ufunc(np.negative, grad) if ctx.needs_input_grad[1] else None


class Multiply:
    @staticmethod
    def forward(ctx, a, b):
        need_a, need_b = ctx.needs_input_grad
        ctx.save_for_backward(a if need_b else None, b if need_a else None)
        return ufunc(np.multiply, a, b)

    @staticmethod
    def backward(ctx, grad):
        a, b = ctx.saved_tensors
        need_a, need_b = ctx.needs_input_grad
        return (
            ufunc(np.multiply, grad, b) if need_a else None,
            ufunc(np.multiply, grad, a) if need_b else None,
        )


class Divide:
    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a if ctx.needs_input_grad[1] else None, b)
        return ufunc(np.true_divide, a, b)

    @staticmethod
    def backward(ctx, grad):
        a, b = ctx.saved_tensors
        need_a, need_b = ctx.needs_input_grad
        return (
            ufunc(np.true_divide, grad, b) if need_a else None,
            blockwise(lambda g, a, b: -g * (a / b / b), grad, a, b) if need_b else None,
        )


class Power:
    """a ** b. Where a = 0 and b >= 0 the derivative by b is taken as 0, its limit for b > 0."""

    @staticmethod
    def forward(ctx, a, b):
        is_square = b.ndim == 0 and b == 2 and a.dtype == b.dtype
        out = ufunc(np.multiply, a, a) if is_square else ufunc(np.power, a, b)
        ctx.save_for_backward(a, b, out if ctx.needs_input_grad[1] else None)
        return out

    @staticmethod
    def backward(ctx, grad):
        a, b, out = ctx.saved_tensors
        need_a, need_b = ctx.needs_input_grad
        slope = slope_of_square if b.ndim == 0 and b == 2 else slope_of_power
        return (
            blockwise(slope, grad, a, b) if need_a else None,
            blockwise(slope_by_exponent, grad, a, b, out) if need_b else None,
        )


def slope_of_square(grad, a, b):
    return grad * (b * a)


def slope_of_power(grad, a, b):
    """At b = 0 the derivative is 0 even where a, or a ** (b - 1), is infinite."""
    constant = b == 0
    return grad * (b * np.power(np.where(constant, 1, a), np.where(constant, 1, b - 1)))


def slope_by_exponent(grad, a, b, out):
    with np.errstate(divide="ignore"):  # at 0 to a negative power, where it is infinite
        return grad * (out * np.log(np.where((a == 0) & (b >= 0), 1, a)))


class Negate:
    @staticmethod
    def forward(ctx, a):
        return ufunc(np.negative, a)

    @staticmethod
    def backward(ctx, grad):
        return ufunc(np.negative, grad)


class Exp:
    @staticmethod
    def forward(ctx, a):
        out = ufunc(np.exp, a)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx, grad):
        (out,) = ctx.saved_tensors
        return ufunc(np.multiply, grad, out)


class Log:
    @staticmethod
    def forward(ctx, a):
        ctx.save_for_backward(a)
        return ufunc(np.log, a)

    @staticmethod
    def backward(ctx, grad):
        (a,) = ctx.saved_tensors
        return ufunc(np.true_divide, grad, a)


class Sqrt:
    @staticmethod
    def forward(ctx, a):
        out = ufunc(np.sqrt, a)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx, grad):
        (out,) = ctx.saved_tensors
        return blockwise(lambda g, y: g * 0.5 / y, grad, out)


class Tanh:
    @staticmethod
    def forward(ctx, a):
        out = ufunc(np.tanh, a)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx, grad):
        (out,) = ctx.saved_tensors
        return blockwise(lambda g, y: g * (1 - y * y), grad, out)


class Sigmoid:
    """1 / (1 + exp(-a)), with exp of negative numbers only, so that nothing overflows."""

    @staticmethod
    def forward(ctx, a):
        out = blockwise(sigmoid, a)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx, grad):
        (out,) = ctx.saved_tensors
        return blockwise(lambda g, y: g * (y * (1 - y)), grad, out)


def sigmoid(a: np.ndarray) -> np.ndarray:
    small = np.exp(-np.abs(a))
    return np.where(a >= 0, a.dtype.type(1), small) / (1 + small)


class Relu:
    """max(a, 0); the derivative at 0 is 0, and NaN stays NaN."""

    @staticmethod
    def forward(ctx, a):
        out = ufunc(np.maximum, a, np.zeros((), a.dtype))
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx, grad):
        (out,) = ctx.saved_tensors
        return blockwise(lambda g, y: only(~(y <= 0), g), grad, out)


def only(mask, grad):
    """`grad` where `mask` is true, else 0, also where `grad` is infinite, as under a square root.

    Multiplying is ten times faster than choosing, but infinity times 0 is NaN.
    """
    if np.isfinite(grad).all():
        return grad * mask
    return np.where(mask, grad, grad.dtype.type(0))


class Gelu:
    @staticmethod
    def forward(ctx, a, approximate):
        ctx.save_for_backward(a)
        ctx.tanh = approximate == "tanh"
        return kernels.gelu(a, ctx.tanh)

    @staticmethod
    def backward(ctx, grad):
        (a,) = ctx.saved_tensors
        return kernels.gelu_backward(a, grad, ctx.tanh)


class Abs:
    """|a|; the derivative at 0 is 0."""

    @staticmethod
    def forward(ctx, a):
        ctx.save_for_backward(a)
        return ufunc(np.abs, a)

    @staticmethod
    def backward(ctx, grad):
        (a,) = ctx.saved_tensors
        return blockwise(lambda g, a: g * np.sign(a), grad, a)


class Clip:
    """Limits to [low, high]; gradient flows where nothing was cut off, the limits included.

    The limits are copied, in a's dtype, so that backward compares with what forward did.
    """

    @staticmethod
    def forward(ctx, a, low, high):
        ctx.save_for_backward(a)
        ctx.limits = [None if x is None else np.array(x, a.dtype) for x in (low, high)]
        out = empty(a.shape, a.dtype)
        return out if switch.off else np.clip(a, *ctx.limits, out=out)

    @staticmethod
    def backward(ctx, grad):
        (a,) = ctx.saved_tensors
        low, high = ctx.limits
        low = np.array(-np.inf, a.dtype) if low is None else low
        high = np.array(np.inf, a.dtype) if high is None else high
        return blockwise(
            lambda g, a, low, high: only((a >= low) & (a <= high), g), grad, a, low, high
        )


class Extremum:
    """The larger (or smaller) of two; where they tie, each gets half of the gradient.

    NaN is larger and smaller than anything; both get the gradient then.
    """

    choose: np.ufunc
    loses: np.ufunc

    @classmethod
    def forward(cls, ctx, a, b):
        out = ufunc(cls.choose, a, b)
        ctx.save_for_backward(a, b)
        return out

    @classmethod
    def backward(cls, ctx, grad):
        a, b = ctx.saved_tensors

        def share(grad, mine, other):
            half = grad * np.where(mine == other, grad.dtype.type(0.5), grad.dtype.type(1))
            return only(~cls.loses(mine, other), half)

        need_a, need_b = ctx.needs_input_grad
        return (
            blockwise(share, grad, a, b) if need_a else None,
            blockwise(share, grad, b, a) if need_b else None,
        )


class Maximum(Extremum):
    choose, loses = np.maximum, np.less


class Minimum(Extremum):
    choose, loses = np.minimum, np.greater


class Where:
    @staticmethod
    def forward(ctx, condition, a, b):
        ctx.save_for_backward(condition)
        return blockwise(np.where, condition, a, b)

    @staticmethod
    def backward(ctx, grad):
        (condition,) = ctx.saved_tensors
        _, need_a, need_b = ctx.needs_input_grad
        zero = grad.dtype.type(0)
        return (
            None,
            blockwise(lambda c, g: np.where(c, g, zero), condition, grad) if need_a else None,
            blockwise(lambda c, g: np.where(c, zero, g), condition, grad) if need_b else None,
        )


class Dropout:
    """Zeroes with probability p and scales the rest by 1 / (1 - p); the mask is made from `key`."""

    @staticmethod
    def forward(ctx, a, p, key):
        ctx.p, ctx.key = p, key
        return kernels.dropout(a, p, key)

    @staticmethod
    def backward(ctx, grad):
        return kernels.dropout(grad, ctx.p, ctx.key)
