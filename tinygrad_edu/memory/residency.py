"""Which weights are on the chip: loans, fetches ahead of time, and what leaves first.

A *unit* is what is fetched at once: a parameter, or some rows of a large one. An op borrows a unit
as an array; the loan ends when the last reference to that array, or to a view of it, dies. While a
unit is lent its bytes are needed; afterwards it stays, idle, as long as there is room.

All decisions are made by the thread that computes, at loans and allocations, from what was
borrowed and how much was needed the last time (see `schedule`). The reader thread only moves bytes.
So what is fetched, and how often, does not depend on how fast anything happened to be.

What leaves first is what is used furthest in the future (Belady). A unit is fetched ahead of its
use only if it fits beside all that the ops before it needed the last time.
"""

import time
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

from ..kernels.allocator import lease
from .budget import Budget, block_size
from .external import Blob
from .schedule import Schedule
from .timeline import Timeline
from .transfer import Job, Link, Mover, wait_for

AHEAD = 32 << 20  # bytes on their way or waiting for their use: enough to keep the link busy
TRUST = 8  # expectations that must come true before anything is fetched on the strength of them
UPDATE = "update"  # stands in the recording where weights change: nothing is fetched past it


class Unit:
    """Some consecutive bytes of a parameter's weight, and the copy of them on the chip, if any."""

    __slots__ = ("blob", "block", "job", "key", "last_use", "nbytes", "offset", "pins")

    def __init__(self, key: Hashable, blob: Blob, offset: int, nbytes: int) -> None:
        self.key, self.blob, self.offset, self.nbytes = key, blob, offset, nbytes
        self.block: np.ndarray | None = None
        self.job: Job | None = None  # of a fetch that nobody has waited for yet
        self.pins = 0  # loans
        self.last_use = 0


class Residency:
    """The units of one chip."""

    def __init__(self, budget: Budget, reader: Mover, link: Link, timeline: Timeline) -> None:
        self.budget, self.reader, self.link, self.timeline = budget, reader, link, timeline
        self.schedule = Schedule()
        self.units: dict[Hashable, Unit] = {}
        self.resident: dict[Hashable, Unit] = {}  # those with a block, lent or idle
        self.updating = False
        self.waiting = 0  # bytes here or coming that are expected before anything else is fetched
        self.seen = 0  # everything expected before this place of the schedule is here or coming
        self.fetched_bytes = 0
        self.arrived_bytes = 0  # of fetches that somebody has waited for, in program order
        self.loans = 0

    def add(self, key: Hashable, blob: Blob, offset: int, nbytes: int) -> Unit:
        unit = self.units[key] = Unit(key, blob, offset, nbytes)
        return unit

    def borrow(self, unit: Unit, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """The unit as a read-only array, fetched if it is not there."""
        self.saw(unit.key)
        self.loans += 1
        unit.last_use = self.loans
        if unit.block is None:
            self._fetch(unit, "weights")
        elif unit.pins == 0:
            self.budget.charge("idle", -unit.block.nbytes)
            self.budget.charge("weights", unit.block.nbytes)
        unit.pins += 1
        held = lease(unit.block, self)
        held.unit = unit
        array = np.ndarray(shape, dtype, buffer=held)
        array.flags.writeable = False
        self._arrive(unit)
        self.waiting -= block_size(unit.nbytes)
        if self.waiting < AHEAD // 2 and not self._all_seen():
            self.look_ahead()
        return array

    def saw(self, key: Hashable) -> None:
        """Something is borrowed, or done, that the schedule should know of."""
        if self.updating and key != UPDATE:
            self.timeline.next_step()
        self.updating = key == UPDATE
        self.schedule.saw(key, self.budget.take_high())

    def give_back(self, held: Any) -> None:
        """The last array of a loan has died."""
        unit = held.unit
        unit.pins -= 1
        if unit.pins:
            return
        if self.resident.get(unit.key) is unit:
            self.budget.charge("weights", -unit.block.nbytes)
            self.budget.charge("idle", unit.block.nbytes)
            while self.budget.held["idle"] > self.idle_room and self.evict_one():
                pass
        else:  # it was replaced while it was lent
            self.budget.charge("weights", -unit.block.nbytes)
            self._release(unit)

    def drop(self, key: Hashable) -> None:
        """The numbers behind a unit have changed: the copy on the chip is worth nothing now."""
        unit = self.resident.get(key)
        if unit is None:
            return
        if unit.pins == 0:
            self._evict(unit)
        else:  # whoever holds it keeps the old numbers; the next loan fetches the new ones
            del self.resident[key]
            self.add(key, unit.blob, unit.offset, unit.nbytes)

    def evict_one(self, beyond: int = -1) -> bool:
        """Drops the idle unit used furthest in the future, past `beyond`; False if none is."""
        idle = [unit for unit in self.resident.values() if unit.pins == 0]
        if not idle:
            return False
        # among units of which nothing is known, the one used longest ago
        uses = {unit.key: self.schedule.next_use(unit.key) for unit in idle}
        victim = max(idle, key=lambda unit: (uses[unit.key], -unit.last_use))
        if uses[victim.key] <= beyond:
            return False
        self._evict(victim)
        return True

    def look_ahead(self) -> None:
        """Fetches what is expected next, as far as it fits beside what will be needed."""
        budget, high, limit = self.budget, self.budget.needed, self.budget.limit
        counted: set[Hashable] = set()
        self.waiting = 0
        if self.schedule.streak < TRUST:
            return
        for position, key in self.schedule.ahead():
            if key == UPDATE:
                self.seen = position
                return
            if self.waiting >= AHEAD:
                return
            unit = self.units.get(key)
            high = max(high, self.schedule.need_before(position))
            if unit is None or key in counted:
                continue
            if self.updating and not unit.blob.owner.updated:
                return  # its numbers are still to change
            counted.add(key)
            if unit.block is None:
                if high + self.waiting + block_size(unit.nbytes) > limit:
                    return
                room = min(limit - budget.needed - budget.held["leaving"], self.idle_room)
                coming_back = sum(
                    lent.block.nbytes
                    for lent in self.resident.values()
                    if lent.pins and self.schedule.next_use(lent.key) < position
                )
                while budget.held["idle"] + coming_back + block_size(unit.nbytes) > room:
                    if not self.evict_one(beyond=position):
                        return
                self._fetch(unit, "idle")
            self.waiting += block_size(unit.nbytes)

    def _all_seen(self) -> bool:
        """Whether what is expected up to the next update has been looked at already."""
        schedule = self.schedule
        return schedule.streak > TRUST and schedule.place is not None and schedule.place < self.seen

    @property
    def idle_room(self) -> int:
        """Bytes that copies nobody uses at the moment may take."""
        return max(self.budget.spare, min(2 * AHEAD, self.budget.limit // 4))

    # Inside.

    def fetch(self, blob: Blob, read: Callable[[], None], nbytes: int, after: Job | None) -> None:
        """Runs `read`, of `nbytes` from `blob`, as a transfer, and waits for it."""
        wait_for(self._submit(blob, read, nbytes, after), "fetch", self.timeline)
        self.arrived_bytes += nbytes

    def _fetch(self, unit: Unit, kind: str) -> None:
        unit.block = self.budget.block(unit.nbytes, kind, unit)
        self.resident[unit.key] = unit
        buffer = unit.block[: unit.nbytes]
        blob, offset = unit.blob, unit.offset
        unit.job = self._submit(
            blob, lambda: blob.read(offset, buffer), unit.nbytes, blob.owner.written
        )

    def _submit(self, blob: Blob, read: Callable[[], None], nbytes: int, after: Job | None) -> Job:
        """Hands the reader a transfer; `after` is a write that it has to come after."""

        def move() -> float:
            if after is not None:
                after.wait()
            start = time.perf_counter_ns()
            ready_at = self.link.carry(nbytes, read)
            end = time.perf_counter_ns()
            self.timeline.record("fetch", blob.owner.name or "", start, end, nbytes)
            return ready_at

        self.fetched_bytes += nbytes
        return self.reader.submit(move, f"the {blob.what} to the chip")

    def _arrive(self, unit: Unit) -> None:
        if unit.job is not None:
            wait_for(unit.job, "fetch", self.timeline)
            self.arrived_bytes += unit.nbytes
            unit.job = None  # only now: a wait that was interrupted is one that is still to come

    def _evict(self, unit: Unit) -> None:
        self._arrive(unit)
        del self.resident[unit.key]
        self.seen = 0
        self.budget.charge("idle", -unit.block.nbytes)
        self._release(unit)

    def close(self) -> None:
        """Forgets the copies that nobody uses; fetches that were not begun never happened."""
        for unit in list(self.resident.values()):
            if unit.job is not None and unit.job.error is not None:
                self.fetched_bytes -= unit.nbytes
            unit.job = None
            if unit.pins == 0:
                self._evict(unit)

    def _release(self, unit: Unit) -> None:
        block, unit.block = unit.block, None
        self.budget.release(block)
