"""`Chip`: one device with a fixed number of bytes, fed from an external memory.

    with Chip("256MB", ExternalMemory("weights.bin")) as chip:
        model = ...              # its parameters are born in the external memory
        ...train as ever...
    print(chip.report())

While a chip is open, all memory of the engine comes from its budget, and every parameter made is a
streamed one. Nothing else changes: not the model, not the training loop, and not one bit of the
results. This file wires the parts together and keeps the gradients that are on their way out.

What a `Function` of one's own allocates with NumPy is not the engine's: no chip counts its results
or what it saves, only the gradients that it gives.
"""

import gc
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np

from .. import tape
from ..kernels import jit
from ..kernels.allocator import memory_from
from ..storage import born_in
from . import report
from .budget import Budget
from .external import Blob, ExternalMemory
from .file_update import FileUpdate
from .flops import known_as, op_flops, rows_of_weight
from .residency import UPDATE, Residency
from .sizes import parse_size
from .streamed import StreamedStorage
from .timeline import COMPILER, Timeline
from .transfer import Job, Link, Mover, afresh, wait_for

LEAVING = 1 << 20  # bytes of gradients that may be on their way out beside the latest one


class ChipMemoryError(MemoryError):
    """Something does not fit on the chip: the message says what, who holds what, what would fit."""


class Chip:
    """memory: the budget, in bytes or as "256MB"; external: where parameters live (default: RAM).

    A context manager; one chip is open at a time. `poison` fills freed memory with NaN, for tests.

    peak_bytes: the most that was ever needed at once, and so the smallest budget that would have
    done; copies of weights that were only kept because there was room do not count.
    bytes_moved: {"fetch": to the chip, "drain": gradients out, "update": read and written by the
    optimizer}. timeline: every event, see `Timeline`.
    """

    storage_type = StreamedStorage
    _open: "Chip | None" = None

    def __init__(
        self,
        memory: int | float | str,
        external: ExternalMemory | None = None,
        poison: bool = False,
    ) -> None:
        self.memory = parse_size(memory, "a chip's memory")
        self.external = ExternalMemory() if external is None else external
        if not isinstance(self.external, ExternalMemory):
            raise TypeError(
                f"external is an ExternalMemory, got {type(external).__name__}: write "
                f"ExternalMemory({external!r})"
            )
        self.budget = Budget(self.memory, poison)
        self.budget.make_room = self._make_room
        self.timeline = Timeline()
        self.watch: Callable[[str, int], None] | None = None  # told of each op: phase, FLOPs
        self.updates = 0  # optimizer steps
        self.tokens = 0  # the most rows that met a weight at once
        self.ceiling: float | None = None  # bytes per second that the medium gives, once measured
        self._dropped: deque[tuple[list[tuple], list[Blob]]] = deque()  # units and blobs
        self._leaving: deque[tuple[Job, Any]] = deque()
        self._leaving_bytes = self._drained = self._updated = 0
        self._landed_at = 0.0  # when the last gradient has reached the memory, after its latency
        self._stack: ExitStack | None = None
        self._was_open = False

    # Opening and closing.

    def __enter__(self) -> "Chip":
        if Chip._open is not None:
            raise RuntimeError("a chip is open already: one at a time")
        if self._was_open:
            raise RuntimeError("this chip has been used: make a new one")
        self.external.open()
        try:
            self.reader = Mover("reader")
            self.writer = Mover("writer")
        except BaseException:  # no thread to be had
            if hasattr(self, "reader"):
                self.reader.close()
            self.external.close(in_order=False)
            raise
        self.residency = Residency(self.budget, self.reader, Link(self.external), self.timeline)
        self.file_updates = FileUpdate(self.reader, self.writer, self.timeline)
        self._out = Link(self.external)
        self._stack = ExitStack()
        self._stack.enter_context(memory_from(self.budget))
        self._stack.enter_context(born_in(self._new_storage))
        jit.watchers.append(self._compiled)
        self._stack.callback(jit.watchers.remove, self._compiled)
        Chip._open, self._was_open = self, True
        tape.state.observer = self._observe
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        in_order = False
        try:
            if kind is None:
                self.settle()
                self.external.hurry.set()
                self.reader.close()
                self.check_open()  # a fetch that nobody waited for may have gone wrong
                self.ceiling = report.measure_ceiling(self.external)
                in_order = True
        finally:
            tape.state.observer, Chip._open = None, None
            self._stack.close()
            self.external.hurry.set()
            try:
                self.reader.close()
                self.writer.close()
                self.residency.close()
                self._leaving.clear()
                self._landed_at = 0.0
                self.budget.close()
            finally:
                self.external.close(in_order)

    @property
    def failure(self) -> BaseException | None:
        """The first transfer that went wrong; numbers may be missing on either side after it."""
        return self.external.failure or self.reader.failure or self.writer.failure

    def check_open(self) -> None:
        """Raises unless this chip can be computed on."""
        if Chip._open is not self:
            raise RuntimeError(
                "this parameter lives in the external memory of a chip that is closed: compute "
                "inside `with chip:`; .data and state_dict() of a memory in RAM still work"
            )
        if self.failure is not None:
            raise afresh(self.failure)

    def _new_storage(self, shape: tuple[int, ...], dtype: np.dtype) -> StreamedStorage:
        self._forget()
        return self.storage_type(self, shape, dtype)

    # What one asks it.

    @property
    def peak_bytes(self) -> int:
        return self.budget.peak

    @property
    def bytes_moved(self) -> dict[str, int]:
        fetched = self.residency.fetched_bytes if self._was_open else 0
        return {"fetch": fetched, "drain": self._drained, "update": self._updated}

    def report(self) -> str:
        """What the chip held, what was moved, what the compute thread waited for."""
        return report.report(self)

    # What storages ask it to do.

    def drain(self, storage: StreamedStorage, array: Any, move: Callable[[], None]) -> None:
        """Lets the writer run `move`, which takes `array` out (None: nothing leaves the chip).

        `array` and what `move` reads are `budget.outgoing`.
        """
        self.check_open()
        nbytes = 0 if array is None else array.nbytes
        self._drained += nbytes

        def carry() -> None:
            start = time.perf_counter_ns()
            landed_at = self._out.carry(nbytes, move)
            end = time.perf_counter_ns()
            self._landed_at = landed_at if nbytes else self._landed_at
            self.timeline.record("drain", storage.name or "", start, end, nbytes)

        job = self.writer.submit(carry, f"the gradient of {storage.name or storage.shape}")
        self._leaving.append((job, array))
        self._leaving_bytes += nbytes
        while self._leaving_bytes - nbytes > LEAVING:
            self._collect()

    def _collect(self) -> None:
        """Waits for the oldest gradient on its way out, and lets go of its memory."""
        job, array = self._leaving[0]
        wait_for(job, "drain", self.timeline)
        self._leaving.popleft()  # only now: the writer has read it
        self._leaving_bytes -= 0 if array is None else array.nbytes

    def _land(self) -> None:
        """Returns when every gradient has arrived; its memory was let go of when it had left."""
        while self._leaving:
            self._collect()
        if (rest := self._landed_at - time.perf_counter()) > 0:
            start = time.perf_counter_ns()
            time.sleep(rest)
            self.timeline.stall("drain", start, time.perf_counter_ns())

    def settle(self) -> None:
        """Returns when nothing is on its way out any more."""
        self._land()
        if self._was_open:
            self.file_updates.settle()
        self._forget()

    def begin_update(self) -> None:
        """Weights are about to change: gradients have to have arrived."""
        self.check_open()
        self._land()
        if not self.residency.updating:
            self.updates += 1
            self.residency.saw(UPDATE)

    def file_update(
        self,
        storage: StreamedStorage,
        function: Callable[..., None],
        blobs: list[Blob],
        scale: float,
        numbers: dict[str, Any],
    ) -> None:
        dtypes = [storage.dtype_of(blob.kind) for blob in blobs]
        self.file_updates.run(function, blobs, dtypes, scale, numbers)

    def count_update(self, nbytes: int) -> None:
        self._updated += nbytes
        if self.watch is not None:
            self.watch("update", 0)

    def changed(self, storage: StreamedStorage) -> None:
        """The weight has other numbers: copies on the chip are worth nothing."""
        for key in storage.keys:
            self.residency.drop(key)
        if self.residency.updating:
            self.residency.look_ahead()

    def dropped(self, keys: list[tuple], blobs: list[Blob]) -> None:
        """A parameter has died, in whatever thread and in the middle of whatever it may be."""
        self._dropped.append((keys, blobs))
        if Chip._open is not self:
            self._forget()

    def _forget(self) -> None:
        """Lets go of the RAM of parameters that have died; a file keeps its layout."""
        while self._dropped:
            keys, blobs = self._dropped.popleft()
            for key in keys:
                self.residency.drop(key)
                del self.residency.units[key]
            for blob in blobs:
                if blob.array is not None:
                    self.external.free(blob)

    # What the budget and the engine ask it.

    def _make_room(self, nbytes: int, what: Any) -> None:
        """Makes `nbytes` fit, or raises with an account of who holds what."""
        budget, garbage = self.budget, True
        while budget.taken + nbytes > budget.limit:
            if self._leaving:
                self._collect()
            elif self.residency.evict_one():
                continue
            elif garbage:  # a kernel's first compilation leaves some that holds what called it
                garbage = False
                gc.collect()
            else:
                raise ChipMemoryError(report.does_not_fit(self, nbytes, what))

    def _compiled(self, start: int, end: int) -> None:
        """The op that needed a kernel did not compute meanwhile."""
        self.timeline.stall(COMPILER, start, end)

    def _observe(self, op: type, phase: str, shapes: tuple, start: int) -> None:
        name, kind = f"{op.__name__} {phase}", known_as(op)
        flops = op_flops(kind, phase, shapes)
        self.tokens = max(self.tokens, rows_of_weight(kind, shapes))
        if self.watch is not None:
            self.watch(phase, flops)
        self.timeline.record("compute", name, start, time.perf_counter_ns(), flops=flops)
