"""What a chip tells: the report after a run, and the account when something does not fit."""

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from .budget import KINDS
from .external import ExternalMemory
from .sizes import show_size

if TYPE_CHECKING:
    from .chip import Chip

SAMPLE = 16 << 20  # bytes read to find out how fast the medium is
NAMES = {
    "weights": "weights in use",
    "activations": "activations",
    "workspace": "kernel workspace",
    "idle": "weights kept for the next pass",
    "leaving": "gradients on their way out",
}


def measure_ceiling(memory: ExternalMemory) -> float | None:
    """Bytes per second that the medium gives a reader who does nothing else: the best of three."""
    blob = max(memory.blobs, key=lambda blob: blob.nbytes, default=None)
    if blob is None or blob.nbytes == 0:
        return None
    buffer = np.zeros(min(SAMPLE, blob.nbytes), np.uint8)
    seconds = []
    for i in range(3):
        start = time.perf_counter()
        blob.read((blob.nbytes - buffer.nbytes) * i // 2, buffer)
        seconds.append(time.perf_counter() - start)
    ceiling = buffer.nbytes / min(seconds)
    return ceiling if memory.bandwidth is None else min(ceiling, memory.bandwidth)


def report(chip: "Chip") -> str:
    """The account of a run, in a dozen lines."""
    budget, timeline = chip.budget, chip.timeline
    steps = max(1, chip.updates)
    lines = [
        f"chip of {show_size(chip.memory)}, external memory in {chip.external.medium} "
        f"({show_size(chip.external.nbytes)})",
        f"  peak        {show_size(budget.peak)} needed at once "
        f"({budget.peak / chip.memory:.0%} of the budget), made up of",
    ]
    lines += [
        f"                {show_size(nbytes):>8}  {NAMES[kind]}"
        for kind, nbytes in sorted(budget.at_peak.items(), key=lambda item: -item[1])
        if nbytes
    ]
    lines += [
        f"  room        up to {show_size(budget.peak_by_kind[kind])} for {NAMES[kind]}"
        for kind in ("idle", "leaving")
    ]
    totals, moved = timeline.totals(), chip.bytes_moved
    ceiling = chip.ceiling
    for lane, what in (
        ("fetch", "weights to the chip"),
        ("drain", "gradients out"),
        ("update", "read and written by the optimizer"),
    ):
        busy = totals[lane].busy
        speed = f", {moved[lane] / busy / 1e9:.3g} GB/s while busy" if busy and moved[lane] else ""
        if lane == "fetch" and ceiling and speed:
            speed += f" (the medium gives {ceiling / 1e9:.3g})"
        lines.append(
            f"  {lane:<11} {show_size(moved[lane])} {what}, "
            f"{show_size(moved[lane] / steps)} per step{speed}"
        )
    stalls = {cause: s for cause, s in timeline.stall_seconds().items() if s >= 0.005}
    waited = ", ".join(f"{cause} {s:.2f} s" for cause, s in sorted(stalls.items())) or "nothing"
    busy, wall = totals["compute"].busy, timeline.wall()
    lines.append(f"  compute     busy {busy:.2f} s of {wall:.2f} s; waited for {waited}")
    overlap = timeline.overlap()
    if overlap is not None:
        lines.append(f"  overlap     {overlap:.0%} of the transfers ran while the chip computed")
    lines += break_even(chip)
    return "\n".join(lines)


def break_even(chip: "Chip") -> list[str]:
    """How many tokens per pass hide the stream: its time is fixed, that of compute grows."""
    totals, tokens = chip.timeline.totals(), chip.tokens
    stream = max(totals["fetch"].busy, totals["drain"].busy)
    compute = totals["compute"].busy
    if not (tokens and stream and compute):
        return []
    needed = tokens * stream / compute
    lines = [
        f"  break-even  streaming is free here from about {needed:,.0f} tokens per pass; "
        f"this run had {tokens:,}"
    ]
    if tokens < needed:
        stalls = chip.timeline.stall_seconds()
        waited = stalls.get("fetch", 0.0) + stalls.get("drain", 0.0)
        lines.append(
            "  warning     below it: the chip waited for transfers "
            f"{waited / chip.timeline.wall():.0%} of the time; use a larger batch or context"
        )
    return lines


def does_not_fit(chip: "Chip", nbytes: int, what: Any) -> str:
    """The message of a ChipMemoryError: `what`, of `nbytes`, found no room."""
    budget = chip.budget
    lines = [
        f"a chip of {show_size(chip.memory)} has no room for another {show_size(nbytes)}: "
        f"{describe(what)}"
    ]
    by_module: dict[str, Counter] = {kind: Counter() for kind in KINDS}
    for size, kind, _, _, module in budget.leases.values():
        by_module[kind][module or "the model itself"] += size
    for unit in chip.residency.resident.values():
        if unit.pins:
            by_module["weights"][unit.blob.owner.name or str(unit.blob.owner.shape)] += unit.nbytes
    for kind in KINDS:
        if budget.held[kind]:
            holders = ", ".join(
                f"{name} {show_size(size)}" for name, size in by_module[kind].most_common(4)
            )
            lines.append(f"  {show_size(budget.held[kind]):>8}  {NAMES[kind]} ({holders})")
    least = budget.needed + nbytes
    lines.append(
        f"this needs {show_size(least)} at this point: give the chip at least "
        f'"{-(-least // 10**6)}MB", or let it need less: a smaller batch or context (activations '
        "grow with both), recompute (tg.checkpoint; for a GPT, recompute=True)"
    )
    return "\n".join(lines)


def describe(what: Any) -> str:
    if isinstance(what, tuple):
        shape, dtype = what
        return f"an array of {dtype} {tuple(shape)}"
    return f"the {what.blob.what}, {show_size(what.nbytes)} of it"
