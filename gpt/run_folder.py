"""A run folder: what a training run leaves on disk, whole at every instant.

A checkpoint is two safetensors files named by their step, `model-0000100.safetensors` and
`state-0000100.safetensors`, and `train.json`, which names them with sizes and checksums. The two
are written and flushed first; renaming `train.json` into place is the commit. Whenever the power
goes, the folder holds the old checkpoint or the new one, never half of each: files that
`train.json` does not name are rubbish, and swept by the next commit. `model.safetensors` is a
second name (a hard link) of the committed model, for programs that look for that name.
"""

import contextlib
import hashlib
import json
import math
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from . import disk
from .errors import UserError
from .metrics import Metrics, plain

FORMAT = 1  # of train.json
ROLES = ("model", "state")
RUN_FILES = ("train.json", "metrics.jsonl", "model.safetensors", "config.json", "tokenizer.json")
RUN_FILES += ("loss.png",)
# Checkpoint files, and what was being written when a process died.
GENERATED = re.compile(r"(model|state)-\d{7,}(-again)?\.safetensors|\..+\.\d+\.partial(\.\w+)?")
DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bool": "BOOL"}
DTYPES |= {f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)}
DTYPES |= {f"uint{bits}": f"U{bits}" for bits in (8, 16, 32, 64)}
START_OVER = "restore it from a copy, or start over with --overwrite or another --out"


def _serialized(tensors: Mapping[str, Any], entry: dict[str, Any]) -> Iterator[Any]:
    """A safetensors file, piece by piece, so that no second copy of the tensors is ever in memory.

    The layout is https://huggingface.co/docs/safetensors: header length (u64), JSON header, data.
    `entry` receives the size, the sha256 of the whole and the crc32 of each tensor.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers asks for it
    ordered = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)  # keeps all aligned
    end = 0
    for name in ordered:
        dtype, shape = tensors[name].dtype, tensors[name].shape
        if dtype.name not in DTYPES:
            raise TypeError(f"{name} is {dtype}, which safetensors has no name for")
        start, end = end, end + dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": DTYPES[dtype.name], "shape": list(shape)}
        header[name]["data_offsets"] = [start, end]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    whole = hashlib.sha256(preamble := len(text).to_bytes(8, "little") + text)
    yield preamble
    for name in ordered:
        array = np.asarray(tensors[name], tensors[name].dtype.newbyteorder("<"), order="C")
        data = array.reshape(-1).view(np.uint8)
        whole.update(data)
        entry["tensors"][name] = zlib.crc32(data)
        yield data
    entry |= {"bytes": len(preamble) + end, "sha256": whole.hexdigest()}


def _sealed(content: dict[str, Any]) -> bytes:
    """The bytes of a train.json, which end with a checksum of the rest."""
    checksum = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return json.dumps({**content, "sha256": checksum}, indent=1, allow_nan=False).encode() + b"\n"


@dataclass
class Checkpoint:
    """What `RunFolder.commit` was given."""

    step: int
    model: dict[str, np.ndarray]
    state: dict[str, np.ndarray]
    info: dict[str, Any]


class RunFolder:
    """One run's files. `trouble` says, while it lasts, what could not be written."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.metrics = Metrics(self.path / "metrics.jsonl")
        self._stale: str | None = None

    @property
    def trouble(self) -> str | None:
        return "; ".join(filter(None, (self.metrics.trouble, self._stale))) or None

    def open_new(self, overwrite: bool = False) -> None:
        """Creates the folder for a run from the start; UserError if that would destroy another.

        With `overwrite`, an earlier run's files are removed, and no others.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            names = sorted(os.listdir(self.path))
            run = [n for n in names if n in RUN_FILES[:2] or re.match(r"model.*\.safetensors$", n)]
            if run and not overwrite:
                raise UserError(
                    f"{self.path}: holds an earlier run ({run[0]}); --resume goes on with it, "
                    "--overwrite replaces it, or choose another --out"
                )
            # train.json first, and for good: without it the rest is rubbish, not a damaged run
            for name in [n for n in RUN_FILES if n in names]:
                disk.calls.unlink(self.path / name)
                disk.sync_folder(self.path)
            self._sweep()
            disk.write_atomically(probe := self.path / ".writable", b"")
            disk.calls.unlink(probe)
        except FileExistsError:
            raise UserError(f"{self.path}: is a file; --out needs a folder") from None
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot keep a run here: {error.strerror}; "
                "make it writable or choose another --out"
            ) from None
        self.metrics.forget()

    def commit(
        self,
        step: int,
        model_tensors: Mapping[str, np.ndarray],
        state_tensors: Mapping[str, np.ndarray],
        info: Mapping[str, Any],
    ) -> None:
        """Makes this the folder's checkpoint; `info` is anything JSON or NumPy can hold.

        OSError leaves the previous checkpoint as it was. What goes wrong after the commit (old
        files that stay, a stale model.safetensors) is mended later, and no error.
        """
        content = {**plain(info), "format": FORMAT, "step": step, "files": {}}
        self._sweep()
        self.metrics.sync()
        try:
            taken = self._named()
        except UserError:  # damaged: nobody knows which files it needs
            taken = set(os.listdir(self.path))
        try:
            for role, tensors in zip(ROLES, (model_tensors, state_tensors), strict=True):
                path = self.path / f"{role}-{step:07d}.safetensors"
                if path.name in taken:  # the checkpoint of this very step must survive
                    path = path.with_stem(f"{path.stem}-again")
                entry: dict[str, Any] = {"name": path.name, "tensors": {}}
                disk.write_atomically(path, disk.content(_serialized(tensors, entry)))
                content["files"][role] = entry
            disk.write_atomically(self.path / "train.json", _sealed(content))
        except BaseException:
            self._sweep()
            raise
        self._publish(content["files"]["model"])
        self._sweep()

    def read(self) -> Checkpoint | None:
        """The committed checkpoint, every byte verified; None if there is none yet.

        UserError, naming the file and the tensor, for one that is damaged or not ours. A run that
        is being written by another process can be read.
        """
        while (content := self._manifest()) is not None:
            try:
                model, state = (self._tensors(content["files"][role]) for role in ROLES)
            except UserError:
                if self._manifest() == content:
                    raise
                continue  # the run went on meanwhile and removed what we were reading
            self._publish(content["files"]["model"])
            info = {k: v for k, v in content.items() if k not in ("format", "step", "files")}
            return Checkpoint(content["step"], model, state, info)
        return None

    def _manifest(self) -> dict[str, Any] | None:
        """train.json, if there is one, proven to be what was written."""
        path = self.path / "train.json"
        try:
            data = b"".join(disk.chunks(path))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}; {START_OVER}") from None
        try:
            content = json.loads(data)
        except (ValueError, RecursionError):
            raise UserError(f"{path}: is not JSON; it is damaged: {START_OVER}") from None
        if not isinstance(content, dict) or not {"format", "files", "step"} <= content.keys():
            raise UserError(f"{path}: is not a run's train.json; {START_OVER}")
        if content["format"] != FORMAT:
            raise UserError(
                f"{path}: has format {content['format']!r}, this program reads format {FORMAT}; "
                "use the version that wrote it, or another --out"
            )
        content.pop("sha256", None)
        if _sealed(content) != data:
            raise UserError(f"{path}: its checksum does not match; it is damaged: {START_OVER}")
        return content

    def _named(self) -> set[str]:
        """The files of the committed checkpoint."""
        content = self._manifest()
        return {entry["name"] for entry in content["files"].values()} if content else set()

    def _tensors(self, entry: dict[str, Any]) -> dict[str, np.ndarray]:
        """The tensors of one checkpoint file, once its size and checksum are right."""
        path = self.path / entry["name"]
        try:
            size = path.stat().st_size
            if size != entry["bytes"]:
                how = "cut short" if size < entry["bytes"] else "too long"
                raise UserError(f"{path}: is {how}, {size} bytes of {entry['bytes']}; {START_OVER}")
            if disk.sha256(path) != entry["sha256"]:
                raise UserError(f"{path}: is damaged in {_damage(path, entry)}; {START_OVER}")
            return safetensors.numpy.load_file(path)
        except FileNotFoundError:
            raise UserError(f"{path}: is missing, and train.json needs it; {START_OVER}") from None
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}; {START_OVER}") from None

    def _publish(self, entry: dict[str, Any]) -> None:
        """Makes model.safetensors the committed model: a second name of it, or else a copy."""
        public, committed = self.path / "model.safetensors", self.path / entry["name"]
        partial = disk.partial_name(public)
        try:
            with contextlib.suppress(FileNotFoundError):
                if public.samefile(committed) or disk.sha256(public) == entry["sha256"]:
                    self._stale = None
                    return
            try:
                disk.remove(partial)
                disk.calls.link(committed, partial)
                disk.calls.replace(partial, public)
            except OSError:  # a file system without hard links
                disk.write_atomically(public, disk.content(disk.chunks(committed)))
            self._stale = None
        except OSError as error:
            self._stale = f"{public}: still an earlier model: {error.strerror}"

    def _sweep(self) -> None:
        """Removes checkpoint files that train.json does not name, as far as that is possible."""
        with contextlib.suppress(OSError, UserError):  # a damaged train.json: touch nothing
            keep = self._named()
            names = [n for n in os.listdir(self.path) if GENERATED.fullmatch(n) and n not in keep]
            if names:
                disk.sync_folder(self.path)  # the train.json we saw must be there to stay
            for name in names:
                disk.calls.unlink(self.path / name)


def _damage(path: Path, entry: dict[str, Any]) -> str:
    """Where the damage is: in which tensors, or else in the file's header."""
    try:
        tensors = safetensors.numpy.load_file(path)
    except (SafetensorError, ValueError, KeyError, TypeError):
        return "its header"
    if tensors.keys() != entry["tensors"].keys():
        return "its header"
    wrong = [n for n in tensors if zlib.crc32(tensors[n].tobytes()) != entry["tensors"][n]]
    return "tensor " + ", ".join(wrong) if wrong else "its header"
