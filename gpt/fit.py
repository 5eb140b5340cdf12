"""Whether a training step fits on a chip: rehearsed before anything is allocated.

A rehearsal runs the real model through the real engine with the kernels switched off, so the answer
is not an estimate: it is the account of the step that is going to happen.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator

import numpy as np

import tinygrad_edu as tg
from tinygrad_edu.memory import (
    Chip,
    ChipMemoryError,
    ExternalMemory,
    ExternalMemoryError,
    Rehearsal,
    parse_size,
    show_size,
)

from .config import TrainConfig
from .errors import UserError
from .model import GPT, GPTConfig


@dataclasses.dataclass(frozen=True)
class Step:
    """What one micro-batch takes."""

    needed: int  # bytes on the chip at once: the smallest budget
    flops: int


@functools.lru_cache(64)
def rehearse(config: GPTConfig, batch_size: int, recompute: bool) -> Step:
    """One micro-batch, forward and backward, of a model that need not exist."""
    shape = (batch_size, config.block_size)
    ids = (np.arange(batch_size * config.block_size) % config.vocab_size).reshape(shape)
    with Rehearsal() as chip:
        model = GPT(config, recompute=recompute)
        loss = tg.Tensor(0.0)  # that of the micro-batch before, which `train_step` still holds
        _, loss = model(ids, ids)
        (loss * 1.0).backward()
    return Step(chip.peak_bytes, chip.timeline.totals()["compute"].flops)


def choose_recompute(config: TrainConfig, model: GPTConfig) -> bool:
    """Whether to recompute, for a run on --chip; UserError says what would fit if it does not."""
    budget = parse_size(config.chip, "--chip")
    wanted = {"off": [False], "on": [True], "auto": [False, True]}[config.recompute]
    for recompute in wanted:
        if rehearse(model, config.batch_size, recompute).needed <= budget:
            return recompute
    raise UserError(
        f"--chip {config.chip} is too small: a micro-batch of {config.batch_size} x "
        f"{model.block_size} tokens needs {as_flag(min_needed(config, model, wanted))} at once; "
        f"what would fit: {'; '.join(ways_out(config, model, budget, wanted))}"
    )


@contextlib.contextmanager
def device(config: TrainConfig, model: GPTConfig) -> Iterator[tuple[Chip | None, bool]]:
    """The chip to train on, or None, and whether to recompute; a chip tells what it did."""
    if config.chip is None:
        yield None, config.recompute == "on"
        return
    recompute = choose_recompute(config, model)
    try:
        with Chip(config.chip, ExternalMemory(config.external)) as chip:
            yield chip, recompute
    except (ExternalMemoryError, ChipMemoryError) as error:
        text = getattr(error, "strerror", None) or str(error)
        raise UserError(" ".join(text.split())) from None
    print(chip.report())


def min_needed(config: TrainConfig, model: GPTConfig, wanted: list[bool]) -> int:
    return min(rehearse(model, config.batch_size, r).needed for r in wanted)


def ways_out(config: TrainConfig, model: GPTConfig, budget: int, wanted: list[bool]) -> list[str]:
    """Changes of one setting each, smallest first, that make the step fit."""
    ways = [f"--chip {as_flag(min_needed(config, model, wanted))}"]
    if True not in wanted:
        needed = rehearse(model, config.batch_size, True).needed
        fits = "" if needed <= budget else f" --chip {as_flag(needed)}"
        ways.append(f"--recompute on{fits}")
    recompute, size = wanted[-1], config.batch_size
    while size > 1:
        size //= next(n for n in range(2, size + 1) if size % n == 0)
        if rehearse(model, size, recompute).needed <= budget:
            more = config.accumulate * (config.batch_size // size)
            return [*ways, f"--batch-size {size} --accumulate {more} (the same tokens per step)"]
    length = model.block_size
    while length > 16:
        length //= 2
        shorter = dataclasses.replace(model, block_size=length)
        if rehearse(shorter, 1, recompute).needed <= budget:
            batch = "" if config.batch_size == 1 else " --batch-size 1"
            return [*ways, f"--block-size {length}{batch}"]
    return ways


def as_flag(nbytes: int) -> str:
    """A size as --chip takes it, rounded up."""
    unit, name = (10**6, "MB") if nbytes > 10**7 else (10**3, "kB")
    return f"{-(-nbytes // unit)}{name}"


def announcement(config: TrainConfig, model: GPTConfig, recompute: bool, external: int) -> str:
    """One line about a run on a chip, before it starts; `external`: bytes beside the chip."""
    step = rehearse(model, config.batch_size, recompute)
    return (
        f"chip of {show_size(parse_size(config.chip))}: a step needs {show_size(step.needed)} at "
        f"once, recompute {'on' if recompute else 'off'}; {show_size(external)} of weights, "
        f"gradients and optimizer state stream from {config.external or 'RAM'}"
    )
