"""The record of what a chip with streamed weights did, and when.

A chip has four lanes: `fetch` brings weights from the external memory, `compute` runs ops, `drain`
takes gradients out, and `update` is the optimizer at work in the external memory. Every piece of
work is an event in one lane; every wait of the compute thread is a stall. All that is told about a
run (totals, how much of the transfer hid behind compute, a trace for Perfetto, a picture) is
computed from these, and only when asked for: recording is one append, so it does not disturb what
it measures.

Times are integer nanoseconds of `time.perf_counter_ns`, or of a simulated clock. A byte per
nanosecond is a GB/s.
"""

import json
import os
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

LANES = ("fetch", "compute", "drain", "update")
STALL = "stall"  # stands in a record's lane; stalls share one list with the events
COMPILER = "compiler"  # the cause of the stalls in which a kernel is compiled, at its first use
BEGINNING, END = -(2**63), 2**63 - 1  # of time


class Event(NamedTuple):
    """A piece of work in a lane, from `start` to `end` (nanoseconds)."""

    lane: str
    name: str
    start: int
    end: int
    bytes: int = 0
    flops: int = 0
    step: int = 0


class Total(NamedTuple):
    """What a lane did since the beginning; `busy` in seconds."""

    count: int
    bytes: int
    flops: int
    busy: float


@dataclass
class Step:
    """One step, in seconds and bytes. Without its oldest events, if not `whole`."""

    step: int
    wall: float  # from the first start to the last end
    busy: dict[str, float]  # lane -> seconds
    stalls: dict[str, float]  # cause -> seconds
    bytes: dict[str, int]  # lane -> bytes
    whole: bool


def covered(records: list[tuple], since: int = BEGINNING, until: int = END) -> int:
    """Nanoseconds between `since` and `until` in which at least one of `records` ran."""
    if not records:
        return 0
    starts = np.array([r[2] for r in records], np.int64).clip(since, until)
    ends = np.array([r[3] for r in records], np.int64).clip(since, until)
    order = np.argsort(starts, kind="stable")
    starts, ends = starts[order], ends[order]
    starts[1:] = np.maximum(starts[1:], np.maximum.accumulate(ends)[:-1])  # what is not yet covered
    return int(np.maximum(ends - starts, 0).sum())


def busy(records: list[tuple], lane: str, since: int = BEGINNING, until: int = END) -> int:
    """Nanoseconds in which `lane` worked. An op that waits in its midst does not compute then."""
    causes = {"compute": None, "update": (COMPILER,)}.get(lane, ())
    pauses = [r for r in records if r[0] == STALL and (causes is None or r[1] in causes)]
    work = [r for r in records if r[0] == lane]
    return covered(work + pauses, since, until) - covered(pauses, since, until)


def overlap(records: list[tuple]) -> float | None:
    """The fraction of transfer time in which compute ran; None without transfers.

    With transfers T, ops C and pauses P, as sets of instants, and |.| for their duration, it is
    |T ∩ C - P| / |T|, and |T ∩ C - P| = |T ∪ P| + |C ∪ P| - |T ∪ C ∪ P| - |P|.
    """
    transfers = [r for r in records if r[0] in ("fetch", "drain")]
    ops = [r for r in records if r[0] == "compute"]
    pauses = [r for r in records if r[0] == STALL]
    total = covered(transfers)
    hidden = covered(transfers + pauses) + covered(ops + pauses)
    hidden -= covered(transfers + ops + pauses) + covered(pauses)
    return hidden / total if total else None


def stalls_by_cause(records: list[tuple]) -> Counter[str]:
    """Cause -> nanoseconds."""
    causes: Counter[str] = Counter()
    for lane, cause, start, end, *_ in records:
        if lane == STALL:
            causes[cause] += end - start
    return causes


def amounts(records: list[tuple], lane: str) -> tuple[int, int, int]:
    """Number, bytes and FLOPs of a lane's events."""
    mine = [r for r in records if r[0] == lane]
    return len(mine), sum(r[4] for r in mine), sum(r[5] for r in mine)


def rows(records: list[tuple]) -> list[list[tuple]]:
    """Records in rows in which any two are apart or one inside the other.

    Trace viewers drop what overlaps in any other way, as the work of two threads in one lane does.
    """
    placed: list[list[tuple]] = [[]]
    running: list[list[int]] = [[]]  # per row, the ends of what is still open, outermost first
    for record in sorted(records, key=lambda r: (r[2], -r[3])):
        start, end = record[2:4]
        for ends in running:
            while ends and ends[-1] <= start:
                ends.pop()
        fits = (i for i, ends in enumerate(running) if not ends or end <= ends[-1])
        i = next(fits, len(running))
        if i == len(running):
            placed.append([])
            running.append([])
        placed[i].append(record)
        running[i].append(end)
    return placed


class Timeline:
    """Events and stalls of a chip, recorded from any thread.

    Keeps at most `limit` records. When there are more, the oldest half is dropped, once it is part
    of the totals: `totals()`, `stall_seconds()` and `wall()` speak of the whole run, everything
    else of the records that are left, and `dropped` says how many are not.
    """

    def __init__(self, limit: int = 200_000) -> None:
        if limit < 1:
            raise ValueError(f"a timeline keeps at least one record, not limit={limit}")
        self.limit = limit
        self.step = 0
        self.dropped = 0
        # Plain tuples in the order of Event's fields: the garbage collector stops tracking them.
        self._records: list[tuple] = []
        self._lock = threading.Lock()  # of everything below; appending needs none
        self._totals = {lane: [0, 0, 0, 0] for lane in LANES}  # of what was dropped; busy in ns
        self._seams = dict.fromkeys(LANES, BEGINNING)  # busy time is in _totals up to here
        self._stalls: Counter[str] = Counter()
        self._began = END
        self._first_whole_step = 0

    def record(
        self, lane: str, name: str, start: int, end: int, bytes: int = 0, flops: int = 0
    ) -> None:
        """Adds an event of the current step; `start` and `end` in nanoseconds."""
        if lane not in LANES:
            raise ValueError(f"no lane {lane!r}: a chip has {', '.join(LANES)}")
        self._append((lane, name, start, end, bytes, flops, self.step))

    def stall(self, cause: str, start: int, end: int) -> None:
        """Adds a wait of the compute thread for `cause`; `start` and `end` in nanoseconds."""
        self._append((STALL, cause, start, end, 0, 0, self.step))

    def next_step(self) -> None:
        with self._lock:
            self.step += 1

    def _append(self, record: tuple) -> None:
        if record[3] < record[2]:
            raise ValueError(f"{record[1]!r} ends at {record[3]}, before its start at {record[2]}")
        records = self._records
        records.append(record)
        # Never waits for the lock. Its holder may be this very thread: a finalizer that the garbage
        # collector runs amid `_drop` may record, too. What is over the limit then goes next time.
        if len(records) > self.limit and self._lock.acquire(blocking=False):
            try:
                self._drop()
            finally:
                self._lock.release()

    def _drop(self) -> None:
        """Moves the older half of the records into the totals."""
        count = (len(self._records) + 1) // 2
        old = self._records[:count]
        del self._records[:count]  # other threads append at the other end
        self.dropped += count
        self._began = min(self._began, *(r[2] for r in old))
        self._first_whole_step = max(self._first_whole_step, 1 + max(r[6] for r in old))
        self._stalls.update(stalls_by_cause(old))
        # Work that overlaps counts once, also where one part is dropped and another kept: a lane's
        # busy time is settled up to the end of what it drops, by all that is known by now.
        everything = old + self._records
        for lane, total in self._totals.items():
            before = self._seams[lane]
            seam = max((r[3] for r in old if r[0] == lane), default=before)
            settled = 0
            if seam > before:
                concerned = [r for r in everything if r[2] < seam and r[0] in (lane, STALL)]
                settled = busy(concerned, lane, before, seam)
                self._seams[lane] = seam
            for i, amount in enumerate((*amounts(old, lane), settled)):
                total[i] += amount

    def _select(self, step: int | None = None) -> list[tuple]:
        with self._lock:
            records = self._records[:]
        return records if step is None else [r for r in records if r[6] == step]

    @property
    def events(self) -> list[Event]:
        """The events that are kept, in the order they were recorded."""
        return [Event._make(r) for r in self._select() if r[0] != STALL]

    @property
    def stalls(self) -> list[tuple[str, int, int, int]]:
        """The stalls that are kept, as (cause, start, end, step)."""
        return [(r[1], r[2], r[3], r[6]) for r in self._select() if r[0] == STALL]

    def totals(self) -> dict[str, Total]:
        """Per lane, all it ever did. Work that overlaps within the lane is busy time once."""
        with self._lock:
            records, seams = self._records[:], dict(self._seams)
            dropped = {lane: tuple(total) for lane, total in self._totals.items()}
        result = {}
        for lane, old in dropped.items():
            kept = (*amounts(records, lane), busy(records, lane, since=seams[lane]))
            count, moved, flops, ns = (a + b for a, b in zip(old, kept, strict=True))
            result[lane] = Total(count, moved, flops, ns / 1e9)
        return result

    def stall_seconds(self) -> dict[str, float]:
        """Per cause, how long the compute thread ever waited for it."""
        with self._lock:
            causes, records = self._stalls.copy(), self._records[:]
        causes.update(stalls_by_cause(records))
        return {cause: waited / 1e9 for cause, waited in causes.items()}

    def wall(self) -> float:
        """Seconds from the first start to the last end there ever was."""
        with self._lock:
            records, began = self._records[:], self._began
        if not records:
            return 0.0
        return (max(r[3] for r in records) - min(began, *(r[2] for r in records))) / 1e9

    def busy(self, lane: str, step: int | None = None) -> float:
        """Seconds in which `lane` had work: events that overlap count once, stalls not at all."""
        if lane not in LANES:
            raise ValueError(f"no lane {lane!r}: a chip has {', '.join(LANES)}")
        return busy(self._select(step), lane) / 1e9

    def overlap(self, step: int | None = None) -> float | None:
        """The fraction of transfer time (fetch or drain) in which compute ran, too.

        None if nothing was transferred.
        """
        return overlap(self._select(step))

    def steps(self) -> list[Step]:
        """What each step took, oldest first."""
        by_step: dict[int, list[tuple]] = {}
        for record in self._select():
            by_step.setdefault(record[6], []).append(record)
        return [self._summary(step, by_step[step]) for step in sorted(by_step)]

    def _summary(self, step: int, records: list[tuple]) -> Step:
        return Step(
            step=step,
            wall=(max(r[3] for r in records) - min(r[2] for r in records)) / 1e9,
            busy={lane: busy(records, lane) / 1e9 for lane in LANES},
            stalls={cause: ns / 1e9 for cause, ns in stalls_by_cause(records).items()},
            bytes={lane: amounts(records, lane)[1] for lane in LANES},
            whole=step >= self._first_whole_step,
        )

    def chrome_trace(self, path: str | os.PathLike[str] | None = None) -> str | None:
        """Chrome's trace-event JSON, which ui.perfetto.dev and chrome://tracing open.

        Returned, or with `path` written there: whoever looks sees the old file or all of the other.
        """
        text = json.dumps({"traceEvents": trace_events(self._select()), "displayTimeUnit": "ms"})
        if path is None:
            return text
        path = Path(path)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            with open(partial, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        return None

    def svg(self, step: int | None = None, width: int = 900) -> str:
        """A picture of one step, by default the last that is over; `width` in pixels."""
        from .timeline_svg import draw

        records = self._select()
        if step is None:
            known = {r[6] for r in records}
            over = [s for s in known if self._first_whole_step <= s < self.step]
            step = max(over or known, default=self.step)
        records = [r for r in records if r[6] == step]
        if not records:
            why = "its events were dropped" if step < self._first_whole_step else "no events yet"
            return draw([], [], None, None, f"step {step}: {why}", width)
        return draw(
            [Event._make(r) for r in records if r[0] != STALL],
            [(r[1], r[2], r[3]) for r in records if r[0] == STALL],
            self._summary(step, records),
            overlap(records),
            f"step {step}",
            width,
        )

    def _repr_svg_(self) -> str:
        return self.svg()


def trace_events(records: list[tuple]) -> list[dict[str, Any]]:
    """One process, a named thread per lane (more where work overlaps), times in microseconds."""
    origin = min((r[2] for r in records), default=0)
    about = {"ph": "M", "pid": 1}
    events: list[dict[str, Any]] = [{**about, "name": "process_name", "args": {"name": "chip"}}]
    thread = 0
    for lane in LANES:
        here = (lane, STALL) if lane == "compute" else (lane,)
        for i, row in enumerate(rows([r for r in records if r[0] in here])):
            thread += 1
            name = {"name": f"{lane} {i + 1}" if i else lane}
            order = {"sort_index": thread}
            events.append({**about, "tid": thread, "name": "thread_name", "args": name})
            events.append({**about, "tid": thread, "name": "thread_sort_index", "args": order})
            for kind, title, start, end, moved, flops, step in row:
                args: dict[str, Any] = {"step": int(step)}
                if kind != STALL:
                    args |= {"bytes": int(moved), "flops": int(flops)}
                    args["GB/s"] = round(float(moved / (end - start)), 3) if end > start else None
                events.append(
                    {
                        "ph": "X",
                        "pid": 1,
                        "tid": thread,
                        "name": f"wait for {title}" if kind == STALL else str(title),
                        "cat": kind,
                        "ts": int(start - origin) / 1000,
                        "dur": int(end - start) / 1000,
                        "args": args,
                    }
                )
    return events
