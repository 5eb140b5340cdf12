"""GPT-2 on disk, as Hugging Face lays it out: config.json and model.safetensors.

Three things differ from the model in memory. The matrices of a block are stored (in, out), because
the original code called them convolutions. Older files leave out the leading "transformer.", and
carry the causal masks along as "attn.bias". A model without biases is written with zeros, since
GPT-2 always has them; config.json says "bias": false.

Tensors pass through in pieces: at most one matrix, to be transposed, is in memory at once.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinygrad_edu.nn import Parameter
from tinygrad_edu.storage import WEIGHT

from . import disk
from .errors import UserError
from .tensor_file import LazyTensor, TensorFile, equal, lazy, serialized, transposed

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


def stored(parameter: Parameter, kind: str) -> LazyTensor:
    """The weight or an optimizer state of `parameter`, read where it lives."""
    storage = parameter.storage
    return LazyTensor(storage.shape, storage.dtype_of(kind), lambda: storage.chunks(kind))


def to_layout(model: "GPT") -> dict[str, LazyTensor]:
    """All parameters, named and shaped as GPT-2's file has them."""
    out = {}
    for name, parameter in model.named_parameters():
        tensor = stored(parameter, WEIGHT)
        out[name] = tensor = transposed(tensor) if name.endswith(TRANSPOSED) else tensor
        is_embedding = name.startswith(("transformer.wte", "transformer.wpe"))
        if not model.config.bias and not is_embedding:
            out[name[: -len("weight")] + "bias"] = zeros(tensor.shape[-1], tensor.dtype)
    return out


def zeros(size: int, dtype: np.dtype) -> LazyTensor:
    return LazyTensor((size,), dtype, lambda: iter([np.zeros(size, dtype)]))


def full_name(name: str) -> str:
    """A tensor's name with the leading "transformer." that older files leave out."""
    return name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"


def check_size(tensors: Mapping[str, LazyTensor], config: Mapping[str, Any], where: Path) -> None:
    """UserError for a config of a larger model than the tensors are, which is not to be built.

    `from_layout` names the other differences, with the model at hand.
    """
    shapes = {full_name(name): tensor.shape for name, tensor in tensors.items()}
    blocks = {name.split(".")[2] for name in shapes if name.startswith("transformer.h.")}
    problems = []
    if len(blocks) < config["n_layer"]:
        problems.append(f"there are {len(blocks)} blocks, the config says {config['n_layer']}")
    for name, rows in (("wte", "vocab_size"), ("wpe", "block_size")):
        name, shape = f"transformer.{name}.weight", (config[rows], config["n_embd"])
        if name not in shapes:
            problems.append(f"{name} is missing")
        elif math.prod(shapes[name]) < math.prod(shape):
            problems.append(f"{name} has shape {shapes[name]}, the config says {shape}")
    if problems:
        raise UserError(f"{where}: the weights do not fit: {'; '.join(problems)}")


def from_layout(tensors: Mapping[str, Any], model: "GPT", where: Path) -> None:
    """The inverse of `to_layout`: sets every parameter of `model`.

    `tensors` are arrays or LazyTensors. UserError names every difference, and nothing is changed.
    """
    found = {full_name(name): lazy(t) for name, t in tensors.items() if not name.endswith(MASKS)}
    problems = []
    head = found.pop("lm_head.weight", None)
    embedding = found.get("transformer.wte.weight", head)
    fitting, maybe_zero = [], []
    for name, parameter in model.named_parameters():
        tensor = found.pop(name, None)
        if tensor is None:
            problems.append(f"{name} is missing")
            continue
        if name.endswith(TRANSPOSED) and len(tensor.shape) == 2:
            tensor = transposed(tensor)
        if tensor.shape != parameter.shape:
            problems.append(f"{name} has shape {tensor.shape}, the config says {parameter.shape}")
        fitting.append((parameter, tensor))
    for name, tensor in found.items():
        if model.config.bias or not name.endswith(".bias"):
            problems.append(f"{name} is not a tensor of this model")
        else:
            maybe_zero.append((name, tensor))
    # names and shapes are known: only now is a number read
    if head is not None and not equal(head, embedding):
        problems.append("lm_head.weight differs from transformer.wte.weight, which it must equal")
    for name, tensor in maybe_zero:
        if any(piece.any() for piece in tensor.pieces()):
            problems.append(f'{name} is not zero, though config.json says "bias": false')
    if problems:
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise UserError(f"{where}: the weights do not fit: {'; '.join(problems[:8])}{more}")
    for parameter, tensor in fitting:
        parameter.assign(tensor.pieces_as(parameter.dtype))


def save_model(model: "GPT", folder: Path) -> None:
    if (folder / "train.json").exists():  # the run would put its own model back
        raise UserError(
            f"{folder} holds a training run, which keeps its own model: save to another folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    tensors = to_layout(model)
    # as safetensors.numpy.save orders and spaces them
    ordered = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    chunks = serialized({name: tensors[name] for name in ordered}, separators=(",", ":"))
    disk.write_atomically(folder / "model.safetensors", disk.content(chunks))
    disk.write_atomically(folder / "config.json", config_text(model.config).encode())


def read(folder: Path) -> tuple[dict[str, Any], dict[str, LazyTensor]]:
    """A GPT-2 folder -> the fields of GPTConfig, the tensors. UserError says what does not fit."""
    config = read_config(folder)
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists():
        files = [single]
    elif index.exists():
        try:
            shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            files = [folder / name for name in sorted(set(shards))]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{index} has no weight_map of names to files: fetch it anew") from None
    else:
        hint = ""
        if (folder / "pytorch_model.bin").exists():
            hint = "; pytorch_model.bin is a pickle, which is never opened: save as safetensors"
        raise UserError(f"{folder} has no model.safetensors{hint}")
    tensors: dict[str, LazyTensor] = {}
    for file in files:
        try:
            tensors.update(TensorFile(file).tensors())
        except OSError as error:
            raise UserError(f"{file} cannot be read: {error.strerror}") from None
    check_size(tensors, config, folder)
    return config, tensors


def read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} holds no model: {path.name} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} holds no model: expected an object of names and values")
    problems = [
        f"{key} is {config[key]!r}, expected {value!r}"
        for key, value in FIXED.items()
        if key in config and config[key] != value
    ]
    needed = ("vocab_size", "n_positions", "n_layer", "n_head", "n_embd")
    problems += [f"{key} is missing" for key in needed if key not in config]
    problems += [
        f"{key} is {config[key]!r}, expected a whole number above 0"
        for key in needed
        if key in config and (type(config[key]) is not int or config[key] < 1)
    ]
    dropout, bias = config.get("resid_pdrop", 0.0), config.get("bias", True)
    if type(dropout) not in (int, float) or not 0 <= dropout < 1:
        problems.append(f"resid_pdrop is {dropout!r}, expected a number from 0 to below 1")
    if type(bias) is not bool:
        problems.append(f"bias is {bias!r}, expected true or false")
    if not problems and config["n_embd"] % config["n_head"]:
        problems.append(f"n_head {config['n_head']} does not divide n_embd {config['n_embd']}")
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
        "dropout": dropout,
        "bias": bias,
    }
