"""The work of one training step of a GPT, for the virtual clock, whatever its size.

A small model is rehearsed as it is. Of a deep one, three layers are: its layers are all alike, so
what the middle one adds, in work and in memory, is added as often as it takes. Rehearsals count
float32; in a precision of half the bytes, half of everything moves.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

import tinygrad_edu as tg
from tinygrad_edu.kernels import blocks
from tinygrad_edu.memory import Rehearsal
from tinygrad_edu.memory.clock import Work

from .model import GPT, GPTConfig

DEEP = 24  # layers from which a model is put together from three
LAYER = re.compile(r"transformer\.h\.(\d+)\.")
VALUE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class StepWork:
    """One optimizer step on one chip.

    needed: bytes on the chip at once; at_peak: the same by kind; phase: where the peak is; works:
    of one micro-batch, then the update; passes: how many micro-batches a step has.
    """

    needed: int
    at_peak: dict[str, int]
    phase: str
    works: tuple[Work, ...]


def step_work(
    config: GPTConfig, batch: int, recompute: bool, precision: str = "fp32",
    memory: int | None = None, resident: bool = False,
) -> StepWork:  # fmt: skip
    """The work of `batch` sequences on a chip of `memory` bytes (None: of just enough).

    resident: everything is on the chip, and nothing is fetched or drained.
    """
    value = VALUE_BYTES[precision]
    room = None if memory is None else memory * 4 // value
    found = rehearsed(config, batch, recompute, room)
    works = [scaled(work, value / 4) for work in found.works]
    if resident:
        works = [work._replace(fetch=0, drain=0) for work in works]
    at_peak = {kind: nbytes * value // 4 for kind, nbytes in found.at_peak.items()}
    return StepWork(found.needed * value // 4, at_peak, found.phase, tuple(works))


def scaled(work: Work, factor: float) -> Work:
    """Fewer bytes per value. The optimizer keeps float32."""
    if work.phase == "update":
        return work
    return work._replace(
        touched=int(work.touched * factor),
        fetch=int(work.fetch * factor),
        drain=int(work.drain * factor),
    )


@functools.lru_cache(64)
def rehearsed(config: GPTConfig, batch: int, recompute: bool, room: int | None) -> StepWork:
    """In float32, on a chip of `room` bytes, or of just enough if that is too small."""
    unit = max(blocks.UNIT_BYTES, (room or 0) // 64)  # a large chip takes whole matrices
    if config.n_layer < DEEP:
        needed = run(config, batch, recompute, unit).needed
        return run(config, batch, recompute, unit, max(needed, room or 0))
    shallow = [dataclasses.replace(config, n_layer=n) for n in (2, 3)]
    two, three = (run(small, batch, recompute, unit) for small in shallow)
    layer = three.needed - two.needed
    needed = three.needed + (config.n_layer - 3) * layer
    weights = 4 * 13 * config.n_embd**2  # of one layer, in float32, and some to fetch ahead
    spare = weights if room is None else max(0, min(weights, room - needed))
    found = run(shallow[1], batch, recompute, unit, three.needed + spare)
    at_peak = dict(three.at_peak)
    at_peak["activations"] += needed - three.needed
    return StepWork(needed, at_peak, three.phase, tuple(deepened(found.works, config.n_layer)))


def run(
    config: GPTConfig, batch: int, recompute: bool, unit: int, room: int | None = None
) -> StepWork:
    """A rehearsal, in float32. With `room`, of the second step, when the order is known."""
    ids = np.arange(batch * config.block_size) % config.vocab_size
    ids = ids.reshape(batch, config.block_size)
    before, blocks.UNIT_BYTES = blocks.UNIT_BYTES, unit
    try:
        with Rehearsal() if room is None else Rehearsal(room) as chip:
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
    works = tuple(merged(chip.works[first:]))
    return StepWork(chip.peak_bytes, dict(chip.budget.at_peak), phase, works)


def merged(works: list[Work]) -> Iterator[Work]:
    """The same with ops that move nothing joined to the op before them."""
    last: Work | None = None
    for work in works:
        joins = not (work.fetch or work.drain) and last is not None
        if joins and work.phase == last.phase != "update":
            last = last._replace(
                flops=last.flops + work.flops, touched=last.touched + work.touched
            )
            continue
        if last is not None:
            yield last
        last = work
    if last is not None:
        yield last


def deepened(works: tuple[Work, ...], layers: int) -> Iterator[Work]:
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
