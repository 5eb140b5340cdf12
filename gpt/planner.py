"""How long is a step, does it fit, what limits it: a GPT's step on the virtual clock of a hardware.

The step's work comes from rehearsing the real model (`plan_works`), its time from playing that
work on the hardware's numbers (`tinygrad_edu.memory.clock`). A chip takes its share of the batch in
as few passes as its memory allows, of at most a million tokens and alike up to one sequence; each
streams all weights, and the update comes after the last.
"""

import bisect
import dataclasses
import math
from dataclasses import dataclass

from tinygrad_edu.memory.clock import Playback, Work, play
from tinygrad_edu.memory.hardware import Hardware

from . import scaling
from .model import GPTConfig
from .plan_works import VALUE_BYTES, Need, need, step_works

PLAYED = 2  # passes that are played; further ones take as long as the last of these
MOST = 1 << 20  # tokens of a pass: to rehearse so many takes some seconds, and more are no faster


@dataclass(frozen=True)
class Job:
    """A model and how it is to be trained. `sequences` and `tokens`: per step, and in all."""

    model: GPTConfig
    sequences: int
    tokens: float
    precision: str = "fp32"
    recompute: bool | None = None  # None: only if needed
    clip: bool = True
    resident: bool = False  # everything in the chip's own memory, nothing streams

    @property
    def tokens_per_step(self) -> int:
        return self.sequences * self.model.block_size


@dataclass(frozen=True)
class Plan:
    """The answer for one hardware. Seconds, bytes, dollars and kilowatt-hours."""

    job: Job
    hardware: Hardware
    parameters: int
    flops_per_token: float
    recompute: bool
    sequences_per_pass: int  # on one chip, at most
    passes: int
    need: Need
    playback: Playback
    step_seconds: float
    fits: bool
    smallest: int  # bytes on a chip that one sequence needs, with recompute if that is allowed
    measured: bool = False  # `step_seconds` was measured, not planned

    @property
    def tokens_per_second(self) -> float:
        return scaling.tokens_per_second(self.job.tokens_per_step, self.step_seconds)

    @property
    def mfu(self) -> float:
        """Of the dense peak; operations of a recompute do not count."""
        peak = self.hardware.peak_of(self.job.precision)
        work = self.flops_per_token
        return scaling.mfu(self.tokens_per_second, work, peak, self.hardware.chips)

    @property
    def days(self) -> float:
        return scaling.days(self.job.tokens, self.tokens_per_second)

    @property
    def cost_dollars(self) -> float | None:
        rate = self.hardware.dollars_per_hour
        return None if rate is None else scaling.dollars(self.days, rate, self.hardware.chips)

    @property
    def energy_kwh(self) -> float | None:
        watts = self.hardware.watts
        if watts is None:
            return None
        return scaling.kilowatt_hours(self.days, watts, self.hardware.chips)

    @property
    def external_bytes(self) -> int:
        """Weights, gradients and AdamW's state in float32, beside the chip; resident: 0."""
        return 0 if self.job.resident else scaling.adamw_bytes(self.parameters).live

    @property
    def tokens_resident(self) -> int:
        """Tokens on one chip while a weight passes by."""
        return self.sequences_per_pass * self.job.model.block_size

    @property
    def break_even_tokens(self) -> float:
        """Tokens per chip and pass from which fetching hides behind the forward pass."""
        value = VALUE_BYTES[self.job.precision]
        rate = self.hardware.peak_of(self.job.precision) * self.hardware.achieved
        return scaling.break_even_tokens(value, rate, self.hardware.bandwidth)

    @property
    def limited_by(self) -> str:
        return self.playback.limited_by if self.fits else "memory"

    def as_json(self) -> dict[str, object]:
        part = self.step_seconds / self.playback.step_seconds  # of what was played
        return {
            "hardware": self.hardware.name,
            "chips": self.hardware.chips,
            "precision": self.job.precision,
            "recompute": self.recompute,
            "sequences_per_pass": self.sequences_per_pass,
            "passes": self.passes,
            "parameters": self.parameters,
            "flops_per_token": self.flops_per_token,
            "step_seconds": self.step_seconds,
            "compute_seconds": self.playback.compute_seconds * part,
            "stall_seconds": {k: v * part for k, v in self.playback.stall_seconds.items()},
            "bubble_seconds": self.playback.bubble_seconds * part,
            "tokens_per_second": self.tokens_per_second,
            "mfu": self.mfu,
            "days": self.days,
            "energy_kwh": self.energy_kwh,
            "cost_dollars": self.cost_dollars,
            "peak_chip_bytes": self.need.nbytes,
            "peak_made_of": self.need.at_peak,
            "peak_phase": self.need.phase,
            "external_bytes": self.external_bytes,
            "tokens_resident": self.tokens_resident,
            "break_even_tokens": self.break_even_tokens,
            "fits": self.fits,
            "smallest_chip_bytes": self.smallest,
            "limited_by": self.limited_by,
            "measured": self.measured,
            "impossible": self.mfu > 1,
        }


def plan(job: Job, hardware: Hardware) -> Plan:
    """The fastest way to take the step that fits: with recompute or without, in few passes.

    ValueError if one sequence alone is longer than a pass may be.
    """
    context = job.model.block_size
    if context > MOST:
        raise ValueError(f"a plan takes a context of at most {MOST:,} tokens, got {context:,}")
    share = math.ceil(job.sequences / hardware.chips)
    choices = [False, True] if job.recompute is None else [job.recompute]
    ways = [(recompute, largest_pass(job, hardware, share, recompute)) for recompute in choices]
    found = [way for way in ways if way[1]]

    def taken(way: tuple[bool, int]) -> Playback:
        recompute, most = way
        passes = math.ceil(share / most)
        smaller = passes * most - share  # so many passes have a sequence less

        def of(sequences: int) -> Playback:
            works = step_works(*one_pass(job, hardware, sequences, recompute))
            return timed(works, passes, hardware, job)

        return moved(of(most), of(most - 1), smaller / passes) if smaller else of(most)

    played = {way: taken(way) for way in found or [(choices[-1], 1)]}
    (recompute, sequences), playback = min(played.items(), key=lambda item: item[1].step_ns)
    parameters = scaling.count_parameters(job.model)
    resident = scaling.adamw_bytes(parameters).live if job.resident else 0
    smallest = need(*one_pass(job, hardware, 1, choices[-1])).nbytes
    peak = need(*one_pass(job, hardware, sequences, recompute))
    return Plan(
        job,
        hardware,
        parameters,
        scaling.flops_per_step(job.model, parameters, 1),
        recompute,
        sequences,
        math.ceil(share / sequences),
        peak.plus("weights and state", resident) if resident else peak,
        playback,
        playback.step_seconds,
        bool(found),
        smallest + resident,
    )


def one_pass(job: Job, hardware: Hardware, sequences: int, recompute: bool) -> tuple:
    """What `need` and `step_works` ask about a pass."""
    return job.model, sequences, recompute, job.precision, hardware, job.resident


def largest_pass(job: Job, hardware: Hardware, share: int, recompute: bool) -> int:
    """How many sequences one chip can take at once, of `share`; 0 if not even one."""
    room, limit = hardware.memory, MOST // job.model.block_size
    if job.resident:
        room -= scaling.adamw_bytes(scaling.count_parameters(job.model)).live

    def bytes_of(sequences: int) -> int:
        return need(*one_pass(job, hardware, sequences, recompute)).nbytes

    one = bytes_of(1)
    if one > room:
        return 0
    # What is needed grows about evenly with the sequences: guess from two, then look below.
    most = max(1, 1 + int((room - one) // max(1, bytes_of(2) - one)))
    if share <= min(2 * most, limit) and bytes_of(share) <= room:
        return share
    most = min(most, share - 1, limit)
    if bytes_of(most) > room:
        most = bisect.bisect_right(range(1, most), room, key=bytes_of)
    return math.ceil(share / math.ceil(share / most))  # passes of equal size


def timed(step: list[Work], passes: int, hardware: Hardware, job: Job) -> Playback:
    """The step of `passes` passes: where there are many, some are played, and others added."""
    ops = [w for w in step if w.phase != "update"]
    updates = [w for w in step if w.phase == "update"]
    norm_bytes = 4 * scaling.count_parameters(job.model)
    if job.resident and hardware.memory_bandwidth is not None and not hardware.shared_cores:
        # The state is where the weights are. (Measured cores update their own memory as it is.)
        hardware = hardware.but(optimizer_bandwidth=hardware.memory_bandwidth)

    def played(count: int) -> Playback:
        works: list[Work] = ops * count + updates
        return play(
            works, hardware, job.precision, clip=job.clip, norm_bytes=norm_bytes if job.clip else 0
        )

    if passes <= PLAYED:
        return played(passes)
    return moved(played(PLAYED), played(PLAYED - 1), PLAYED - passes)


def moved(one: Playback, other: Playback, part: float) -> Playback:
    """`one`, with its numbers moved by `part` of the way to those of `other`."""

    def number(name: str) -> int | dict[str, int]:
        a, b = getattr(one, name), getattr(other, name)
        if isinstance(a, dict):
            return {kind: ns + round(part * (b[kind] - ns)) for kind, ns in a.items()}
        return a + round(part * (b - a))

    names = ("step_ns", "compute_ns", "stall_ns", "bubble_ns", "busy_ns", "faster_ns")
    return dataclasses.replace(one, **{name: number(name) for name in names})
