"""GPT-2 on disk, as Hugging Face lays it out: config.json and model.safetensors.

Three things differ from the model in memory. The matrices of a block are stored (in, out), because
the original code called them convolutions. Older files leave out the leading "transformer.", and
carry the causal masks along as "attn.bias". A model without biases is written with zeros, since
GPT-2 always has them; config.json says "bias": false.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from .disk import write_atomically
from .errors import UserError

if TYPE_CHECKING:
    from .model import GPT

TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
MASKS = (".attn.bias", ".attn.masked_bias")
FIXED = {  # what our model always does, under the names of GPT-2's config.json
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "tie_word_embeddings": True,
    "add_cross_attention": False,
}


def config_json(config: Any) -> dict[str, Any]:
    """A GPTConfig as GPT-2's config.json."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        **FIXED,
        "vocab_size": config.vocab_size,
        "n_positions": config.block_size,
        "n_ctx": config.block_size,
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_inner": None,
        "attn_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        "bias": config.bias,
        "bos_token_id": None,
        "eos_token_id": None,
        "initializer_range": 0.02,
    }


def config_text(config: Any) -> str:
    return json.dumps(config_json(config), indent=2) + "\n"


def to_layout(model: "GPT") -> dict[str, np.ndarray]:
    """All parameters, named and shaped as GPT-2's file has them."""
    out = {}
    for name, parameter in model.named_parameters():
        array = parameter.data.T if name.endswith(TRANSPOSED) else parameter.data
        out[name] = np.ascontiguousarray(array)
        is_embedding = name.startswith(("transformer.wte", "transformer.wpe"))
        if not model.config.bias and not is_embedding:
            out[name[: -len("weight")] + "bias"] = np.zeros(array.shape[-1], array.dtype)
    return out


def from_layout(
    tensors: Mapping[str, np.ndarray], model: "GPT", where: Path
) -> dict[str, np.ndarray]:
    """The inverse of `to_layout`, for `model.load_state_dict`; names every difference."""
    found = {
        name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}": array
        for name, array in tensors.items()
    }
    found = {name: array for name, array in found.items() if not name.endswith(MASKS)}
    problems = []
    head = found.pop("lm_head.weight", None)
    if head is not None and not np.array_equal(head, found.get("transformer.wte.weight", head)):
        problems.append("lm_head.weight differs from transformer.wte.weight, which it must equal")
    own = dict(model.named_parameters())
    state = {}
    for name, parameter in own.items():
        array = found.pop(name, None)
        if array is None:
            problems.append(f"{name} is missing")
            continue
        array = array.T if name.endswith(TRANSPOSED) and array.ndim == 2 else array
        if array.shape != parameter.shape:
            problems.append(f"{name} has shape {array.shape}, the config says {parameter.shape}")
        state[name] = array.astype(np.float32, copy=False)
    for name, array in found.items():
        if model.config.bias or not name.endswith(".bias"):
            problems.append(f"{name} is not a tensor of this model")
        elif array.any():
            problems.append(f'{name} is not zero, though config.json says "bias": false')
    if problems:
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise UserError(f"{where}: the weights do not fit: {'; '.join(problems[:8])}{more}")
    return state


def save_bytes(tensors: dict[str, np.ndarray]) -> bytes:
    return save(tensors, metadata={"format": "pt"})


def save_model(model: "GPT", folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "model.safetensors", save_bytes(to_layout(model)))
    write_atomically(folder / "config.json", config_text(model.config).encode())


def read(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A GPT-2 folder -> the fields of GPTConfig, the tensors. UserError says what does not fit."""
    config = read_config(folder)
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists():
        files = [single]
    elif index.exists():
        shards = json.loads(index.read_text())["weight_map"].values()
        files = [folder / name for name in sorted(set(shards))]
    else:
        hint = ""
        if (folder / "pytorch_model.bin").exists():
            hint = "; pytorch_model.bin is a pickle, which is never opened: save as safetensors"
        raise UserError(f"{folder} has no model.safetensors{hint}")
    tensors: dict[str, np.ndarray] = {}
    for file in files:
        try:
            tensors.update(load_file(file))
        except (SafetensorError, OSError, ValueError, TypeError) as error:
            raise UserError(f"{file} cannot be read as safetensors: {error}") from None
    return config, tensors


def read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} holds no model: {path.name} is missing") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    problems = [
        f"{key} is {config[key]!r}, expected {value!r}"
        for key, value in FIXED.items()
        if key in config and config[key] != value
    ]
    needed = ("vocab_size", "n_positions", "n_layer", "n_head", "n_embd")
    problems += [f"{key} is missing" for key in needed if key not in config]
    if not problems and config.get("n_inner") not in (None, 4 * config["n_embd"]):
        problems.append(f"n_inner is {config['n_inner']}, expected {4 * config['n_embd']}")
    if problems:
        raise UserError(f"{path} is not a GPT-2 that this project builds: {'; '.join(problems)}")
    return {
        "vocab_size": config["vocab_size"],
        "block_size": config["n_positions"],
        "n_layer": config["n_layer"],
        "n_head": config["n_head"],
        "n_embd": config["n_embd"],
        "dropout": config.get("resid_pdrop", 0.0),
        "bias": config.get("bias", True),
    }
