"""Where a parameter's numbers live: its array, its gradient, and its optimizer state.

The engine, the layers and the optimizers reach a parameter's numbers only through a `Storage`, so
one that keeps them elsewhere can take the place of plain arrays without a word changed in any op,
layer or model. `new_storage` makes what parameters are born with; `born_in` changes that.

A gradient arrives in contributions, each complete before it is added. Most are whole arrays. A
matrix that is used by rows also gets its gradient by rows: a first contribution that arrives in
order is written where it belongs, so that nothing has to be filled with zeros first.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from .kernels import empty, zeros
from .kernels import update as update_kernels
from .kernels.allocator import remove_last
from .kernels.blocks import Rows
from .kernels.elementwise import add
from .kernels.launch import computed_in
from .locks import locks

CHUNK = 1 << 20  # elements per piece where numbers are read or written in order
WEIGHT = "weight"  # the kind that is not optimizer state


class Storage:
    """What every storage offers. `kind` is "weight" or the name of an optimizer state."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.shape, self.dtype, self.size = tuple(shape), np.dtype(dtype), math.prod(shape)
        self.name: str | None = None  # the path under which a module first listed the parameter
        self.state_of: object = None  # the mark of the optimizer whose state is here
        self._filled: int | None = None  # elements of the gradient so far; None: no gradient

    @property
    def state_dtype(self) -> np.dtype:
        """What an update computes in: in float16 the square of a gradient of 1e-4 would be 0."""
        return computed_in(self.dtype)

    def dtype_of(self, kind: str) -> np.dtype:
        return self.state_dtype if kind in self.state_names() else self.dtype

    # What ops borrow. The loan ends when the last reference to the array dies.

    def read(self) -> np.ndarray:
        """The whole array."""
        raise NotImplementedError

    def by_rows(self) -> Rows:
        """The matrix for an op that asks for some rows at a time."""
        raise NotImplementedError

    def lockable(self) -> np.ndarray | None:
        """The array that a graph makes read-only while it needs it; None if nobody can write it."""
        raise NotImplementedError

    # What one sees and sets from outside.

    def look(self) -> np.ndarray:
        """The array for a user's eyes."""
        raise NotImplementedError

    def chunks(self, kind: str) -> Iterator[np.ndarray]:
        """The numbers in order, in flat pieces, each valid until the next is asked for."""
        raise NotImplementedError

    def fill(self, kind: str, chunks: Iterable[np.ndarray], dtype: Any = None) -> None:
        """Sets all numbers, from flat pieces of any size; `dtype` may change a weight's."""
        raise NotImplementedError

    def state_names(self) -> tuple[str, ...]:
        raise NotImplementedError

    def make_state(self, names: tuple[str, ...]) -> None:
        """Makes the optimizer state `names`, zeros, in place of any earlier optimizer's."""
        raise NotImplementedError

    def state_array(self, kind: str) -> np.ndarray:
        """A copy of one state array."""
        out = np.empty(self.size, self.dtype_of(kind))
        for start, piece in placed(self.chunks(kind)):
            out[start : start + piece.size] = piece
        return out.reshape(self.shape)

    # The gradient.

    @property
    def has_grad(self) -> bool:
        return self._filled is not None

    @property
    def grad(self) -> np.ndarray | None:
        raise NotImplementedError

    @grad.setter
    def grad(self, value: np.ndarray | None) -> None:
        self.drop_grad()
        if value is not None:
            self.add_grad(value)

    def drop_grad(self) -> None:
        self._filled = None

    def add_grad(self, grad: np.ndarray) -> None:
        """Adds one finished contribution, into memory that is this storage's own."""
        self._add_at(0, grad)

    def add_grad_rows(self, start: int, block: np.ndarray) -> None:
        """Adds to the rows from `start` on; `block` may be kept: nobody else may write it."""
        self._add_at(start * math.prod(self.shape[1:]), block)

    def add_grad_picked(self, rows: np.ndarray, values: np.ndarray) -> None:
        """Adds `values` (n, C) to n different `rows`."""
        self._complete()
        self._add_picked(rows, values)

    def _add_at(self, start: int, block: np.ndarray) -> None:
        if self._filled is None:
            self._filled = 0
            self._begin_grad()
        if start == self._filled < self.size:
            self._put(start, block)
            self._filled += block.size
        else:
            self._complete()
            self._add(start, block)

    def _complete(self) -> None:
        """Fills what the gradient lacks with zeros."""
        if self._filled is None:
            self._filled = 0
            self._begin_grad()
        if self._filled < self.size:
            self._zero(self._filled)
            self._filled = self.size

    def _begin_grad(self) -> None:
        raise NotImplementedError

    def _put(self, start: int, block: np.ndarray) -> None:
        raise NotImplementedError

    def _add(self, start: int, block: np.ndarray) -> None:
        raise NotImplementedError

    def _zero(self, start: int) -> None:
        raise NotImplementedError

    def _add_picked(self, rows: np.ndarray, values: np.ndarray) -> None:
        raise NotImplementedError

    def grad_squares(self) -> float:
        """The sum of the squares of the gradient."""
        raise NotImplementedError

    def scale_grad(self, factor: float) -> None:
        raise NotImplementedError

    def update(self, function: Callable[..., None], state: tuple[str, ...], **numbers: Any) -> None:
        """`function(data, grad, *state arrays, **numbers)`, in place and element by element.

        Each argument is an array, a part of one, or a list of arrays.
        """
        raise NotImplementedError


class ArrayStorage(Storage):
    """Plain arrays in memory."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype) -> None:
        super().__init__(shape, dtype)
        self.array = empty(self.shape, self.dtype)
        self.state: dict[str, np.ndarray] = {}
        self._grad: np.ndarray | None = None

    def read(self) -> np.ndarray:
        return self.array

    lockable = look = read

    def by_rows(self) -> Rows:
        return Rows(self.array)

    def chunks(self, kind: str) -> Iterator[np.ndarray]:
        flat = (self.array if kind == WEIGHT else self.state[kind]).reshape(-1)
        for start in range(0, self.size, CHUNK):
            yield flat[start : start + CHUNK]

    def fill(self, kind: str, chunks: Iterable[np.ndarray], dtype: Any = None) -> None:
        array = empty(self.shape, self.dtype_of(kind) if dtype is None else dtype)
        flat = array.reshape(-1)
        for start, piece in placed(chunks, self.size):
            flat[start : start + piece.size] = piece
        if kind != WEIGHT:
            self.state[kind][...] = array
            return
        if array.dtype != self.dtype:  # gradient and state follow
            self.dtype = array.dtype
            self.state = {name: x.astype(self.state_dtype) for name, x in self.state.items()}
            self._grad = None if self._grad is None else self._grad.astype(array.dtype)
        self.array = array

    def state_names(self) -> tuple[str, ...]:
        return tuple(self.state)

    def make_state(self, names: tuple[str, ...]) -> None:
        self.state = {name: zeros(self.shape, self.state_dtype) for name in names}

    @property
    def grad(self) -> np.ndarray | None:
        if self.has_grad:
            self._complete()
        return self._grad

    @grad.setter
    def grad(self, value: np.ndarray | None) -> None:
        self._grad, self._filled = value, None if value is None else self.size

    def drop_grad(self) -> None:
        self._grad = self._filled = None

    def add_grad_rows(self, start: int, block: np.ndarray) -> None:
        if not self.has_grad and block.shape == self.shape and block.dtype == self.dtype:
            self.grad = np.ascontiguousarray(block)  # ours to keep
        else:
            super().add_grad_rows(start, block)

    def _begin_grad(self) -> None:
        self._grad = empty(self.shape, self.dtype)

    def _part(self, start: int, block: np.ndarray) -> np.ndarray:
        if block.shape == self.shape:
            return self._grad
        return self._grad.reshape(-1)[start : start + block.size].reshape(block.shape)

    def _put(self, start: int, block: np.ndarray) -> None:
        np.copyto(self._part(start, block), block)

    def _add(self, start: int, block: np.ndarray) -> None:
        part = self._part(start, block)
        add(part, block, out=part)

    def _zero(self, start: int) -> None:
        self._grad.reshape(-1)[start:] = 0

    def _add_picked(self, rows: np.ndarray, values: np.ndarray) -> None:
        self._grad[rows] += values

    def grad_squares(self) -> float:
        return self.all_grad_squares([self])[0]

    def scale_grad(self, factor: float) -> None:
        self.scale_all_grads([self], factor)

    def update(self, function: Callable[..., None], state: tuple[str, ...], **numbers: Any) -> None:
        self.update_all([self], function, state, **numbers)

    # Different storages of this kind take one launch together. `function` is handed lists.

    @staticmethod
    def all_grad_squares(storages: Sequence["ArrayStorage"]) -> list[float]:
        return update_kernels.sums_of_squares([storage.grad for storage in storages])

    @staticmethod
    def scale_all_grads(storages: Sequence["ArrayStorage"], factor: float) -> None:
        grads = [storage.grad for storage in storages if storage.has_grad]
        update_kernels.scale(grads, factor)

    @staticmethod
    def update_all(
        storages: Sequence["ArrayStorage"],
        function: Callable[..., None],
        state: tuple[str, ...],
        **numbers: Any,
    ) -> None:
        for storage in storages:
            if storage.array in locks:  # a graph still holds the old numbers: leave them to it
                storage.array = storage.array.copy()
        states = ([storage.state[name] for storage in storages] for name in state)
        function([s.array for s in storages], [s.grad for s in storages], *states, **numbers)


def placed(chunks: Iterable[np.ndarray], size: int | None = None) -> Iterator[tuple[int, Any]]:
    """Flat pieces with the place where each begins; raises unless they add up to `size`."""
    start = 0
    for chunk in chunks:
        chunk = np.asarray(chunk).reshape(-1)
        if size is not None and start + chunk.size > size:
            raise ValueError(f"more than the {size} elements that there is room for")
        yield start, chunk
        start += chunk.size
    if size is not None and start != size:
        raise ValueError(f"{start} elements given, {size} needed")


_maker: list[Callable[[tuple[int, ...], np.dtype], Storage]] = [ArrayStorage]


def new_storage(shape: tuple[int, ...], dtype: np.dtype) -> Storage:
    """A storage for a parameter that is being born; what is in it is undefined."""
    return _maker[-1](shape, dtype)


@contextlib.contextmanager
def born_in(maker: Callable[[tuple[int, ...], np.dtype], Storage]) -> Iterator[None]:
    """Inside, parameters are born in what `maker(shape, dtype)` gives."""
    _maker.append(maker)
    try:
        yield
    finally:
        remove_last(_maker, maker)
