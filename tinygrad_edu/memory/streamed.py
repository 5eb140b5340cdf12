"""The storage of a parameter that lives in external memory.

Ops borrow its weight through the chip's `Residency`. Its gradient leaves the chip as it is made:
the writer thread stores it, or adds it to what is there, one contribution after the other.
Optimizer state never comes to the chip: the update runs beside it, in RAM in place, in a file in
chunks (see `file_update`). It works element by element, so where the cuts are changes no bit.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np

from ..kernels import copy, empty
from ..kernels.gather import gather_rows
from ..kernels.update import piece_squares, squares_from
from ..storage import WEIGHT, Storage, new_storage, placed
from .external import GRADIENT, GRID, Blob, Owner, checked

if TYPE_CHECKING:
    from .chip import Chip


class StreamedStorage(Storage):
    """Weight, gradient and optimizer state as blobs of the chip's external memory."""

    def __init__(self, chip: "Chip", shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.owner = Owner(tuple(shape), np.dtype(dtype))
        super().__init__(shape, dtype)
        self.chip = chip
        self.nbytes = self.size * self.dtype.itemsize
        self.blobs: dict[str, Blob] = {}
        self.keys: list[tuple] = []  # of the units that ops have borrowed so far
        self._scale = 1.0  # what the gradient is still to be multiplied with
        self._allocate(WEIGHT, self.dtype)

    def __del__(self) -> None:
        self.chip.dropped(self.keys, list(self.blobs.values()))

    def __deepcopy__(self, memo: dict) -> Storage:
        """The same numbers where parameters are born now: on a chip, or in plain memory."""
        twin, grad = new_storage(self.shape, self.dtype), self.grad
        twin.make_state(self.state_names())
        for kind in (WEIGHT, *self.state_names()):
            twin.fill(kind, self.chunks(kind))
        twin.grad = None if grad is None else grad.copy()
        twin.state_of = deepcopy(self.state_of, memo)
        return twin

    def _allocate(self, kind: str, dtype: np.dtype) -> None:
        nbytes = self.size * dtype.itemsize
        self.blobs[kind] = self.chip.external.allocate(kind, nbytes, self.owner)

    @property
    def name(self) -> str | None:
        return self.owner.name

    @name.setter
    def name(self, value: str | None) -> None:
        self.owner.name = value

    # Loans.

    def read(self) -> np.ndarray:
        return self._borrow((), 0, self.shape)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows start .. stop - 1, borrowed."""
        if (start, stop) == (0, self.shape[0]):
            return self.read()
        return self._borrow((start, stop), start, (stop - start, *self.shape[1:]))

    def _borrow(self, part: tuple, start: int, shape: tuple[int, ...]) -> np.ndarray:
        self.chip.check_open()
        row_bytes = self.dtype.itemsize * math.prod(self.shape[1:])
        nbytes = self.dtype.itemsize * math.prod(shape)
        residency, key = self.chip.residency, (self.owner, *part)
        unit = residency.units.get(key)
        if unit is None:
            unit = residency.add(key, self.blobs[WEIGHT], start * row_bytes, nbytes)
            self.keys.append(key)
        return residency.borrow(unit, shape, self.dtype)

    def take(self, ids: np.ndarray) -> np.ndarray:
        """ids (...) -> their rows (..., C); every row that occurs is fetched once."""
        self.chip.check_open()
        wanted, places = np.unique(ids, return_inverse=True)
        row = self.dtype.itemsize * math.prod(self.shape[1:])
        self.chip.residency.saw((self.owner, "rows"))
        table = empty((len(wanted), row), np.uint8)
        blob = self.blobs[WEIGHT]

        def read() -> None:
            if blob.array is not None:
                there = blob.array.reshape(self.shape[0], row)
                np.take(there, wanted, axis=0, out=table, mode="clip")
                return
            for first, last in runs(wanted):
                blob.read(int(wanted[first]) * row, table[first:last].reshape(-1))

        self.chip.residency.fetch(blob, read, table.nbytes, self.owner.written)
        return gather_rows(table.view(self.dtype), places.reshape(ids.shape))

    def by_rows(self) -> "StreamedRows":
        return StreamedRows(self)

    def lockable(self) -> None:
        return None  # a user sees copies only

    # From outside.

    def look(self) -> np.ndarray:
        out = self.state_array(WEIGHT)
        out.flags.writeable = False
        return out

    def chunks(self, kind: str) -> Iterator[np.ndarray]:
        self.chip.settle()
        for piece in checked(self._blob(kind)):
            yield piece.view(self.dtype_of(kind))

    def fill(self, kind: str, chunks: Iterable[np.ndarray], dtype: Any = None) -> None:
        if dtype is not None and np.dtype(dtype) != self.dtype:
            raise TypeError(
                f"a parameter in external memory stays {self.dtype}, it cannot become {dtype}: "
                "convert the numbers, or make the parameter with that dtype"
            )
        self.chip.settle()
        blob, kept_as = self._blob(kind), self.dtype_of(kind)
        cell, filled, offset = GRID // kept_as.itemsize, 0, 0
        buffer = np.empty(min(cell, self.size), kept_as)
        try:
            for _, piece in placed(chunks, self.size):
                while piece.size:
                    count = min(piece.size, buffer.size - filled)
                    buffer[filled : filled + count] = piece[:count]
                    filled, piece = filled + count, piece[count:]
                    if filled == buffer.size or offset + filled == self.size:
                        blob.write(offset * kept_as.itemsize, buffer[:filled].view(np.uint8))
                        offset, filled = offset + filled, 0
        finally:  # even if the chunks end halfway, or raise
            if kind == WEIGHT:
                self.chip.changed(self)

    def _blob(self, kind: str) -> Blob:
        blob = self.blobs[kind]
        if blob.array is None:  # a file belongs to the chip that is open
            self.chip.check_open()
        return blob

    def state_names(self) -> tuple[str, ...]:
        return tuple(kind for kind in self.blobs if kind not in (WEIGHT, GRADIENT))

    def make_state(self, names: tuple[str, ...]) -> None:
        self._gradient()  # so that a file has room for it from the start
        for kind in self.state_names():
            self.chip.external.free(self.blobs.pop(kind))
        for kind in names:
            self._allocate(kind, self.state_dtype)

    # The gradient.

    @property
    def grad(self) -> np.ndarray | None:
        if not self.has_grad:
            return None
        out = np.empty(self.size, self.dtype)
        for start, piece in self._gradient_pieces(self.size):
            out[start : start + piece.size] = piece
        out.flags.writeable = False
        return out.reshape(self.shape)

    @grad.setter
    def grad(self, value: np.ndarray | None) -> None:
        Storage.grad.fset(self, value)

    def drop_grad(self) -> None:
        super().drop_grad()
        self._scale = 1.0

    def _gradient(self) -> Blob:
        if GRADIENT not in self.blobs:
            self._allocate(GRADIENT, self.dtype)
        return self._blob(GRADIENT)

    def _begin_grad(self) -> None:
        self.owner.updated = False
        self._gradient()

    def _put(self, start: int, block: np.ndarray) -> None:
        self._drain(start, block, first=True)

    def _add(self, start: int, block: np.ndarray) -> None:
        self._settle_scale()
        self._drain(start, block, first=False)

    def _drain(self, start: int, block: np.ndarray, first: bool) -> None:
        """Hands a contribution to the writer; it stays on the chip until it has left."""
        self.owner.updated = False
        if not block.flags.c_contiguous or block.dtype != self.dtype:
            block = copy(block.astype(self.dtype, copy=False))
        block = self.chip.budget.outgoing(block)
        flat, blob, offset = block.reshape(-1), self._gradient(), start * self.dtype.itemsize

        def move() -> None:
            if first:
                blob.write(offset, flat.view(np.uint8))
            elif blob.array is not None:
                there = blob.array[offset : offset + flat.nbytes].view(flat.dtype)
                there += flat
            else:
                for at, there in _pieces(blob, flat, offset):
                    there += flat[at : at + there.size]
                    blob.write(offset + at * self.dtype.itemsize, there.view(np.uint8))

        self.chip.drain(self, block, move)

    def _zero(self, start: int) -> None:
        blob, count = self._gradient(), self.size - start
        zeros = np.zeros(min(count, GRID // 4), self.dtype)

        def move() -> None:
            for at in range(start, self.size, zeros.size):
                part = zeros[: min(zeros.size, self.size - at)]
                blob.write(at * self.dtype.itemsize, part.view(np.uint8))

        self.chip.drain(self, None, move)

    def _add_picked(self, rows: np.ndarray, values: np.ndarray) -> None:
        self._settle_scale()
        values = self.chip.budget.outgoing(values)
        blob, width = self._gradient(), math.prod(self.shape[1:])
        row_bytes = width * self.dtype.itemsize

        def move() -> None:
            if blob.array is not None:
                blob.array.view(self.dtype).reshape(self.shape)[rows] += values
                return
            for first, last in runs(rows):  # neighbours go together
                there = np.empty((last - first, width), self.dtype)
                flat = there.reshape(-1).view(np.uint8)
                blob.read(int(rows[first]) * row_bytes, flat)
                there += values[first:last]
                blob.write(int(rows[first]) * row_bytes, flat)

        self.chip.drain(self, values, move)

    def _gradient_pieces(self, cell: int) -> Iterator[tuple[int, np.ndarray]]:
        """The gradient as it counts, `cell` elements at a time, each valid until the next."""
        self._complete()
        self.chip.settle()
        blob = self._gradient()
        if blob.array is not None and self._scale == 1.0:
            there = blob.array.view(self.dtype)
            yield from ((at, there[at : at + cell]) for at in range(0, self.size, max(1, cell)))
            return
        buffer = np.empty(min(cell, self.size), self.dtype)
        for start in range(0, self.size, max(1, cell)):
            piece = buffer[: min(cell, self.size - start)]
            blob.read(start * self.dtype.itemsize, piece.view(np.uint8))
            if self._scale != 1.0:
                piece *= self.dtype.type(self._scale)
            yield start, piece

    def grad_squares(self) -> float:
        totals = [piece_squares([piece])[0] for _, piece in self._gradient_pieces(GRID)]
        return squares_from(np.concatenate(totals) if totals else np.zeros(0))

    def scale_grad(self, factor: float) -> None:
        """Noted; done where the gradient is read next."""
        if self.has_grad:
            self._complete()
            self._settle_scale()
            self._scale = float(factor)

    def _settle_scale(self) -> None:
        if self._scale != 1.0:
            blob = self._gradient()
            for start, piece in self._gradient_pieces(GRID):
                blob.write(start * self.dtype.itemsize, piece.view(np.uint8))
            self._scale = 1.0

    # The update.

    def update(self, function: Callable[..., None], state: tuple[str, ...], **numbers: Any) -> None:
        self._complete()
        blobs = [self.blobs[kind] for kind in (WEIGHT, GRADIENT, *state)]
        start = time.perf_counter_ns()
        self.chip.begin_update()
        if self.owner.written is not None:
            self.owner.written.wait()  # of an update just before, with no gradient in between
        try:
            if blobs[0].array is not None:
                self._update_in_place(function, blobs, numbers)
                self._scale = 1.0
            else:  # which leaves the gradient in the file as it is
                self.chip.file_update(self, function, blobs, self._scale, numbers)
        except BaseException:  # some numbers may have changed already
            self.chip.changed(self)
            raise
        self.owner.updated = True
        moved = moved_by_update(blobs)
        self.chip.count_update(moved)
        end = time.perf_counter_ns()
        self.chip.timeline.record("update", self.name or "", start, end, moved)
        self.chip.changed(self)

    def _update_in_place(self, function: Callable, blobs: list[Blob], numbers: dict) -> None:
        arrays = [blob.array.view(self.dtype_of(blob.kind)) for blob in blobs]
        cell = GRID if self._scale != 1.0 else max(1, self.size)  # scaled while it is in the cache
        for at in range(0, self.size, cell):
            parts = [array[at : at + cell] for array in arrays]
            if self._scale != 1.0:
                parts[1] *= self.dtype.type(self._scale)
            function(*parts, **numbers)


def moved_by_update(blobs: list[Blob]) -> int:
    """Bytes: all blobs are read, and all but the second, the gradient, written."""
    return 2 * sum(blob.nbytes for blob in blobs) - blobs[1].nbytes


def runs(rows: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ascending row numbers -> (first, last + 1) places of neighbours."""
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    edges = [0, *breaks.tolist(), len(rows)]
    return ((a, b) for a, b in itertools.pairwise(edges) if a < b)


class StreamedRows:
    """A streamed matrix for an op that asks for some rows at a time; see `kernels.blocks.Rows`."""

    array = None  # nothing to be locked

    def __init__(self, storage: StreamedStorage) -> None:
        self.shape, self.dtype, self.ndim = storage.shape, storage.dtype, len(storage.shape)
        self.rows, self.take = storage.rows, storage.take

    def __len__(self) -> int:
        return self.shape[0]


def _pieces(blob: Blob, flat: np.ndarray, offset: int) -> Iterator[tuple[int, np.ndarray]]:
    """What a blob holds where `flat` is to be added, as scratch, a piece at a time."""
    cell = GRID // 4
    buffer = np.empty(min(cell, flat.size), flat.dtype)
    for at in range(0, flat.size, cell):
        there = buffer[: min(cell, flat.size - at)]
        blob.read(offset + at * flat.itemsize, there.view(np.uint8))
        yield at, there
