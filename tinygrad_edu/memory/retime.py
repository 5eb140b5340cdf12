"""A run that was recorded, on the virtual clock: what if its links or its ops were faster?"""

import bisect
import itertools
from dataclasses import dataclass

from .timeline import Timeline


@dataclass(frozen=True)
class Retimed:
    """Seconds per step: as recorded, and on the virtual clock."""

    recorded: list[float]
    retimed: list[float]


def measured_rates(timeline: Timeline) -> dict[str, float]:
    """Bytes per second of each lane that moved any, while it was at work."""
    found = {lane: timeline.totals()[lane] for lane in ("fetch", "drain", "update")}
    took = {lane: total for lane, total in found.items() if total.bytes and total.busy}
    return {lane: total.bytes / total.busy for lane, total in took.items()}


def retime(
    timeline: Timeline,
    fetch: float | None = None,
    drain: float | None = None,
    update: float | None = None,
    compute: float = 1.0,
) -> Retimed:
    """When the events of a chip would have happened at other rates, in the order they did.

    fetch, drain, update: bytes/s; None keeps every duration. compute: how many times as fast ops
    are. What a recording does not say is assumed: the thread that computes also runs the updates,
    and what it does between two ops takes as long as it did; a transfer begins when the one before
    is over and that thread has come as far as it had when the transfer began; weights are needed by
    the first op that began after they arrived, and gradients have to be out by the first update
    after they were; a wait that no transfer explains lasts as long as it did. So slower links come
    out somewhat too slow: a fetch that was early is granted no slack.
    """
    for name, rate in (
        ("fetch", fetch),
        ("drain", drain),
        ("update", update),
        ("compute", compute),
    ):
        if rate is not None and not 0 < rate < float("inf"):
            raise ValueError(f"{name} must be a finite rate above 0, got {rate!r}")
    events, stalls = timeline.events, _waits(timeline)
    ops = [event for event in events if event.lane == "compute"]
    updates = [event for event in events if event.lane == "update"]
    if not ops:
        raise ValueError("this timeline has no op to re-time: record at least one step")
    speed = {"compute": compute}
    if update is not None and updates:
        speed["update"] = update / measured_rates(timeline).get("update", update)

    marks: list[tuple[int, int, str, object]] = []  # time, order at one time, what, of what
    for doing in (*ops, *updates):
        marks.append((doing.start, 2, "begins", doing.lane))
        marks.append((doing.end, 0, "ends", doing.lane))
    explained = set()
    for lane, rate, needed_by in (("fetch", fetch, ops), ("drain", drain, updates)):
        transfers = [event for event in events if event.lane == lane]
        ends = sorted(event.end for event in transfers)
        lags = {}  # end of a transfer -> how much later the thread that waited for it went on
        for cause, start, end in stalls:
            last = bisect.bisect_right(ends, end)
            if cause == lane and last and ends[last - 1] >= start:
                lags[ends[last - 1]] = end - ends[last - 1]
                explained.add((cause, start, end))
        resumes = sorted({e.start for e in needed_by} | {end + lag for end, lag in lags.items()})
        for event in sorted(transfers, key=lambda event: event.start):
            took = event.end - event.start
            if rate is not None and event.bytes:
                took = round(event.bytes * 10**9 / rate)
            marks.append((event.start, 4, "leaves", (lane, took, event)))
            place = bisect.bisect_left(resumes, event.end)
            if place < len(resumes):
                order = 3 if event.start < resumes[place] else 5
                needed = (event, lags.get(event.end, 0))
                marks.append((resumes[place], order, "needed", needed))
    for stall in stalls:
        kind = "waits" if stall in explained else "pauses"
        marks.append((stall[1], 2, "begins", kind))
        marks.append((stall[2], 1, "ends", kind))
    whole = {step.step for step in timeline.steps() if step.whole}
    first: dict[int, int] = {}  # step -> when its first op began
    for op in ops:
        first[op.step] = min(op.start, first.get(op.step, op.start))
    marks += [(start, 6, "step", step) for step, start in first.items()]
    marks.sort(key=lambda mark: mark[:2])
    return _replay(marks, speed, whole)


def _waits(timeline: Timeline) -> list[tuple[str, int, int]]:
    """Cause, start and end; those for a fetch and for its buffer are one wait where they touch."""
    waits: list[tuple[str, int, int]] = []
    for cause, start, end, _ in sorted(timeline.stalls, key=lambda stall: stall[1:3]):
        cause = "fetch" if cause == "slots" else cause
        if waits and (waits[-1][0], waits[-1][2]) == (cause, start):
            start = waits.pop()[1]
        waits.append((cause, start, end))
    return waits


def _replay(marks: list[tuple], speed: dict[str, float], whole: set[int]) -> Retimed:
    """Walks the marks, carrying the virtual time of the thread that computes and of both links."""
    now, at, wait_began = 0, marks[0][0], 0
    depth = dict.fromkeys(("waits", "pauses", "update", "compute"), 0)
    over = {"fetch": (0, 0), "drain": (0, 0)}  # end of a link's last transfer: recorded, virtual
    arrives: dict[int, int] = {}
    steps: list[tuple[int, int, int]] = []  # step, its beginning as recorded, and virtual
    for time, _, what, of in marks:
        doing = next((kind for kind, count in depth.items() if count), "between")
        if doing != "waits":
            now += round((time - at) / speed.get(doing, 1.0))
        at = time
        if what == "begins":
            wait_began = time if of == "waits" and not depth["waits"] else wait_began
            depth[of] += 1
        elif what == "ends":
            depth[of] -= 1
        elif what == "leaves":
            lane, took, event = of
            recorded, free = over[lane]
            # While the thread waits, what passes before the link begins is the link's own delay.
            delay = time - max(wait_began, recorded) if depth["waits"] else 0
            arrives[id(event)] = max(now, free) + max(0, delay) + took
            over[lane] = (event.end, arrives[id(event)])
        elif what == "needed":
            event, lag = of
            now = max(now, arrives[id(event)] + lag)
        else:
            steps.append((of, time, now))
    steps.append((-1, at, now))
    pairs = [(a, b) for a, b in itertools.pairwise(steps) if a[0] in whole]
    return Retimed(
        [(b[1] - a[1]) / 1e9 for a, b in pairs],
        [(b[2] - a[2]) / 1e9 for a, b in pairs],
    )
