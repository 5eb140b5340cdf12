"""What a checkpoint of a run holds: all that the next step depends on, and nothing else.

Batches follow from (seed, step), so weights, optimizer state, the step and the state of the
generator that feeds dropout are enough to continue with the same bits.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

import tinygrad_edu as tg

from . import gpt2_layout
from .config import TrainConfig
from .data import Dataset
from .errors import UserError
from .model import GPT
from .run_folder import Checkpoint


def checkpoint_of(
    model: GPT, optimizer: tg.optim.AdamW, data: Dataset, config: TrainConfig
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, Any]]:
    """Weights, optimizer state, and all else that the next step depends on."""
    state = {
        f"{kind}.{name}": parameter.storage.state[kind]
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


def restore(
    found: Checkpoint, model: GPT, optimizer: tg.optim.AdamW, data: Dataset, where: Path
) -> None:
    """The inverse of `checkpoint_of`; UserError if the run was of another model or other data."""
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
    model.load_state_dict(gpt2_layout.from_layout(found.model, model, where))
    for name, parameter in model.named_parameters():
        for kind in optimizer.state_names:
            np.copyto(parameter.storage.state[kind], found.state[f"{kind}.{name}"])
    optimizer.steps = found.step
    model.rng.bit_generator.state = found.info["rng"]
