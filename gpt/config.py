"""What a training run is told: fields with defaults, presets that set some, flags that set any.

A preset is a TOML file of field names and values. `parse` starts from one and lets the command
line override each field; --n-layer and --n_layer are the same flag.
"""

import argparse
import dataclasses
import difflib
import io
import json
import math
import os
import sys
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn

from tinygrad_edu.memory import parse_size

from .errors import UserError
from .model import GPTConfig


def flag(default: Any, help: str, **more: Any) -> Any:
    return dataclasses.field(default=default, metadata={"help": help, **more})


@dataclasses.dataclass
class TrainConfig:
    """Everything about a run. The last seven fields are the model's (`GPTConfig`)."""

    preset: str = dataclasses.field(default="default", metadata={"hidden": True})
    data: str | None = flag(None, "text file, folder, or folder with train.bin and val.bin")
    out: str | None = flag(None, "run folder (default: runs/PRESET)")
    overwrite: bool = flag(False, "replace an earlier run in --out")
    resume: bool = flag(False, "continue the run in --out")
    seed: int = flag(1337, "seed of weights, batches and dropout")
    tokenizer: str = flag("byte", "char, byte or bpe")
    steps: int = flag(1000, "optimizer steps")
    batch_size: int = flag(16, "sequences per micro-batch")
    accumulate: int = flag(1, "micro-batches per optimizer step")
    eval_every: int = flag(250, "steps between evaluations, each followed by a checkpoint")
    eval_batches: int = flag(20, "batches of held-out text per evaluation")
    learning_rate: float = flag(1e-3, "peak learning rate")
    min_lr: float = flag(1e-4, "learning rate at the last step, if below the peak")
    warmup_steps: int = flag(100, "steps of linear warm-up")
    weight_decay: float = flag(0.1, "AdamW's, on matrices only")
    beta1: float = flag(0.9, "AdamW's decay of the mean")
    beta2: float = flag(0.99, "AdamW's decay of the mean square")
    grad_clip: float = flag(1.0, "largest global gradient norm (0: no clipping)")
    threads: int | None = flag(None, "threads that kernels use (default: all cores)")
    recompute: str = flag(
        "auto", "recompute activations in backward: off, on, auto (off unless memory demands it)"
    )
    chip: str | None = flag(None, "train on a chip of this size, such as 256MB; weights stream in")
    external: str | None = flag(
        None, "file for the weights and state beside the chip (default: RAM)"
    )
    detect_nan: bool = flag(False, "stop at the first NaN or infinity and name its op and layer")
    vocab_size: int | None = flag(None, "size of the vocabulary, if larger than the tokenizer's")
    block_size: int = flag(128, "context length in tokens")
    n_layer: int = flag(4, "number of blocks")
    n_head: int = flag(4, "attention heads per block")
    n_embd: int = flag(128, "width")
    dropout: float = flag(0.0, "dropout probability")
    bias: bool = flag(False, "biases in linear layers and layer norms")

    def model(self, vocab_size: int) -> GPTConfig:
        """The model's own numbers; a vocabulary set larger than the tokenizer's wins."""
        names = [f.name for f in dataclasses.fields(GPTConfig) if f.name != "vocab_size"]
        if self.vocab_size is not None and self.vocab_size < vocab_size:
            raise UserError(
                f"vocab_size {self.vocab_size} is smaller than the tokenizer's {vocab_size}: "
                "leave it out or set it larger"
            )
        return GPTConfig(self.vocab_size or vocab_size, **{n: getattr(self, n) for n in names})

    def check(self) -> "TrainConfig":
        """Raises UserError for the first number that makes no sense."""
        for name in ("steps", "batch_size", "accumulate", "eval_every", "eval_batches", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{dashed(name)} must be at least 1, got {value}")
        for name in ("learning_rate", "min_lr", "warmup_steps", "weight_decay", "grad_clip"):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0:
                raise UserError(f"--{dashed(name)} must be a number of at least 0, got {value}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(
                    f"--{name} must be at least 0 and below 1, got {getattr(self, name)}"
                )
        if self.external == "":
            raise UserError("--external is empty: name a file, or drop the flag for RAM")
        if self.out == "":
            raise UserError(
                f"--out is empty: name a folder, or drop the flag for {default_out(self)}"
            )
        if self.seed < 0:
            raise UserError(f"--seed must be at least 0, got {self.seed}")
        if self.external is not None and self.chip is None:
            raise UserError("--external is the memory of a chip: give --chip SIZE as well")
        if self.chip is not None:
            try:
                parse_size(self.chip, "--chip")
            except ValueError as error:
                raise UserError(str(error)) from None
        if self.recompute not in ("off", "on", "auto"):
            raise UserError(f"--recompute is off, on or auto, got {self.recompute!r}")
        try:
            self.model(self.vocab_size if self.vocab_size is not None else 1)
        except ValueError as error:
            raise UserError(str(error)) from None
        return self


def dashed(name: str) -> str:
    return name.replace("_", "-")


def preset_names() -> list[str]:
    folder = resources.files("gpt") / "presets"
    names = [entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".toml")]
    return sorted(names, key=lambda name: (name != "default", name))


def load_preset(name: str) -> TrainConfig:
    """The preset called `name`, or the TOML file at that path."""
    try:
        if name.endswith(".toml"):
            text = Path(name).read_text(encoding="utf-8")
        else:
            text = (resources.files("gpt") / "presets" / f"{name}.toml").read_text(encoding="utf-8")
        values = tomllib.loads(text)
    except OSError as error:
        if name.endswith(".toml"):
            raise UserError(
                f"{name} cannot be read: {error.strerror}; give a TOML file of fields and values"
            ) from None
        known = preset_names()
        near = difflib.get_close_matches(name, known, 1, 0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(f"unknown preset {name!r}: {hint}there are {', '.join(known)}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{name} is not a TOML file: {error}") from None
    fields = {f.name: f for f in dataclasses.fields(TrainConfig)}
    for key, value in values.items():
        if key not in fields or key == "preset":
            raise UserError(f"{name}: unknown field {key!r}{nearest(key, fields)}")
        kind = fields[key].type
        if not has_type(value, kind):
            raise UserError(f"{name}: {key} = {value!r} has the wrong type")
        if kind is float:
            values[key] = float(value)
    return TrainConfig(preset=Path(name).stem, **values)


def has_type(value: Any, kind: Any) -> bool:
    """Whether a field declared as `kind` may be `value`: whole numbers are floats, too."""
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float if kind is float else kind)


def nearest(key: str, known: Any) -> str:
    begun = [whole for whole in known if whole.startswith(key)]
    near = begun or difflib.get_close_matches(key, list(known), 1, 0.4)
    return f": did you mean {near[0]!r}?" if near else ""


class OneLineParser(argparse.ArgumentParser):
    """argparse, with every mistake as one line and exit status 2, and no option abbreviated."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise UserError(message)

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        print(end="", flush=True)  # --help that cannot be written is said by `run`
        super().exit(status, message)

    def parse_all(self, argv: list[str]) -> argparse.Namespace:
        known = [s for action in self._actions for s in action.option_strings if s[:2] == "--"]
        argv = [  # a text may begin with "--", too
            word.replace(name, dashed(name), 1) if dashed(name) in known else word
            for word, name in [(word, word.split("=")[0]) for word in argv]
        ]
        values, rest = self.parse_known_args(argv)
        if rest:
            word = dashed(rest[0].split("=")[0])
            raise UserError(f"unknown argument {rest[0]!r}{nearest(word, known)}")
        return values


def parse(argv: list[str]) -> TrainConfig:
    """The command line of `python -m gpt.train` as a checked TrainConfig."""
    parser = OneLineParser(
        prog="python -m gpt.train",
        description="Trains a GPT on the Python standard library, or on --data.",
        epilog="presets: " + ", ".join(preset_names()) + "; or the path of a .toml file",
    )
    parser.add_argument("preset", nargs="?", metavar="PRESET")
    for field in dataclasses.fields(TrainConfig):
        if "hidden" in field.metadata:
            continue
        name, kind, text = "--" + dashed(field.name), field.type, field.metadata["help"]
        if kind is bool:
            parser.add_argument(
                name, action=argparse.BooleanOptionalAction, help=text, default=argparse.SUPPRESS
            )
        else:
            kind = kind if isinstance(kind, type) else next(
                part for part in kind.__args__ if part is not type(None)
            )  # fmt: skip
            parser.add_argument(
                name, type=kind, help=text, default=argparse.SUPPRESS, metavar=kind.__name__.upper()
            )
    given = vars(parser.parse_all(argv))
    preset = given.pop("preset")
    base = load_preset("default" if preset is None else preset)
    if not given.get("resume"):
        return dataclasses.replace(base, **given).check()
    if given.get("overwrite"):
        raise UserError("--resume goes on with a run, --overwrite replaces it: give one of them")
    out = given.setdefault("out", base.out or str(default_out(base)))
    saved = saved_config(Path(out))
    if saved and preset is None:
        base = saved
    config = dataclasses.replace(base, **given).check()
    if saved and saved.tokenizer != config.tokenizer:
        raise UserError(
            f"{out} was begun with --tokenizer {saved.tokenizer}, and a run keeps its tokenizer: "
            f"give that instead of {config.tokenizer}, or use another --out"
        )
    return config


def default_out(config: TrainConfig) -> Path:
    return Path("runs") / config.preset


def saved_config(run: Path) -> TrainConfig | None:
    """What the run in that folder was told, if it can be read; the folder is checked elsewhere."""
    try:
        saved = TrainConfig(**json.loads((run / "train.json").read_text())["config"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    typed = (has_type(getattr(saved, f.name), f.type) for f in dataclasses.fields(saved))
    return saved if all(typed) else None


def run(main: Any, name: str) -> NoReturn:
    """Runs a command: a user's mistake, or the system's no, is one line and status 2.

    Ctrl-C is status 130.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # texts may hold what a console cannot show
            stream.reconfigure(errors="replace")
    try:
        status = main(sys.argv[1:])
        print(end="", flush=True)
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr)
        status = 2
    except MemoryError as error:
        print(f"{name}: not enough memory: {error}; ask for less, see --help", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        status = 130
    except BrokenPipeError:  # the reader of our output has left
        status = 0
    except OSError as error:  # a path nobody can have, an output that is full
        print(f"{name}: the system refuses: {error}; mend that and try again", file=sys.stderr)
        status = 2
    try:
        print(end="", flush=True)
    except OSError:  # nobody takes the rest: without this, Python would complain of it at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)
