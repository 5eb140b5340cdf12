"""What a step runs on: rates, sizes and prices of a chip and of the memory beside it.

A `Hardware` is a record of numbers that the virtual clock divides by, and every number says where
it comes from. *Confirmed* ones were read in a public source; the others are commonly quoted,
derived, or plain assumptions, and are there to be overridden:

    hardware("cs2")                                     a preset
    hardware("a100x16")                                 sixteen of them
    hardware("cs2").but(bandwidth="300GB", chips=64)    other numbers
    hardware("this-machine")                            measured here, once

Peaks are dense ones: 62.5 and 125 PF, as CS-2 and CS-3 are often quoted, count zeros that are
skipped, and so do the doubled figures of GPUs. Units are bytes, seconds, FLOPs, watts and dollars.
"""

import contextlib
import dataclasses
import difflib
import math
import numbers
import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .sizes import parse_size

PRECISIONS = ("fp32", "bf16", "fp16")
THIS_MACHINE = "this-machine"


class Source(NamedTuple):
    """Where a number comes from; `confirmed` if it was read in a public source."""

    text: str
    confirmed: bool


GIVEN = Source("given by the user", False)
ONE = Source("one chip, unless said otherwise", False)


@dataclass(frozen=True)
class Hardware:
    """One kind of chip, how many of them, and their external memory. ValueError if impossible.

    sources: Source by field; that of a peak is at "peak.bf16" and the like.
    """

    name: str
    peak: dict[str, float] = field(hash=False)  # dense FLOP/s by precision
    achieved: float  # the fraction of the peak that matrix products reach
    memory: int  # bytes on one chip
    memory_bandwidth: float | None  # bytes/s between compute and that memory; None: no limit
    bandwidth: float  # bytes/s between external memory and one chip, each way
    latency: float  # seconds until a byte that was sent arrives, per hop
    optimizer_bandwidth: float  # bytes/s that the update reads and writes; one memory for all chips
    chips: int = 1
    watts: float | None = None  # of one chip's system
    dollars_per_hour: float | None = None  # for one chip
    overhead: float = 0.0  # seconds per op, whatever it computes
    transfer_overhead: float = 0.0  # seconds of the computing thread per weight or gradient moved
    mapping_bandwidth: float | None = None  # bytes/s of fresh memory; None: it costs nothing
    shared_cores: bool = False  # the update runs on the cores that compute: they take turns
    sources: dict[str, Source] = field(default_factory=dict, hash=False, repr=False)

    def __post_init__(self) -> None:
        if not self.peak:
            raise ValueError("peak is empty: give FLOP/s by precision, such as peak={'fp32': 1e12}")
        for precision, rate in self.peak.items():
            if precision not in PRECISIONS:
                known = ", ".join(PRECISIONS)
                raise ValueError(f"peak has no precision {precision!r}: choose one of {known}")
            check(f"peak.{precision}", rate)
        for name in LIMITS:
            if name != "peak":
                check(name, value := getattr(self, name))
                if LIMITS[name][0] == COUNT:  # given as 40e9, say
                    object.__setattr__(self, name, int(value))

    @property
    def several(self) -> str:
        """How many of what, as in "16 x a100", whether that was their name ("a100x16") or not."""
        return f"{self.chips} x {re.sub(r'x[0-9]+$', '', self.name)}"

    def peak_of(self, precision: str) -> float:
        """Dense FLOP/s of one chip in that precision; ValueError if there is no figure for it."""
        if precision not in self.peak:
            raise ValueError(
                f"{self.name} has no peak for precision {precision!r}: choose one of "
                f"{', '.join(self.peak)}, or give peak={{{precision!r}: FLOP/s}}"
            )
        return self.peak[precision]

    def but(self, **changes: Any) -> "Hardware":
        """The same with other numbers, as numbers or text ("150GB", "1e-5"); None: no limit, or
        not known. `peak` is a dict by precision, or one number for every precision there is."""
        values: dict[str, Any] = {}
        sources = dict(self.sources)
        for name, given in changes.items():
            if name not in CHANGEABLE:
                raise ValueError(f"hardware has no field {name!r}{choices(name, CHANGEABLE)}")
            if name == "peak":
                peaks = given if isinstance(given, dict) else dict.fromkeys(self.peak, given)
                values[name] = self.peak | {p: as_number(f"peak.{p}", v) for p, v in peaks.items()}
                sources |= {f"peak.{precision}": GIVEN for precision in peaks}
                continue
            values[name] = given if name in ("name", "shared_cores") else as_number(name, given)
            sources[name] = GIVEN
        return dataclasses.replace(self, **values, sources=sources)


CHANGEABLE = [f.name for f in dataclasses.fields(Hardware) if f.name != "sources"]
ABOVE, FROM, PART, COUNT = "above 0", "at least 0", "above 0 and at most 1", "a whole number >= 1"
RATE = 'bytes per second, such as 150e9 or "150GB"'
LIMITS = {  # field -> what it must be, what to give
    "peak": (ABOVE, "dense FLOP/s, such as 312e12"),
    "achieved": (PART, "a fraction of the peak, such as 0.4"),
    "memory": (COUNT, 'bytes, such as 40e9 or "40GB"'),
    "memory_bandwidth": (ABOVE, f"{RATE}, or None for no limit"),
    "bandwidth": (ABOVE, RATE),
    "latency": (FROM, "seconds, such as 1e-5"),
    "optimizer_bandwidth": (ABOVE, RATE),
    "chips": (COUNT, "how many chips share the work, such as 16"),
    "watts": (FROM, "watts of one chip, or None if not known"),
    "dollars_per_hour": (FROM, "dollars for one chip and hour, or None if not known"),
    "overhead": (FROM, "seconds per op, such as 1e-5"),
    "transfer_overhead": (FROM, "seconds per weight or gradient moved, such as 1e-5"),
    "mapping_bandwidth": (ABOVE, f"{RATE}, or None if fresh memory costs nothing"),
}
MAY_BE_NONE = ("memory_bandwidth", "mapping_bandwidth", "watts", "dollars_per_hour")
HELD = {
    ABOVE: lambda value: value > 0,
    FROM: lambda value: value >= 0,
    PART: lambda value: 0 < value <= 1,
    COUNT: lambda value: value >= 1 and float(value).is_integer(),
}


def check(name: str, value: Any) -> None:
    """ValueError unless `value` can be that of field `name`."""
    if value is None and name in MAY_BE_NONE:
        return
    must, give = LIMITS[name.split(".")[0]]
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not HELD[must](value):
        raise ValueError(f"{name} must be {must}, got {value!r}: give {give}")


def as_number(name: str, given: Any) -> int | float | None:
    """A checked number for field `name`, from a number, text or None."""
    value = given
    if isinstance(given, str):
        try:
            value = float(given)
        except ValueError:
            if name.endswith(("memory", "bandwidth")):  # sizes, also written "150GB/s"
                with contextlib.suppress(ValueError):
                    value = parse_size(given.removesuffix("/s"))
    check(name, value)
    return int(value) if LIMITS[name.split(".")[0]][0] == COUNT else value


def choices(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(str(name), known, 1, 0.5)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return f"{hint}: choose one of {', '.join(known)}"


def hardware(name: str) -> Hardware:
    """A preset by name, or several of them ("a100x16"); ValueError names the known ones."""
    several = re.fullmatch(r"(.+?)x(-?\d+)", name)
    kind, chips = (several[1], int(several[2])) if several else (name, 1)
    if kind == THIS_MACHINE:
        from .calibrate import this_machine

        found = this_machine()
    elif kind in PRESETS:
        found = PRESETS[kind]
    else:
        raise ValueError(f"unknown hardware {name!r}{choices(kind, [*PRESETS, THIS_MACHINE])}")
    return found.but(name=name, chips=chips) if several else found


def preset(name: str, **numbers: tuple[Any, str, bool]) -> Hardware:
    """Fields as (value, source, confirmed); `fp16` and so on are peaks."""
    peak = {p: numbers[p][0] for p in PRECISIONS if p in numbers}
    sources = {
        f"peak.{field}" if field in PRECISIONS else field: Source(text, confirmed)
        for field, (_, text, confirmed) in numbers.items()
    }
    fields = {field: value for field, (value, _, _) in numbers.items() if field not in PRECISIONS}
    free = Source("assumed: launching an op, or a transfer, takes no time", False)
    rest = {"chips": ONE, "overhead": free, "transfer_overhead": free}
    return Hardware(name, peak, **fields, sources=rest | sources)


def wafer(name: str, pflops: tuple[float, str, bool], memory: tuple, inside: tuple, watts: tuple):
    """A Cerebras system. Its MemoryX runs the optimizer on processors of its own."""
    rate, text, confirmed = pflops
    return preset(
        name,
        fp16=(rate * 1e15, text, confirmed),
        bf16=(rate * 1e15, "taken as equal to fp16", False),
        achieved=(0.3, "a public price list implies about 20 %; 20 to 40 % is plausible", False),
        memory=memory,
        memory_bandwidth=inside,
        bandwidth=(150e9, "12 x 100 Gb Ethernet", True),
        latency=(1e-5, "assumed: a network hop", False),
        optimizer_bandwidth=(
            2.1e12,
            "assumed: MemoryX keeps pace with 16-bit gradients at 150 GB/s, and AdamW moves 28 "
            "bytes per 2 of gradient",
            False,
        ),
        watts=watts,
    )


def gpu(name: str, fp32: float, bf16: tuple, achieved: tuple, memory: tuple, inside: tuple,
        pcie: int, host: tuple, watts: float, dollars: tuple) -> Hardware:  # fmt: skip
    """An NVIDIA GPU whose external memory is its host's, behind PCIe x16."""
    return preset(
        name,
        fp32=(fp32, "data sheet, outside the tensor cores; commonly quoted", False),
        bf16=bf16,
        fp16=bf16,
        achieved=achieved,
        memory=memory,
        memory_bandwidth=inside,
        bandwidth=({4: 25e9, 5: 50e9}[pcie], f"PCIe {pcie} x16, one way; commonly quoted", False),
        latency=(1e-5, "assumed: a copy's start over PCIe", False),
        optimizer_bandwidth=host,
        watts=(watts, "data sheet, the GPU alone; commonly quoted", False),
        dollars_per_hour=dollars,
    )


SHEET = "NVIDIA's data sheet, as commonly quoted"
HOPPER = (989.5e12, "NVIDIA's data sheet, dense; published MFU recomputes with it", True)
HOPPER_ACHIEVED = (0.4, "llm-foundry on H100 publishes MFU of 40 to 43 %", False)
DDR5 = (300e9, "assumed: one host's 8 channels of DDR5-4800", False)

PRESETS = {
    found.name: found
    for found in (
        wafer(
            "cs1",
            (3.5, "derived: CS-2's peak by number of cores", False),
            (18 * 10**9, "Cerebras: 18 GB of SRAM", True),
            (9e15, "Cerebras: 9 PB/s", True),
            (20e3, "Cerebras: about 20 kW", True),
        ),
        wafer(
            "cs2",
            (7.5, "Andromeda: 16 CS-2 are 120 PF dense", True),
            (40 * 10**9, "Cerebras: 40 GB of SRAM", True),
            (20e15, "Cerebras: 20 PB/s", True),
            (31e3, "derived: Andromeda's 500 kW by 16", False),
        ),
        wafer(
            "cs3",
            (15, "derived: twice CS-2, as announced", False),
            (44 * 10**9, "Cerebras: 44 GB of SRAM", True),
            (21e15, "Cerebras: 21 PB/s", True),
            (23e3, "about 23 kW, from secondary sources", True),
        ),
        gpu(
            "a100",
            19.5e12,
            (312e12, "NVIDIA's data sheet, dense; published MFU recomputes with it", True),
            (0.55, "llm-foundry on A100 publishes MFU of 45 to 64 %", False),
            (80 * 10**9, f"{SHEET}: SXM, 80 GB", False),
            (2.04e12, SHEET, False),
            4,
            (200e9, "assumed: one host's 8 channels of DDR4-3200", False),
            400,
            (1.57, "the middle of 1.39 to 1.75, early 2026", False),
        ),
        gpu(
            "h100",
            67e12,
            HOPPER,
            HOPPER_ACHIEVED,
            (80 * 10**9, f"{SHEET}: SXM, 80 GB", False),
            (3.35e12, SHEET, False),
            5,
            DDR5,
            700,
            (3.1, "the middle of 2.69 to 3.50, early 2026", False),
        ),
        gpu(
            "h200",
            67e12,
            HOPPER,
            (0.4, "taken as equal to H100", False),
            (141 * 10**9, f"{SHEET}: 141 GB", False),
            (4.8e12, SHEET, False),
            5,
            DDR5,
            700,
            (3.59, "early 2026", False),
        ),
        preset(
            "laptop",
            fp32=(7.5e11, "assumed: 8 cores, 3 GHz, two 256-bit FMA; measure yours", False),
            achieved=(0.7, "assumed; measure yours", False),
            memory=(16 * 10**9, "assumed: 16 GB of RAM", False),
            memory_bandwidth=(40e9, "assumed: two channels of DDR4 or DDR5", False),
            bandwidth=(10e9, "assumed: copies from RAM; an SSD gives 2 to 5 GB/s", False),
            latency=(0.0, "assumed: a copy starts at once", False),
            optimizer_bandwidth=(30e9, "assumed: RAM, with some loss", False),
            watts=(45.0, "assumed", False),
            overhead=(3e-5, "assumed: this engine, in Python", False),
            transfer_overhead=(5e-5, "assumed: this engine, in Python", False),
            mapping_bandwidth=(4e9, "assumed: page faults that zero their pages", False),
            shared_cores=(True, "this engine updates on the cores that compute", True),
        ),
    )
}
