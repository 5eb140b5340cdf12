"""The work of one training step of a GPT, for the virtual clock, whatever its size.

A small model is rehearsed as it is. Of a deep one, three layers are: its layers are all alike, so
what the middle one adds, in work and in memory, is added as often as it takes. Rehearsals count
float32; in a precision of half the bytes, half of everything moves.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

import tinygrad_edu as tg
from tinygrad_edu.kernels import blocks
from tinygrad_edu.kernels.cross_entropy import may_keep
from tinygrad_edu.memory import Rehearsal
from tinygrad_edu.memory.clock import Work
from tinygrad_edu.memory.hardware import Hardware

from .model import GPT, GPTConfig

DEEP = 24  # layers from which a model is put together from three
LAYER = re.compile(r"transformer\.h\.(\d+)\.")
VALUE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class Need:
    """Bytes on the chip at once, what they are by kind, and the phase in which that is.

    footprint: of the large blocks that take turns to hold them (see `Budget`), about.
    """

    nbytes: int
    at_peak: dict[str, int]
    phase: str
    footprint: int = field(compare=False)

    def plus(self, kind: str, nbytes: int) -> "Need":
        at_peak = self.at_peak | {kind: self.at_peak.get(kind, 0) + nbytes}
        return Need(self.nbytes + nbytes, at_peak, self.phase, self.footprint + nbytes)

    def times(self, factor: float) -> "Need":
        at_peak = {kind: int(nbytes * factor) for kind, nbytes in self.at_peak.items()}
        footprint = int(self.footprint * factor)
        return Need(int(self.nbytes * factor), at_peak, self.phase, footprint)


def unit_for(hardware: Hardware, precision: str) -> int:
    """Bytes of float32 that are fetched at once, at most: a large chip takes whole matrices."""
    if hardware.shared_cores:  # this engine, as it is
        return blocks.UNIT_BYTES
    return max(blocks.UNIT_BYTES, hardware.memory * 4 // VALUE_BYTES[precision] // 64)


def need(
    config: GPTConfig,
    batch: int,
    recompute: bool,
    precision: str,
    hardware: Hardware,
    resident: bool = False,
) -> Need:
    """What `batch` sequences need at once on a chip, or without one beside weights and state."""
    found = needed(config, batch, recompute, unit_for(hardware, precision))
    if resident:
        found = found.plus("activations", kept_logits(config, batch, recompute))
    return found.times(VALUE_BYTES[precision] / 4)


def kept_logits(config: GPTConfig, batch: int, recompute: bool) -> int:
    """Bytes of logits that a step without a chip keeps from forward to backward, in float32."""
    rows = batch * config.block_size
    keeps = not recompute and may_keep(rows, config.vocab_size, 4)
    return 4 * rows * config.vocab_size if keeps else 0


def step_works(
    config: GPTConfig,
    batch: int,
    recompute: bool,
    precision: str,
    hardware: Hardware,
    resident: bool = False,
) -> list[Work]:
    """The work of one pass of `batch` sequences on a chip, then that of the update.

    `resident`: nothing moves between chip and memory.
    """
    factor = VALUE_BYTES[precision] / 4
    room = int(hardware.memory / factor)
    keeps = resident and kept_logits(config, batch, recompute) > 0
    works = rehearsed(config, batch, recompute, unit_for(hardware, precision), room, keeps)
    if resident:
        works = [work._replace(fetch=0, drain=0, transfers=0, fresh=0) for work in works]
    return [scaled(work, factor) for work in works]


def scaled(work: Work, factor: float) -> Work:
    """Fewer bytes per value. The optimizer keeps float32."""
    if work.phase == "update":
        return work
    return work._replace(
        touched=int(work.touched * factor),
        fetch=int(work.fetch * factor),
        drain=int(work.drain * factor),
        fresh=int(work.fresh * factor),
    )


@functools.lru_cache(256)
def needed(config: GPTConfig, batch: int, recompute: bool, unit: int) -> Need:
    """In float32."""
    if config.n_layer < DEEP:
        return run(config, batch, recompute, unit)[0]
    two, three = (
        run(dataclasses.replace(config, n_layer=n), batch, recompute, unit)[0] for n in (2, 3)
    )
    more = (config.n_layer - 3) * (three.nbytes - two.nbytes)
    at_peak = three.at_peak | {"activations": three.at_peak["activations"] + more}
    return Need(three.nbytes + more, at_peak, three.phase, three.footprint + more)


@functools.lru_cache(64)
def rehearsed(
    config: GPTConfig, batch: int, recompute: bool, unit: int, room: int, keeps_logits: bool = False
) -> tuple[Work, ...]:
    """In float32, on a chip of `room` bytes, or of just enough if that is too small."""
    whole = needed(config, batch, recompute, unit).nbytes
    if config.n_layer < DEEP:
        return tuple(run(config, batch, recompute, unit, max(whole, room), keeps_logits)[1])
    three = dataclasses.replace(config, n_layer=3)
    small = needed(three, batch, recompute, unit)
    # Beside the footprint: a layer's weights, in float32, and some to fetch ahead. So those of a
    # recompute are still there in the backward pass, where that is so on the chip itself.
    layer = 4 * 13 * config.n_embd**2 + max(0, small.footprint - small.nbytes)
    enough = small.nbytes + max(0, min(layer, room - whole))
    works = run(three, batch, recompute, unit, enough, keeps_logits)[1]
    return tuple(deepened(works, config.n_layer))


def run(
    config: GPTConfig,
    batch: int,
    recompute: bool,
    unit: int,
    room: int | None = None,
    keeps_logits: bool = False,
) -> tuple[Need, list[Work]]:
    """A rehearsal, in float32. With `room`, of the second step, when the order is known."""
    ids = np.arange(batch * config.block_size) % config.vocab_size
    ids = ids.reshape(batch, config.block_size)
    before, blocks.UNIT_BYTES = blocks.UNIT_BYTES, unit
    try:
        with Rehearsal() if room is None else Rehearsal(room, keeps_logits) as chip:
            model = GPT(config, recompute=recompute)
            optimizer = tg.optim.AdamW(model.parameters())
            for _ in range(1 if room is None else 2):
                first = len(chip.works)
                optimizer.zero_grad()
                _, loss = model(ids, ids)
                in_forward = chip.peak_bytes
                (loss * 1.0).backward()
                tg.optim.clip_grad_norm_(optimizer.params, 1.0)
                optimizer.step()
    finally:
        blocks.UNIT_BYTES = before
    phase = "forward" if chip.peak_bytes == in_forward and room is None else "backward"
    found = Need(chip.peak_bytes, dict(chip.budget.at_peak), phase, chip.budget.footprint)
    return found, list(merged(chip.works[first:]))


def merged(works: list[Work]) -> Iterator[Work]:
    """The same in fewer items: ops that move next to nothing are joined to the op before them."""
    little = max(work.fetch + work.drain for work in works) // 1000
    last: Work | None = None
    for work in works:
        joins = last is not None and work.fetch + work.drain <= little
        if joins and work.phase == last.phase != "update":
            sums = [a + b for a, b in zip(last[2:], work[2:], strict=True)]
            last = Work(last.name, last.phase, *sums)
            continue
        if last is not None:
            yield last
        last = work
    if last is not None:
        yield last


def deepened(works: list[Work], layers: int) -> Iterator[Work]:
    """Works of three layers -> those of many: the middle one's, repeated where they stand."""
    groups: list[tuple[int | None, list[Work]]] = []
    for work in works:
        match = LAYER.match(work.name)
        is_op_alone = "." not in work.name  # it belongs to the layer that it stands in
        here = groups[-1][0] if is_op_alone and groups else int(match[1]) if match else None
        if not groups or groups[-1][0] != here:
            groups.append((here, []))
        groups[-1][1].append(work)
    before = None
    for here, group in groups:
        if here != 1:
            before = here if here is not None else before
            yield from (renamed(work, layers - 1) if here == 2 else work for work in group)
            continue
        rising = before == 0
        for k in range(1, layers - 1) if rising else range(layers - 2, 0, -1):
            yield from (renamed(work, k) for work in group)


def renamed(work: Work, layer: int) -> Work:
    return work._replace(name=LAYER.sub(f"transformer.h.{layer}.", work.name))
