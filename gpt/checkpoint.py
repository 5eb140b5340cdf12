"""What a checkpoint of a run holds: all that the next step depends on, and nothing else.

Batches follow from (seed, step), so weights, optimizer state, the step and the state of the
generator that feeds dropout are enough to continue with the same bits. Weights and state pass
through in pieces: where they live, there may be more of them than memory has room for.
"""

import dataclasses
from pathlib import Path
from typing import Any

import tinygrad_edu as tg

from . import gpt2_layout
from .config import TrainConfig
from .data import Dataset
from .errors import UserError
from .model import GPT
from .run_folder import Checkpoint
from .tensor_file import LazyTensor


def checkpoint_of(
    model: GPT, optimizer: tg.optim.AdamW, data: Dataset, config: TrainConfig
) -> tuple[dict[str, LazyTensor], dict[str, LazyTensor], dict[str, Any]]:
    """Weights, optimizer state, and all else that the next step depends on."""
    state = {
        f"{kind}.{name}": gpt2_layout.stored(parameter, kind)
        for name, parameter in model.named_parameters()
        for kind in optimizer.state_names
    }
    info = {
        "config": dataclasses.asdict(config),
        "model": dataclasses.asdict(model.config),
        "data": data.name,
        "fingerprint": data.fingerprint,
        "rng": model.rng.bit_generator.state,
    }
    return gpt2_layout.to_layout(model), state, info


def resuming(step: int, steps: int, where: Path) -> str:
    """One line about a resume after `step` of a run of `steps`, before anything is computed."""
    if step < steps:
        return f"resuming {where} after step {step}"
    return (
        f"{where} is finished: it has done {step} steps, and {steps} were asked for; "
        f"--resume --out {where} --steps {2 * step} goes on"
    )


def restore(
    found: Checkpoint, model: GPT, optimizer: tg.optim.AdamW, data: Dataset, where: Path
) -> None:
    """The inverse of `checkpoint_of`, which closes `found`.

    UserError, and nothing is changed, if the run was of another model or other data.
    """
    own, saved = dataclasses.asdict(model.config), found.info["model"]
    differences = [
        f"{k} {saved.get(k)} there, {own[k]} here" for k in own if own[k] != saved.get(k)
    ]
    if differences:
        raise UserError(
            f"{where} holds another model ({', '.join(differences)}): use another --out"
        )
    if found.info["fingerprint"] != data.fingerprint:
        raise UserError(
            f"{where} was trained on other data ({found.info['data']}): give the same --data and "
            "--tokenizer, or use another --out"
        )
    places = {
        f"{kind}.{name}": (kind, parameter.storage)
        for name, parameter in model.named_parameters()
        for kind in optimizer.state_names
    }
    here = {name: storage.shape for name, (_, storage) in places.items()}
    there = {name: tensor.shape for name, tensor in found.state.items()}
    if here != there:
        name = min(n for n in here.keys() | there.keys() if here.get(n) != there.get(n))
        raise UserError(
            f"{where} holds another optimizer's state ({name} is {there.get(name, 'missing')} "
            f"there, {here.get(name, 'unknown')} here): use another --out"
        )
    gpt2_layout.from_layout(found.model, model, where)
    for name, (kind, storage) in places.items():
        storage.fill(kind, found.state[name].pieces_as(storage.dtype_of(kind)))
    found.close()
    optimizer.steps = found.step
    model.rng.bit_generator.state = found.info["rng"]
