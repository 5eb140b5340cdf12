"""Where a parameter's numbers live: its array, its gradient, and its optimizer state.

The engine and the optimizers reach a parameter's numbers only through the five things here (read,
write, add to the gradient, state, update), so a storage that keeps them elsewhere can take this
one's place without a word changed in any op, layer or model.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from . import tape
from .kernels import copy, zeros
from .kernels.elementwise import add


class ArrayStorage:
    """Plain arrays in memory."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.grad: np.ndarray | None = None
        self.state: dict[str, np.ndarray] = {}

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype:
        return self.array.dtype

    def read(self) -> np.ndarray:
        return self.array

    def write(self, array: np.ndarray) -> None:
        """Replaces the array by `array`, of the same shape; gradient and state follow its dtype."""
        if array.dtype != self.array.dtype:
            self.state = {name: value.astype(array.dtype) for name, value in self.state.items()}
            self.grad = None if self.grad is None else self.grad.astype(array.dtype)
        self.array = array

    def add_grad(self, grad: np.ndarray) -> None:
        """Adds one finished contribution, into memory that is this storage's own."""
        if self.grad is None:
            self.grad = copy(grad)
        else:
            add(self.grad, grad, out=self.grad)

    def scale_grad(self, factor: float) -> None:
        if self.grad is not None:
            self.grad *= self.grad.dtype.type(factor)

    def make_state(self, names: tuple[str, ...]) -> None:
        """Allocates the optimizer state `names`, zeros, in place of any earlier optimizer's."""
        self.state = {name: zeros(self.shape, self.dtype) for name in names}

    def update(self, function: Callable[..., None], state: tuple[str, ...], **numbers: Any) -> None:
        """`function(data, grad, *state arrays, **numbers)`, in place."""
        if self.array in tape.locks:  # a graph still holds the old numbers: leave them to it
            self.array = copy(self.array)
        function(self.array, self.grad, *(self.state[name] for name in state), **numbers)
