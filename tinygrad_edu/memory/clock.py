"""The virtual clock: when would every fetch, op, drain and update of a step happen on a `Hardware`?

A step is a list of `Work` in program order. Weights come through one link into a few buffers,
gradients leave through the other direction from as many, ops run one after the other, and the
update runs in the external memory. With D buffers (`slots`), fetch b, op t, gradient g of item i,
in nanoseconds:

    arrives_i = max(arrives_{i-1}, ends_{i-D}, updated_i) + b_i
    ends_i    = max(ends_{i-1}, arrives_i + latency, leaves_{i-D}) + t_i
    leaves_i  = max(leaves_{i-1}, ends_i) + g_i

where i - D counts only those that fetch, or that drain. Clipping needs every gradient before any
update: they wait for the last one and then for the norm. Without it they follow their gradients.
Either way a step begins when the gradients of the one before are in, and its first fetch waits for
the update of its weights. That wait is the bubble, the one latency that streaming cannot hide.

    play(works, hardware("cs2"), "bf16").limited_by      "compute", say
    play(works, hardware("cs2"), "bf16").timeline()      a picture, in a notebook

Works describe the share of one chip, its batch divided already. N chips are fed by a tree of links
that copies weights on the way down and adds up gradients on the way up: every chip keeps its full
bandwidth, and a byte takes ceil(log2 N) hops more. All times are integers, so the same works on the
same hardware give the same nanoseconds everywhere.
"""

import dataclasses
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from .hardware import Hardware
from .timeline import Event, Timeline

PHASES = ("forward", "backward", "update")
LANES = ("compute", "fetch", "drain", "update")  # in the order in which a draw is decided


class Work(NamedTuple):
    """One item of a step. Items that use the same weights, and their update, have one name.

    flops: of its products; touched: bytes that it reads and writes; fetch: bytes of weights that
    must come first, 0 if they are there; drain: bytes of gradient that leave afterwards; ops: how
    many ops it stands for; transfers: how many weights are lent and gradients taken, moved or not;
    fresh: bytes of memory that it gets from the operating system, because no used block fits.
    """

    name: str
    phase: str
    flops: int = 0
    touched: int = 0
    fetch: int = 0
    drain: int = 0
    ops: int = 1
    transfers: int = 0
    fresh: int = 0


@dataclass(frozen=True)
class Playback:
    """A step in the steady state: step_ns == compute_ns + all stalls + bubble_ns.

    A stall is a wait of the compute lane amid a step: for a `fetch`, for a buffer to fetch into
    (`slots`), for gradients on their way out (`drain`), for weights not updated yet (`update`).
    The bubble is what it waits between two steps: for the last gradient, the norm, and the update
    and the fetch of the first weights (with `shared_cores`: for the whole update).
    limited_by: the lane that shortens the step most when it is twice as fast; where several hold
    it back, so that no lane alone shortens it by a twentieth, the busiest one.
    """

    step_ns: int
    compute_ns: int
    stall_ns: dict[str, int]
    bubble_ns: int
    busy_ns: dict[str, int]  # lane -> what its work takes, hidden or not
    faster_ns: dict[str, int]  # lane -> `step_ns` if that lane were twice as fast
    events: list[Event]  # of every step that was played
    stalls: list[tuple[str, int, int, int]]  # cause, start, end, step; those of the bubble, too

    @property
    def limited_by(self) -> str:
        limit = min(LANES, key=lambda lane: self.faster_ns[lane])
        if (self.step_ns - self.faster_ns[limit]) * 20 < self.step_ns:
            limit = max(LANES, key=lambda lane: self.busy_ns[lane])
        return limit

    @property
    def step_seconds(self) -> float:
        return self.step_ns / 1e9

    @property
    def compute_seconds(self) -> float:
        return self.compute_ns / 1e9

    @property
    def stall_seconds(self) -> dict[str, float]:
        return {cause: ns / 1e9 for cause, ns in self.stall_ns.items()}

    @property
    def bubble_seconds(self) -> float:
        return self.bubble_ns / 1e9

    def timeline(self) -> Timeline:
        """The same as a `Timeline`, for its picture, its trace and its sums."""
        result = Timeline(max(1, 2 * (len(self.events) + len(self.stalls))))
        by_step = sorted(self.events, key=lambda event: event.step)
        for step, events in itertools.groupby(by_step, key=lambda event: event.step):
            while result.step < step:
                result.next_step()
            for lane, name, start, end, moved, flops, _ in events:
                result.record(lane, name, start, end, moved, flops)
            for cause, start, end, at in self.stalls:
                if at == step:
                    result.stall(cause, start, end)
        result.next_step()
        return result


@dataclass(frozen=True)
class Durations:
    """What every item takes in each lane, in nanoseconds."""

    fetch: list[int]
    compute: list[int]
    drain: list[int]
    update: list[int]
    norm: int
    fetch_latency: int
    drain_latency: int

    def faster(self, lane: str) -> "Durations":
        """The same with one lane twice as fast."""
        changes = {lane: [ns // 2 for ns in getattr(self, lane)]}
        if lane == "update":
            changes["norm"] = self.norm // 2
        elif lane != "compute":
            changes[f"{lane}_latency"] = getattr(self, f"{lane}_latency") // 2
        return dataclasses.replace(self, **changes)


def play(
    works: Iterable[Work],
    hardware: Hardware,
    precision: str = "fp32",
    slots: int = 2,
    clip: bool = True,
    norm_bytes: int | None = None,
    steps: int = 2,
) -> Playback:
    """Plays `steps` steps and reports the last, which for `steps=1` begins with all weights ready.

    slots: buffers for weights on their way in, and as many for gradients on their way out; clip:
    whether updates wait for the norm of all gradients, which reads `norm_bytes` (default: all that
    drained) at the optimizer's bandwidth. Bytes are bytes: a lower precision has fewer, and a
    higher peak.
    """
    works = list(works)
    check(works, slots, steps)
    ops = [work for work in works if work.phase != "update"]
    updates = [work for work in works if work.phase == "update"]
    if norm_bytes is None:
        norm_bytes = sum(op.drain for op in ops)
    durations = durations_on(hardware, precision, ops, updates, norm_bytes)
    orders = [updates] if clip else [updates, as_they_leave(ops, updates)]

    def run(changed: Durations) -> "Run":
        # Without clipping nothing decides an order but which one makes the step shorter.
        places = {id(work): ns for work, ns in zip(updates, changed.update, strict=True)}
        runs = []
        for order in orders:
            sorted_too = dataclasses.replace(changed, update=[places[id(work)] for work in order])
            runs.append(Run(ops, order, sorted_too, slots, clip, hardware.shared_cores))
            runs[-1].play(steps)
        return min(runs, key=lambda found: found.step_ns)

    found = run(durations)
    busy_ns = {lane: sum(getattr(durations, lane)) for lane in LANES}
    busy_ns["update"] += durations.norm if clip else 0
    return Playback(
        step_ns=found.step_ns,
        compute_ns=sum(durations.compute),
        stall_ns=found.stall_ns,
        bubble_ns=found.step_ns - sum(durations.compute) - sum(found.stall_ns.values()),
        busy_ns=busy_ns,
        faster_ns={lane: run(durations.faster(lane)).step_ns for lane in LANES},
        events=found.events,
        stalls=found.stalls,
    )


def check(works: list[Work], slots: int, steps: int) -> None:
    for what, count in (("slots", slots), ("steps", steps)):
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"{what} must be a whole number of at least 1, got {count!r}")
    if not any(work.phase != "update" for work in works):
        raise ValueError("a step needs at least one op: there is none in forward or backward")
    for work in works:
        if work.phase not in PHASES:
            raise ValueError(f"{work.name!r} has phase {work.phase!r}: use {', '.join(PHASES)}")
        if min(work[2:]) < 0:
            raise ValueError(f"{work.name!r} has a negative count: {work}")
        if work.phase == "update" and (work.flops or work.fetch or work.drain):
            raise ValueError(f"the update of {work.name!r} has only bytes touched, got {work}")


def durations_on(
    hardware: Hardware, precision: str, ops: list[Work], updates: list[Work], norm_bytes: int
) -> Durations:
    """What every op takes: the sum of its products, its bytes, its fresh memory and its overheads.
    Transfers: bytes / bandwidth."""
    flops_per_second = hardware.peak_of(precision) * hardware.achieved

    def ns(amount: float, rate: float) -> int:
        return round(amount * 10**9 / rate)

    def calls(work: Work) -> float:
        return work.ops * hardware.overhead + work.transfers * hardware.transfer_overhead

    def compute(op: Work) -> int:
        seconds = op.flops / flops_per_second + calls(op)
        if hardware.memory_bandwidth is not None:
            seconds += op.touched / hardware.memory_bandwidth
        if hardware.mapping_bandwidth is not None:
            seconds += op.fresh / hardware.mapping_bandwidth
        return round(seconds * 10**9)

    hops = 1 + (hardware.chips - 1).bit_length()  # 1 + ceil(log2(chips))
    latency = round(hops * hardware.latency * 10**9)
    return Durations(
        fetch=[ns(op.fetch, hardware.bandwidth) for op in ops],
        compute=[compute(op) for op in ops],
        drain=[ns(op.drain, hardware.bandwidth) for op in ops],
        update=[
            ns(update.touched, hardware.optimizer_bandwidth) + round(calls(update) * 10**9)
            for update in updates
        ],
        norm=ns(norm_bytes, hardware.optimizer_bandwidth),
        fetch_latency=latency,
        drain_latency=latency,
    )


def as_they_leave(ops: list[Work], updates: list[Work]) -> list[Work]:
    """The updates in the order in which their gradients are complete; those without any last."""
    last = {op.name: i for i, op in enumerate(ops) if op.drain}
    return sorted(updates, key=lambda update: last.get(update.name, len(ops)))


class Run:
    """The recurrences, step after step, in nanoseconds."""

    def __init__(
        self, ops: list[Work], updates: list[Work], durations: Durations, slots: int, clip: bool,
        shared_cores: bool,
    ) -> None:  # fmt: skip
        self.ops, self.updates, self.durations = ops, updates, durations
        self.slots, self.clip, self.shared_cores = slots, clip, shared_cores
        self.has_update = {update.name for update in updates}
        self.events: list[Event] = []
        self.stalls: list[tuple[str, int, int, int]] = []
        self.updated: dict[str, int] = {}  # name -> when its weights are the next step's
        self.all_updated = 0
        self.begin = 0  # of the step

    def play(self, steps: int) -> None:
        for self.step in range(steps):
            before = self.begin
            self.stall_ns = dict.fromkeys(("fetch", "slots", "drain", "update"), 0)
            self.arrived: dict[str, int] = {}  # name -> when its last gradient was there
            ended, arrived = self._ops()
            self._updates(ended, arrived)
            self.step_ns = self.begin - before

    def _ops(self) -> tuple[int, int]:
        """Forward and backward; when the last op ended, when the last gradient was there."""
        times, slots = self.durations, self.slots
        ended = link_free = last_left = last_arrived = self.begin
        fetchers: list[int] = []  # ends of the ops that fetched
        left: list[int] = []  # when the gradients had left
        in_bubble = True  # until the first op with weights
        for i, op in enumerate(self.ops):
            ready = self._ready(op)  # the weights, in external memory
            there, late, cause = ready, ready - ended, "update"  # the weights, on the chip
            if op.fetch:
                slot_free = fetchers[-slots] if len(fetchers) >= slots else self.begin
                start = max(link_free, slot_free, ready)
                cause = "update" if ready > slot_free else "slots"
                late = start - max(link_free, min(slot_free, ready))  # so long only for `cause`
                link_free = start + times.fetch[i]
                there = link_free + times.fetch_latency
                self._event("fetch", op.name, start, link_free, op.fetch)
            room = left[-slots] if op.drain and len(left) >= slots else self.begin
            start = max(ended, there, room)
            waited = there - ended
            waits = [(cause, min(late, waited)), ("fetch", waited), ("drain", start - ended)]
            self._wait(ended, waits, in_bubble)
            if op.fetch or op.drain or op.name in self.has_update:
                in_bubble = False
            ended = start + times.compute[i]
            self._event("compute", op.name, start, ended, op.touched, op.flops)
            if op.fetch:
                fetchers.append(ended)
            if op.drain:
                start = max(last_left, ended)
                last_left = start + times.drain[i]
                left.append(last_left)
                last_arrived = self.arrived[op.name] = last_left + times.drain_latency
                self._event("drain", op.name, start, last_left, op.drain)
        return ended, last_arrived

    def _ready(self, op: Work) -> int:
        """When the weights of an op were updated; unknown ones, with the last of all."""
        if op.name in self.has_update:
            ready = self.updated.get(op.name, 0)
        else:
            ready = self.all_updated if op.fetch else 0
        return max(self.begin, ready)

    def _updates(self, ended: int, arrived: int) -> None:
        """The update, and with it the beginning of the next step."""
        free = self.all_updated
        complete = max(ended, arrived)
        self._wait(ended, [("drain", complete - ended)], True)
        begin = complete
        if self.clip:
            start = max(free, complete)
            begin = free = start + self.durations.norm
            self._event("update", "norm", start, free)
        for update, took in zip(self.updates, self.durations.update, strict=True):
            ready = begin if self.clip else self.arrived.get(update.name, complete)
            start = max(free, ready, ended if self.shared_cores else 0)
            self.updated[update.name] = free = start + took
            self._event("update", update.name, start, free, update.touched)
        if self.shared_cores:
            begin = max(begin, free)
        self.all_updated = free
        self._wait(complete, [("update", begin - complete)], True)
        self.begin = begin

    def _event(
        self, lane: str, name: str, start: int, end: int, moved: int = 0, flops: int = 0
    ) -> None:
        self.events.append(Event(lane, name, start, end, moved, flops, self.step))

    def _wait(self, since: int, until: list[tuple[str, int]], in_bubble: bool) -> None:
        """Records waits of the compute lane: each cause lasts up to its time after `since`."""
        at = 0
        for cause, end in until:
            if end > at:
                self.stalls.append((cause, since + at, since + end, self.step))
                if not in_bubble:
                    self.stall_ns[cause] += end - at
                at = end
