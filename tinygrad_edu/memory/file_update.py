"""An optimizer's update of numbers that live in a file: read, compute, write, all at once.

A chunk of weight, gradient and optimizer state is read into one set of buffers while the one before
is being computed and the one before that is being written:

    reader    r0 r1 r2 r3 ...
    compute      c0 c1 c2 ...
    writer          w0 w1 ...

Three sets go round. What is written is on its way when the update of one parameter ends; whoever
needs the parameter next waits for its last write.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from .external import GRID, Blob
from .timeline import Timeline
from .transfer import Job, Mover, wait_for

SETS = 3


class FileUpdate:
    """The buffers and the order of things; `arrays` are numbered weight, gradient, state..."""

    def __init__(self, reader: Mover, writer: Mover, timeline: Timeline) -> None:
        self.reader, self.writer, self.timeline = reader, writer, timeline
        self.sets: list[list[np.ndarray]] = [[] for _ in range(SETS)]
        self.leaving: list[Job | None] = [None] * SETS  # the write that a set waits for
        self.turn = 0

    def run(
        self, function: Callable[..., None], blobs: list[Blob], dtypes: list[np.dtype],
        scale: float, numbers: dict[str, Any],
    ) -> None:  # fmt: skip
        """Updates everything but the gradient; the last write may still be on its way then."""
        owner = blobs[0].owner
        starts = range(0, blobs[0].nbytes // dtypes[0].itemsize, GRID // dtypes[0].itemsize)
        coming = [self._read(blobs, dtypes, starts, i) for i in range(len(starts))[: SETS - 1]]
        for i in range(len(starts)):
            turn, parts, arrived = coming.pop(0)
            wait_for(arrived, "update", self.timeline)
            if scale != 1.0:
                parts[1] *= parts[1].dtype.type(scale)
            function(*parts, **numbers)
            owner.written = self.leaving[turn] = self._write(blobs, parts, starts[i])
            if i + SETS - 1 < len(starts):
                coming.append(self._read(blobs, dtypes, starts, i + SETS - 1))

    def settle(self) -> None:
        """Waits for every write."""
        for turn in range(SETS):
            self._empty(turn)

    def _empty(self, turn: int) -> None:
        """Waits for the write of a set of buffers."""
        if self.leaving[turn] is not None:
            wait_for(self.leaving[turn], "update", self.timeline)
            self.leaving[turn] = None

    def _read(
        self, blobs: list[Blob], dtypes: list[np.dtype], starts: range, i: int
    ) -> tuple[int, list[np.ndarray], Job]:
        """Elements from starts[i] on: whole cells, of all but the last chunk."""
        turn, self.turn = self.turn, (self.turn + 1) % SETS
        self._empty(turn)
        buffers, start, parts = self.sets[turn], starts[i], []
        count = min(starts.step, starts.stop - start)
        for place, dtype in enumerate(dtypes):
            if place == len(buffers):
                buffers.append(np.empty(0, np.uint8))
            if buffers[place].nbytes < starts.step * dtype.itemsize:
                buffers[place] = np.empty(starts.step * dtype.itemsize, np.uint8)
            parts.append(buffers[place][: count * dtype.itemsize].view(dtype))

        def move() -> None:
            for blob, part in zip(blobs, parts, strict=True):
                blob.read(start * part.itemsize, part.view(np.uint8))

        return turn, parts, self.reader.submit(move, f"the {blobs[0].what} for its update")

    def _write(self, blobs: list[Blob], parts: list[np.ndarray], start: int) -> Job:
        def move() -> None:
            for i, (blob, part) in enumerate(zip(blobs, parts, strict=True)):
                if i != 1:  # the gradient is done with
                    blob.write(start * part.itemsize, part.view(np.uint8))

        return self.writer.submit(move, f"the {blobs[0].what} after its update")
