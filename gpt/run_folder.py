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
import os
import re
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import disk
from .errors import UserError
from .metrics import Metrics, plain
from .picture import draw_losses
from .tensor_file import DamagedFile, LazyTensor, TensorFile, serialized

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

FORMAT = 1  # of train.json
ROLES = ("model", "state")
RUN_FILES = ("train.json", "metrics.jsonl", "model.safetensors", "config.json", "tokenizer.json")
RUN_FILES += ("loss.png",)
# Checkpoint files, and what was being written when a process died.
GENERATED = re.compile(r"(model|state)-\d{7,}(-again)?\.safetensors|\..+\.\d+\.partial(\.\w+)?")
START_OVER = "restore it from a copy, or start over with --overwrite or another --out"


def _sealed(content: dict[str, Any]) -> bytes:
    """The bytes of a train.json, which end with a checksum of the rest."""
    checksum = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return json.dumps({**content, "sha256": checksum}, indent=1, allow_nan=False).encode() + b"\n"


@dataclass
class Checkpoint:
    """What `RunFolder.commit` was given. Tensors stay in their files until they are asked for."""

    step: int
    model: dict[str, LazyTensor]
    state: dict[str, LazyTensor]
    info: dict[str, Any]
    files: tuple[TensorFile, ...]

    def close(self) -> None:
        """Lets go of the files: the system keeps what is open, even after a later commit."""
        for file in self.files:
            file.close()


class RunFolder:
    """One run's files. `trouble` says, while it lasts, what could not be written."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.metrics = Metrics(self.path / "metrics.jsonl")
        self._stale: str | None = None
        self._undrawn: str | None = None
        self._next_picture = 0.0  # seconds, on the clock of time.monotonic

    @property
    def trouble(self) -> str | None:
        return "; ".join(filter(None, (self.metrics.trouble, self._stale, self._undrawn))) or None

    def draw(self, final: bool = True) -> None:
        """Draws loss.png anew, but spends at most a hundredth of the time before the final one."""
        began = time.monotonic()
        if not final and began < self._next_picture:
            return
        try:
            draw_losses(self.metrics.rows(), self.path / "loss.png")
            self._undrawn = self.metrics.left_out
        except Exception as error:  # matplotlib's settings are the user's: no picture ends a run
            why = getattr(error, "strerror", None) or " ".join(str(error).split())
            self._undrawn = f"{self.path / 'loss.png'}: still an earlier picture: {why}"
        now = time.monotonic()
        self._next_picture = now + 100 * (now - began)

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Inside, no other process can take this folder; UserError if one has. Readers may read."""
        with contextlib.suppress(OSError):  # `open_new` says what is wrong with it
            self.path.mkdir(parents=True, exist_ok=True)
        if fcntl is None or not self.path.is_dir():
            yield
            return
        with disk.opened(self.path, os.O_RDONLY) as descriptor:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"{self.path}: another process is training there; wait for it, or choose "
                    "another --out"
                ) from None
            except OSError:  # a file system without locks
                pass
            yield

    def open_new(self, overwrite: bool = False, resume: bool = False) -> None:
        """Makes the folder ready for a run from the start; UserError if that would destroy files.

        With `overwrite`, those that a run writes are removed, and no others. With `resume`, those
        of a run that had begun and has no checkpoint yet.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            names = sorted(os.listdir(self.path))
            model = re.compile(r"(model|state)\b.*\.safetensors$")
            taken = [n for n in names if n in RUN_FILES or model.match(n)]
            # what a run that had no checkpoint yet cannot have left
            weights = [n for n in taken if model.match(n) and not GENERATED.fullmatch(n)]
            begun = RUN_FILES[0] in names or RUN_FILES[1] in names
            if taken and not overwrite and not (resume and begun and not weights):
                what = "an earlier run" if begun or weights else "files of the names a run writes"
                ways = "--resume goes on with it, " if begun and not resume else ""
                no = "no checkpoint to go on from, and " if resume else ""
                raise UserError(
                    f"{self.path}: holds {no}{what} ({taken[0]}); {ways}--overwrite replaces "
                    "what is there, or choose another --out"
                )
            # train.json first, and for good: without it the rest is rubbish, not a damaged run
            for name in [n for n in RUN_FILES if n in names]:
                disk.calls.unlink(self.path / name)
                disk.sync_folder(self.path)
            self._sweep()
            disk.write_atomically(self.path / "metrics.jsonl", b"")  # a run has begun here
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
        model_tensors: Mapping[str, Any],
        state_tensors: Mapping[str, Any],
        info: Mapping[str, Any],
    ) -> None:
        """Makes this the folder's checkpoint; `info` is anything JSON or NumPy can hold.

        Tensors are arrays or LazyTensors, of which one piece at a time is in memory.
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
                entry: dict[str, Any] = {"name": path.name}
                aligned = sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)
                chunks = serialized(dict(aligned), entry)
                disk.write_atomically(path, disk.content(chunks))
                content["files"][role] = entry
            disk.write_atomically(self.path / "train.json", _sealed(content))
        except BaseException:
            self._sweep()
            raise
        self._publish(content["files"]["model"])
        self._sweep()

    def read(self) -> Checkpoint | None:
        """The committed checkpoint, every byte verified; None if there is none yet.

        Its files stay open until `Checkpoint.close`, or until nothing refers to it. UserError,
        naming the file and the tensor, for one that is damaged or not ours. A run that is being
        written by another process can be read.
        """
        while (content := self._manifest()) is not None:
            try:
                found = [self._verified(content["files"][role]) for role in ROLES]
            except UserError:
                if self._manifest() == content:
                    raise
                continue  # the run went on meanwhile and removed what we were reading
            self._publish(content["files"]["model"])
            info = {k: v for k, v in content.items() if k not in ("format", "step", "files")}
            files, (model, state) = zip(*found)
            return Checkpoint(content["step"], model, state, info, files)
        return None

    def _manifest(self) -> dict[str, Any] | None:
        """train.json, if there is one, proven to be what was written."""
        path = self.path / "train.json"
        try:
            data = b"".join(disk.chunks(path))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(
                f"{path}: cannot be read: {error.strerror}; make it readable, {START_OVER}"
            ) from None
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

    def _verified(self, entry: dict[str, Any]) -> tuple[TensorFile, dict[str, LazyTensor]]:
        """One checkpoint file and its tensors, once its size and checksum are right."""
        path = self.path / entry["name"]
        try:
            file = TensorFile(path)
            size = f"{file.size} bytes of {entry['bytes']}"
            if file.size > entry["bytes"]:
                raise UserError(f"{path}: is too long, {size}; {START_OVER}")
            if file.size < entry["bytes"]:
                place = _damage(file, entry)
                raise UserError(f"{path}: is cut short, {size}, in {place}; {START_OVER}")
            if file.sha256() != entry["sha256"]:
                raise UserError(f"{path}: is damaged in {_damage(file, entry)}; {START_OVER}")
            return file, file.tensors()
        except FileNotFoundError:
            raise UserError(f"{path}: is missing, and train.json needs it; {START_OVER}") from None
        except OSError as error:
            raise UserError(
                f"{path}: cannot be read: {error.strerror}; make it readable, {START_OVER}"
            ) from None

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


def _damage(file: TensorFile, entry: dict[str, Any]) -> str:
    """Where the damage is: in which tensors, or else in the file's header."""
    try:
        tensors = file.tensors()
        if tensors.keys() != entry["tensors"].keys():
            return "its header"
        wrong = [n for n in tensors if _crc32(tensors[n]) != entry["tensors"][n]]
    except DamagedFile as error:
        return error.where
    return "tensor " + ", ".join(wrong) if wrong else "its header"


def _crc32(tensor: LazyTensor) -> int:
    checksum = 0
    for piece in tensor.pieces_as(tensor.dtype.newbyteorder("<")):
        checksum = zlib.crc32(piece, checksum)
    return checksum
