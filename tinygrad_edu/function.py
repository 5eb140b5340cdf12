"""`Function`: an op of your own."""

from typing import Any

import numpy as np

from . import tape
from .tensor import Tensor, apply


class Function:
    """An op of your own: subclass, write `forward` and `backward` on arrays, call `.apply`.

        class Cube(tg.Function):
            @staticmethod
            def forward(ctx, x):            # arrays in, an array (or a tuple of arrays) out
                ctx.save_for_backward(x)
                return x**3

            @staticmethod
            def backward(ctx, grad):        # d loss / d output in, d loss / d input out
                (x,) = ctx.saved_tensors
                return grad * 3 * x**2

        y = Cube.apply(x)

    `backward` returns one gradient per argument of `forward`, None for those that are not Tensors
    or need none (`ctx.needs_input_grad`). `tg.gradcheck(Cube.apply, x)` tells whether it is right.
    """

    is_guarded = True  # inputs and gradients are handed over read-only: others may hold them

    @staticmethod
    def forward(ctx: tape.Context, *arrays: np.ndarray, **parameters: Any) -> np.ndarray:
        raise NotImplementedError("a Function needs a forward(ctx, ...)")

    @staticmethod
    def backward(ctx: tape.Context, *grads: np.ndarray) -> Any:
        raise NotImplementedError("a Function needs a backward(ctx, grad)")

    @classmethod
    def apply(cls, *inputs: Any, **parameters: Any) -> Any:
        """Runs `forward` on the arrays of `inputs`; gives a Tensor, or a tuple of them."""
        named = [(name, [value]) for name, value in parameters.items()]
        values = (*inputs, *parameters.values())
        named += [("a list", x) for x in values if isinstance(x, (list, tuple))]
        for name, values in named:
            if any(isinstance(x, Tensor) and x.requires_grad for x in values):
                raise TypeError(
                    f"{cls.__name__}.apply: {name} holds a Tensor that needs a gradient, "
                    "which would be lost: pass every such Tensor as a positional argument"
                )
        return apply(cls, *inputs, **parameters)
