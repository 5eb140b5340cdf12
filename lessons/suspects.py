"""Eight operations with their gradients. Three of the gradients are wrong: see lesson 3."""

import numpy as np

import tinygrad_edu as tg


class LeakyRelu(tg.Function):
    """x where it is positive, a tenth of it elsewhere."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return np.where(x > 0, x, 0.1 * x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * np.where(x > 0, 1, 0.1)


class Huber(tg.Function):
    """x^2 / 2 near 0; straight on from x = -3 and x = 3, where the parabola has slopes -3 and 3."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        size = np.abs(x)
        return np.where(size < 3, x * x / 2, 3 * size - 4.5)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * np.minimum(x, 3)


class Softmax(tg.Function):
    """Rows (..., n) that are positive and add up to 1."""

    @staticmethod
    def forward(ctx, x):
        e = np.exp(x - x.max(-1, keepdims=True))
        y = e / e.sum(-1, keepdims=True)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, grad):
        (y,) = ctx.saved_tensors
        return y * (grad - grad.mean(-1, keepdims=True))


class Center(tg.Function):
    """Each row (..., n) less its mean."""

    @staticmethod
    def forward(ctx, x):
        return x - x.mean(-1, keepdims=True)

    @staticmethod
    def backward(ctx, grad):
        return grad - grad.mean()


class LogSumExp(tg.Function):
    """log(sum(exp(x))) of each row: (..., n) -> (...,)"""

    @staticmethod
    def forward(ctx, x):
        top = x.max(-1, keepdims=True)
        out = np.log(np.exp(x - top).sum(-1)) + top[..., 0]
        ctx.save_for_backward(x, out)
        return out

    @staticmethod
    def backward(ctx, grad):
        x, out = ctx.saved_tensors
        return grad[..., None] * np.exp(x - out[..., None])


class Hypot(tg.Function):
    """sqrt(a^2 + b^2), away from 0."""

    @staticmethod
    def forward(ctx, a, b):
        out = np.sqrt(a * a + b * b)
        ctx.save_for_backward(a, b, out)
        return out

    @staticmethod
    def backward(ctx, grad):
        a, b, out = ctx.saved_tensors
        return grad * a / out, grad * b / out


class Larger(tg.Function):
    """The larger of a and b, element by element."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return np.maximum(a, b)

    @staticmethod
    def backward(ctx, grad):
        a, b = ctx.saved_tensors
        return grad * (a >= b), grad * (a < b)


class Gate(tg.Function):
    """x sigmoid(x)"""

    @staticmethod
    def forward(ctx, x):
        s = 0.5 + 0.5 * np.tanh(0.5 * x)
        ctx.save_for_backward(x, s)
        return x * s

    @staticmethod
    def backward(ctx, grad):
        x, s = ctx.saved_tensors
        return grad * s * (1 + x - x * s)


ALL = {f.__name__: f for f in (LeakyRelu, Huber, Softmax, Center, LogSumExp, Hypot, Larger, Gate)}
