"""A run folder: what a training run leaves on disk, whole at every instant.

A checkpoint is two safetensors files named by their step, `model-0000100.safetensors` and
`state-0000100.safetensors`, and `train.json`, which names them with sizes and checksums. The two
are written and flushed first; renaming `train.json` into place is the commit. Whenever the power
goes, the folder holds the old checkpoint or the new one, never half of each: files that
`train.json` does not name are rubbish, and swept by the next commit. `model.safetensors` is a
second name (a hard link) of the committed model, for programs that look for that name.

`metrics.jsonl` gets one JSON object per line. Training goes on when a row cannot be written: rows
wait in memory for the disk to recover, and only a checkpoint insists that they are down.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from gpt.errors import UserError

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
BINARY = getattr(os, "O_BINARY", 0)  # Windows


class Disk:
    """Every call that can fail, in one place, so that a test can make the n-th one fail."""

    open = staticmethod(os.open)
    read = staticmethod(os.read)
    write = staticmethod(os.write)
    fsync = staticmethod(os.fsync)
    truncate = staticmethod(os.ftruncate)
    replace = staticmethod(os.replace)
    link = staticmethod(os.link)
    unlink = staticmethod(os.unlink)


disk = Disk()


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = disk.open(path, flags | BINARY, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _write(descriptor: int, data: Any) -> None:
    """All of `data`, however few bytes at a time the system takes."""
    rest = memoryview(data)
    while rest:
        written = disk.write(descriptor, rest[: 1 << 26])
        if written <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        rest = rest[written:]


def _chunks(path: Path) -> Iterator[bytes]:
    with _opened(path, os.O_RDONLY) as descriptor:
        while chunk := disk.read(descriptor, 1 << 20):
            yield chunk


def _write_new(path: Path, chunks: Iterable[Any]) -> None:
    with _opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as descriptor:
        for chunk in chunks:
            _write(descriptor, chunk)
        disk.fsync(descriptor)


def _sync_folder(folder: Path) -> None:
    """Makes renames and removals in `folder` survive a power cut, where the system can."""
    if os.name == "nt":
        return
    with _opened(folder, os.O_RDONLY) as descriptor:
        try:
            disk.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system without it
                raise


def _remove(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        disk.unlink(path)


def _partial(path: Path) -> Path:
    """A temporary name beside `path`; it keeps the suffix, which some writers go by."""
    return path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")


def write_atomically(path: str | os.PathLike[str], data: bytes | Callable[[Path], None]) -> None:
    """Writes a file so that whoever looks, after any crash, sees the old one or the whole new one.

    `data` is the content, or a function that writes it to the path it is given. OSError leaves the
    old file as it was.
    """
    path = Path(path)
    partial = _partial(path)
    try:
        _remove(partial)  # not truncate: it may be a second name of a file that is needed
        if callable(data):
            data(partial)
            with _opened(partial, os.O_RDWR) as descriptor:
                disk.fsync(descriptor)
        else:
            _write_new(partial, [data])
        disk.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            disk.unlink(partial)
        raise
    _sync_folder(path.parent)


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


def _plain(value: Any) -> Any:
    """`value` as strict JSON has it: NumPy's numbers as Python's, NaN and infinities as null."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
        self._troubles: dict[str, str] = {}
        self._base: int | None = None  # bytes of metrics.jsonl that are safely down
        self._tail = b""  # the rows after them
        self._written = 0  # how much of the tail the operating system has

    @property
    def trouble(self) -> str | None:
        return "; ".join(self._troubles.values()) or None

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
                disk.unlink(self.path / name)
                _sync_folder(self.path)
            self._sweep()
            write_atomically(probe := self.path / ".writable", b"")
            disk.unlink(probe)
        except FileExistsError:
            raise UserError(f"{self.path}: is a file; --out needs a folder") from None
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot keep a run here: {error.strerror}; "
                "make it writable or choose another --out"
            ) from None
        self._base, self._tail, self._written = None, b"", 0

    # -- checkpoints --

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
        content = {**_plain(info), "format": FORMAT, "step": step, "files": {}}
        self._sweep()
        self.sync()
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
                pieces = _serialized(tensors, entry)
                write_atomically(path, lambda partial, pieces=pieces: _write_new(partial, pieces))
                content["files"][role] = entry
            write_atomically(self.path / "train.json", _sealed(content))
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
            data = b"".join(_chunks(path))
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
            if _sha256(path) != entry["sha256"]:
                raise UserError(f"{path}: is damaged in {_damage(path, entry)}; {START_OVER}")
            return safetensors.numpy.load_file(path)
        except FileNotFoundError:
            raise UserError(f"{path}: is missing, and train.json needs it; {START_OVER}") from None
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}; {START_OVER}") from None

    def _publish(self, entry: dict[str, Any]) -> None:
        """Makes model.safetensors the committed model: a second name of it, or else a copy."""
        public, committed = self.path / "model.safetensors", self.path / entry["name"]
        partial = _partial(public)
        try:
            with contextlib.suppress(FileNotFoundError):
                if public.samefile(committed) or _sha256(public) == entry["sha256"]:
                    self._troubles.pop("model", None)
                    return
            try:
                _remove(partial)
                disk.link(committed, partial)
                disk.replace(partial, public)
            except OSError:  # a file system without hard links
                write_atomically(public, lambda path: _write_new(path, _chunks(committed)))
            self._troubles.pop("model", None)
        except OSError as error:
            self._troubles["model"] = f"{public}: still an earlier model: {error.strerror}"

    def _sweep(self) -> None:
        """Removes checkpoint files that train.json does not name, as far as that is possible."""
        with contextlib.suppress(OSError, UserError):  # a damaged train.json: touch nothing
            keep = self._named()
            names = [n for n in os.listdir(self.path) if GENERATED.fullmatch(n) and n not in keep]
            if names:
                _sync_folder(self.path)  # the train.json we saw must be there to stay
            for name in names:
                disk.unlink(self.path / name)

    # -- metrics --

    def append(self, row: Mapping[str, Any]) -> None:
        """One row; it waits in memory, and `trouble` says so, while the disk does not take it."""
        self._tail += json.dumps(_plain(row), allow_nan=False).encode() + b"\n"
        with contextlib.suppress(OSError):
            self._flush()

    def sync(self) -> None:
        """Puts every row on the disk for good, or raises OSError."""
        if self._tail:
            self._flush(fsync=True)

    def _flush(self, fsync: bool = False) -> None:
        path = self.path / "metrics.jsonl"
        try:
            if self._base is None:
                self._base = len(_whole_lines(path))
            with _opened(path, os.O_RDWR | os.O_CREAT) as descriptor:
                size, start = os.fstat(descriptor).st_size, self._base + self._written
                if size < start:  # somebody else made it shorter
                    self._base, self._written = min(size, self._base), 0
                    start = self._base
                if size > start:  # half a row, of a killed run or a failed write
                    disk.truncate(descriptor, start)
                os.lseek(descriptor, start, os.SEEK_SET)
                try:
                    _write(descriptor, self._tail[self._written :])
                except OSError:
                    with contextlib.suppress(OSError):
                        disk.truncate(descriptor, start)
                    raise
                self._written = len(self._tail)
                if fsync:
                    self._written = 0  # after a failed fsync the rows are written again
                    disk.fsync(descriptor)
                    self._base, self._tail = self._base + len(self._tail), b""
            self._troubles.pop("metrics", None)
        except OSError as error:
            self._troubles["metrics"] = f"{path}: rows wait in memory: {error.strerror}"
            raise

    def rows(self) -> list[dict[str, Any]]:
        """All rows so far; half a row at the end, left by a kill, is dropped."""
        return [row for _, row in self._lines()]

    def cut(self, step: int) -> None:
        """Drops the rows after `step`: what a resumed run is about to write again."""
        path = self.path / "metrics.jsonl"
        lines = self._lines()
        kept = [line for line, row in lines if row.get("step", 0) <= step]
        try:
            if len(kept) < len(lines) or self._tail:
                write_atomically(path, b"".join(kept))
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror}; make room") from None
        self._base, self._tail, self._written = None, b"", 0

    def _lines(self) -> list[tuple[bytes, dict[str, Any]]]:
        path = self.path / "metrics.jsonl"
        try:
            data = _whole_lines(path)[: self._base] + self._tail
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}; {START_OVER}") from None
        lines = data.splitlines(keepends=True)
        found = []
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError
            except ValueError:
                if number == len(lines):  # a power cut can leave zeros there
                    break
                raise UserError(f"{path}: line {number} is not a JSON object; remove it") from None
            found.append((line, row))
        return found


def _whole_lines(path: Path) -> bytes:
    try:
        data = b"".join(_chunks(path))
    except FileNotFoundError:
        return b""
    return data[: data.rfind(b"\n") + 1]


def _sha256(path: Path) -> str:
    whole = hashlib.sha256()
    for chunk in _chunks(path):
        whole.update(chunk)
    return whole.hexdigest()


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
