"""Ops that work element by element. Inputs broadcast; the engine sums the gradient back."""

import numpy as np

from ..kernels import elementwise as kernels
from ..kernels import empty


def ufunc(function: np.ufunc, *arrays: np.ndarray) -> np.ndarray:
    """Runs a NumPy ufunc into memory from `empty`."""
    shape = np.broadcast_shapes(*(array.shape for array in arrays))
    dtype = np.result_type(*arrays)
    return function(*arrays, out=empty(shape, dtype))


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
        return grad, -grad if ctx.needs_input_grad[1] else None


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
        return ufunc(np.multiply, grad, b) if need_a else None, grad * a if need_b else None


class Divide:
    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a if ctx.needs_input_grad[1] else None, b)
        return ufunc(np.true_divide, a, b)

    @staticmethod
    def backward(ctx, grad):
        a, b = ctx.saved_tensors
        need_a, need_b = ctx.needs_input_grad
        return grad / b if need_a else None, -grad * a / (b * b) if need_b else None


class Power:
    """a ** b. Where a = 0 the derivative by b is taken as 0, its limit for b > 0."""

    @staticmethod
    def forward(ctx, a, b):
        out = ufunc(np.multiply, a, a) if b.ndim == 0 and b == 2 else ufunc(np.power, a, b)
        ctx.save_for_backward(a, b, out if ctx.needs_input_grad[1] else None)
        return out

    @staticmethod
    def backward(ctx, grad):
        a, b, out = ctx.saved_tensors
        grad_a = grad_b = None
        if ctx.needs_input_grad[0]:
            # At b = 0 the derivative is 0 even where a ** (b - 1) is infinite.
            slope = a if b.ndim == 0 and b == 2 else np.power(a, np.where(b == 0, 1, b - 1))
            grad_a = grad * (b * slope)
        if ctx.needs_input_grad[1]:
            log_a = np.log(np.where(a == 0, 1, a))
            grad_b = grad * np.where((a == 0) & (b >= 0), 0, out * log_a)
        return grad_a, grad_b


class Negate:
    @staticmethod
    def forward(ctx, a):
        return ufunc(np.negative, a)

    @staticmethod
    def backward(ctx, grad):
        return -grad


class Exp:
    @staticmethod
    def forward(ctx, a):
        out = ufunc(np.exp, a)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx, grad):
        (out,) = ctx.saved_tensors
        return grad * out


class Log:
    @staticmethod
    def forward(ctx, a):
        ctx.save_for_backward(a)
        return ufunc(np.log, a)

    @staticmethod
    def backward(ctx, grad):
        (a,) = ctx.saved_tensors
        return grad / a


class Sqrt:
    @staticmethod
    def forward(ctx, a):
        out = ufunc(np.sqrt, a)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx, grad):
        (out,) = ctx.saved_tensors
        return grad * 0.5 / out


class Tanh:
    @staticmethod
    def forward(ctx, a):
        out = ufunc(np.tanh, a)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx, grad):
        (out,) = ctx.saved_tensors
        return grad * (1 - out * out)


class Sigmoid:
    """1 / (1 + exp(-a)), with exp of negative numbers only, so that nothing overflows."""

    @staticmethod
    def forward(ctx, a):
        small = np.exp(-np.abs(a))
        out = empty(a.shape, a.dtype)
        np.copyto(out, small)
        np.copyto(out, 1, where=a >= 0)
        out /= 1 + small
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx, grad):
        (out,) = ctx.saved_tensors
        return grad * (out * (1 - out))


class Relu:
    """max(a, 0); the derivative at 0 is 0, and NaN stays NaN."""

    @staticmethod
    def forward(ctx, a):
        out = np.maximum(a, 0, out=empty(a.shape, a.dtype))
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx, grad):
        (out,) = ctx.saved_tensors
        return grad * ~(out <= 0)


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
        return grad * np.sign(a)


class Clip:
    """Limits to [low, high]; gradient flows where nothing was cut off, the limits included."""

    @staticmethod
    def forward(ctx, a, low, high):
        ctx.save_for_backward(a)
        ctx.low, ctx.high = low, high
        return np.clip(a, low, high, out=empty(a.shape, a.dtype))

    @staticmethod
    def backward(ctx, grad):
        (a,) = ctx.saved_tensors
        low = -np.inf if ctx.low is None else ctx.low
        high = np.inf if ctx.high is None else ctx.high
        return grad * ((a >= low) & (a <= high))


class Extremum:
    """The larger (or smaller) of two; where they tie, each gets half of the gradient."""

    choose: np.ufunc

    @classmethod
    def forward(cls, ctx, a, b):
        out = ufunc(cls.choose, a, b)
        ctx.save_for_backward(a, b)
        return out

    @classmethod
    def backward(cls, ctx, grad):
        a, b = ctx.saved_tensors
        out = cls.choose(a, b)
        need_a, need_b = ctx.needs_input_grad
        half = grad * np.where(a == b, grad.dtype.type(0.5), grad.dtype.type(1))
        return half * (a == out) if need_a else None, half * (b == out) if need_b else None


class Maximum(Extremum):
    choose = np.maximum


class Minimum(Extremum):
    choose = np.minimum


class Where:
    @staticmethod
    def forward(ctx, condition, a, b):
        ctx.save_for_backward(condition)
        out = empty(np.broadcast_shapes(condition.shape, a.shape, b.shape), np.result_type(a, b))
        np.copyto(out, b)
        np.copyto(out, a, where=condition)
        return out

    @staticmethod
    def backward(ctx, grad):
        (condition,) = ctx.saved_tensors
        _, need_a, need_b = ctx.needs_input_grad
        zero = grad.dtype.type(0)
        grad_a = np.where(condition, grad, zero) if need_a else None
        return None, grad_a, np.where(condition, zero, grad) if need_b else None


class Dropout:
    """Zeroes with probability p and scales the rest by 1 / (1 - p); the mask is made from `key`."""

    @staticmethod
    def forward(ctx, a, p, key):
        ctx.p, ctx.key = p, key
        return kernels.dropout(a, p, key)

    @staticmethod
    def backward(ctx, grad):
        return kernels.dropout(grad, ctx.p, ctx.key)
