"""A rehearsal: everything a step would do on a chip, with nothing computed and no byte moved.

The same model and the same engine run, but kernels are switched off, weights are never drawn, and
memory is reserved without being touched. What is left is the account: what would be needed at
once, what would be fetched, drained and updated, how many FLOPs. A model of any size is rehearsed
in well under a second per hundred layers.

    with Rehearsal() as chip:
        _, loss = GPT(config)(idx, targets)
        loss.backward()
    chip.peak_bytes                  # the smallest budget that will do
"""

import mmap
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import numpy as np

from ..kernels.switch import kernels_off
from .chip import Chip
from .clock import Work
from .external import Blob, ExternalMemory, Owner
from .flops import ATTENTION, known_as, op_bytes, op_flops, whole_blocks
from .streamed import StreamedStorage, moved_by_update

NO_LIMIT = 1 << 62
UNBACKED = getattr(mmap, "MAP_NORESERVE", 0x4000)  # Linux: no promise that there is memory


class Nothing(ExternalMemory):
    """An external memory that remembers sizes only."""

    def allocate(self, kind: str, nbytes: int, owner: Owner) -> Blob:
        blob = Blob(kind, nbytes, owner, NoFile())
        self._add(blob)
        return blob


class NoFile:
    """Takes bytes that are never asked for again."""

    def read(self, start: int, buffer: np.ndarray, what: str) -> None:
        pass

    write = read


class Unwritten(StreamedStorage):
    """A parameter without numbers."""

    def _borrow(self, part: tuple, start: int, shape: tuple[int, ...]) -> np.ndarray:
        before = self.chip.residency.arrived_bytes
        array = super()._borrow(part, start, shape)
        self.chip.loans.append((self, self.chip.residency.arrived_bytes - before))
        return array

    def take(self, ids: np.ndarray) -> np.ndarray:
        before = self.chip.residency.arrived_bytes
        rows = super().take(ids)
        self.chip.loans.append((self, self.chip.residency.arrived_bytes - before))
        return rows

    def fill(self, kind: str, chunks: Iterable[np.ndarray], dtype: Any = None) -> None:
        pass  # the chunks are never asked for, so nothing is drawn

    def grad_squares(self) -> float:
        return 1.0


def reserved_block(nbytes: int) -> np.ndarray:
    """Addresses for `nbytes`. Nobody asks for the memory behind them, so there need not be any."""
    flags = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | UNBACKED}
    return np.frombuffer(
        mmap.mmap(-1, nbytes, **(flags if sys.platform == "linux" else {})), np.uint8
    )


class Rehearsal(Chip):
    """A chip on which nothing is computed, without a limit unless `memory` gives one.

    works: what happened in program order, for the virtual clock (see `clock.play`). An op that uses
    a large weight some rows at a time is as many items.
    keeps_logits: FLOPs are to be those of a step without a chip, where the loss keeps its logits.
    """

    storage_type = Unwritten

    def __init__(self, memory: int | str = NO_LIMIT, keeps_logits: bool = False) -> None:
        super().__init__(memory, Nothing())
        self.budget.new_mapping = reserved_block
        self.keeps_logits = keeps_logits
        self.works: list[Work] = []
        self.loans: list[tuple[Unwritten, int]] = []  # of the present op: whose, bytes fetched
        self._drained_before = self._drains = self._mapped_before = 0

    def __enter__(self) -> "Rehearsal":
        self._off = ExitStack()
        super().__enter__()
        self._off.enter_context(kernels_off())
        self._off.enter_context(np.errstate(all="ignore"))  # what is left in the memory is noise
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._off.close()
        super().__exit__(kind, error, trace)

    def drain(self, storage: StreamedStorage, array: Any, move: Callable[[], None]) -> None:
        self._drains += 1
        super().drain(storage, array, lambda: None)

    def file_update(
        self,
        storage: StreamedStorage,
        function: Callable[..., None],
        blobs: list[Blob],
        scale: float,
        numbers: dict[str, Any],
    ) -> None:
        moved = moved_by_update(blobs)
        self.works.append(Work(storage.name or "", "update", touched=moved, transfers=1))

    def _observe(self, op: type, phase: str, shapes: tuple, start: int) -> None:
        super()._observe(op, phase, shapes, start)
        kind = known_as(op)
        loans, self.loans = self.loans, []
        drained, self._drained_before = self._drained - self._drained_before, self._drained
        mapped = self.budget.mapped
        fresh, self._mapped_before = mapped - self._mapped_before, mapped
        drains, self._drains = self._drains, 0
        flops = op_flops(kind, phase, shapes, self.keeps_logits)
        touched = op_bytes(kind, phase, shapes)
        if kind in ATTENTION:
            flops = round(flops * whole_blocks(kind, shapes))
        weight = max((storage for storage, _ in loans), key=lambda s: s.nbytes, default=None)
        pieces = [0]  # bytes fetched; each loan of the weight after the first begins another piece
        lent = 0
        for storage, fetched in loans:
            if storage is weight:
                lent += 1
            if storage is weight and lent > 1:
                pieces.append(0)
            pieces[-1] += fetched
        name = op.__name__ if weight is None else weight.name or op.__name__
        for i, fetched in enumerate(pieces):
            flops_, touched_, drained_, transfers, fresh_ = (
                n * (i + 1) // len(pieces) - n * i // len(pieces)
                for n in (flops, touched, drained, len(loans) + drains, fresh)
            )
            self.works.append(
                Work(
                    name, phase, flops_, touched_, fetched, drained_, int(i == 0), transfers, fresh_
                )
            )
