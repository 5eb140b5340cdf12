"""The external memory: where every weight, gradient and optimizer state lives.

It hands out *blobs*, plain ranges of bytes that are read and written at an offset. Behind them is
RAM, or one file. A file is read and written with positional calls only: mapping it would let an
I/O error kill the process, and would hide what is really in memory.

    header (4096 bytes) | weights | gradients and optimizer state | table

Every blob starts at a multiple of 4096. The header says whose file it is and whether it is live.
A live file is scratch: nothing in it can be trusted after a crash, and the run's last checkpoint is
what one goes on from. Closing the memory in good order writes the table (what is where, with
checksums) and marks the file closed.

A closed file is only used again for the same model. Until that is known, whatever is written goes
to a file beside it, which takes its place then; a file that is refused has not been touched.

A file keeps a checksum per MiB of everything but gradients. They are compared where all bytes pass
by anyway, at a checkpoint and when a closed file is opened, and not on the way to the chip.
"""

import contextlib
import errno
import hashlib
import itertools
import json
import numbers
import os
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..storage import WEIGHT
from .budget import mapped_block
from .sizes import parse_size, show_size
from .transfer import Job, afresh

PAGE = 4096
GRID = 1 << 20  # bytes per checksum
MAGIC = "tinygrad_edu external memory"
OURS = f'{{"magic": "{MAGIC}", "version": '.encode()  # what our files begin with
VERSION = 1
REMOVE = "remove it (checkpoints are elsewhere), or choose another path"
GRADIENT = "gradient"  # the kind of blob that has no checksums


class Calls:
    """The operating system; a test puts one that fails, or is slow, in its place."""

    open = staticmethod(os.open)
    close = staticmethod(os.close)
    fsync = staticmethod(os.fsync)
    replace = staticmethod(os.replace)
    remove = staticmethod(os.remove)
    truncate = staticmethod(os.ftruncate)

    @staticmethod
    def allocate(descriptor: int, start: int, nbytes: int) -> None:
        """Makes room on the medium itself, so that it cannot run out later."""
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, start, nbytes)
        else:
            os.ftruncate(descriptor, start + nbytes)

    @staticmethod
    def read(descriptor: int, buffer: Any, offset: int) -> int:
        return os.preadv(descriptor, [buffer], offset)

    @staticmethod
    def write(descriptor: int, buffer: Any, offset: int) -> int:
        return os.pwrite(descriptor, buffer, offset)

    @staticmethod
    def lock(descriptor: int) -> bool:
        """Whether the file is ours alone now."""
        try:
            import fcntl
        except ImportError:  # Windows
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


calls = Calls()


class ExternalMemoryError(OSError):
    """The external memory cannot be used: the message says which file, which tensor, and why."""


class Owner:
    """What the memory knows of a parameter, so that it does not keep the parameter itself."""

    def __init__(self, shape: tuple[int, ...], dtype: Any, name: str | None = None) -> None:
        self.shape, self.dtype, self.name = shape, dtype, name
        self.updated = True  # the weight holds the numbers of the next step
        self.written: Job | None = None  # the last write of the weight


class Blob:
    """`nbytes` bytes of the memory. `kind` is "weight", "gradient" or an optimizer state's name."""

    def __init__(self, memory: "ExternalMemory", kind: str, nbytes: int, owner: Owner) -> None:
        self.memory, self.kind, self.nbytes, self.owner = memory, kind, nbytes, owner
        self.start = 0  # in the file
        self.array: np.ndarray | None = None  # in RAM
        self.sums: list[int] = []  # in a file, not for gradients

    @property
    def what(self) -> str:
        return f"{self.kind} of {self.owner.name or f'a parameter of shape {self.owner.shape}'}"

    def read(self, offset: int, buffer: np.ndarray) -> None:
        """Fills `buffer` (bytes) from `offset` on."""
        if self.array is not None:
            np.copyto(buffer, self.array[offset : offset + buffer.nbytes])
        else:
            self.memory._read(self.start + offset, buffer, self.what)

    def write(self, offset: int, buffer: np.ndarray) -> None:
        """Stores `buffer` (bytes). A file takes whole GRID cells, except for gradients."""
        if self.array is not None:
            np.copyto(self.array[offset : offset + buffer.nbytes], buffer)
            return
        self.memory._write(self.start + offset, buffer, self.what)
        if self.sums:
            for at in range(0, buffer.nbytes, GRID):
                self.sums[(offset + at) // GRID] = checksum(buffer[at : at + GRID])

    def verify(self, offset: int, buffer: np.ndarray) -> None:
        """Raises if whole cells that were read from `offset` are not what was written there."""
        for at in range(0, buffer.nbytes if self.sums else 0, GRID):
            if checksum(buffer[at : at + GRID]) != self.sums[(offset + at) // GRID]:
                self.memory.failure = ExternalMemoryError(
                    errno.EIO,
                    f"{self.memory._file} is corrupted in the {self.what}, near byte "
                    f"{offset + at}: the medium or another program changed it; resume from the "
                    "last checkpoint",
                )
                raise afresh(self.memory.failure)


def checksum(data: np.ndarray) -> int:
    """The sum of 64-bit words, modulo 2^64: as fast as memory, and no flipped bit escapes it."""
    whole = data.size // 8 * 8
    total = int(np.add.reduce(data[:whole].view(np.uint64))) if whole else 0
    return (total + int.from_bytes(data[whole:].tobytes(), "little")) % 2**64


def digest(text: Any) -> str:
    return hashlib.sha256(text).hexdigest()


class ExternalMemory:
    """RAM (no `path`), or a file.

    bandwidth: bytes per second between memory and chip, each way, as a number or "2GB"; latency:
    seconds until a transfer's first byte. Both emulate a link: transfers really take that long.
    None: as fast as the machine is. One memory serves one chip at a time.

    failure: the first call of a file that went wrong. Nothing is known of what the file holds from
    then on, so the chip does not go on after it. hurry: set where nobody waits for transfers any
    more; they take no longer than they must.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        bandwidth: int | float | str | None = None,
        latency: float | None = None,
    ) -> None:
        self.path = None if path is None else Path(path)
        self.bandwidth = None if bandwidth is None else parse_size(bandwidth, "bandwidth")
        number = isinstance(latency, numbers.Real) and not isinstance(latency, bool)
        if latency is not None and not (number and 0 <= latency < 3600):
            raise ValueError(f"latency is in seconds, at least 0, got {latency!r}")
        self.latency = latency or 0.0
        self.blobs: list[Blob] = []
        self.nbytes = 0  # in use at once, at most
        self.is_open = False
        self.failure: ExternalMemoryError | None = None
        self.hurry = threading.Event()
        self._descriptor = -1
        self._end = PAGE
        self._file = self._place = Path()  # where we write, and where that belongs
        self._kept: list[int] = []  # closed files, until it is known whether they are this model's
        self._expected: list[dict[str, Any]] = []  # weights that a closed file holds

    @property
    def medium(self) -> str:
        return "RAM" if self.path is None else str(self.path)

    def open(self) -> None:
        """Takes the file; ExternalMemoryError if it is someone else's, damaged, or in use."""
        if self.is_open:
            raise RuntimeError(f"this external memory ({self.medium}) already serves a chip")
        self.blobs, self._end, self.failure, self._expected = [], PAGE, None, []
        self.nbytes = self._held = 0
        self.hurry.clear()
        if self.path is not None:
            self._place = Path(os.path.realpath(self.path))
            self._open_file(self.path)
        self.is_open = True

    def close(self, in_order: bool = True) -> None:
        """Lets go of the file; `in_order`: its content is whole, and is marked so."""
        if not self.is_open:
            return
        self.is_open = False
        if self._descriptor < 0:
            return
        try:
            if in_order:
                self._take_place(complete=True)
            if in_order and not self._kept:
                self._write_table()
        finally:
            descriptors, self._descriptor = [self._descriptor, *self._kept], -1
            with self._trouble("cannot be closed"), contextlib.ExitStack() as stack:
                for descriptor in reversed(descriptors):
                    stack.callback(calls.close, descriptor)
                if self._kept:
                    self._kept = []
                    calls.remove(self._file)

    def allocate(self, kind: str, nbytes: int, owner: Owner) -> Blob:
        """A blob of zeros."""
        if not self.is_open:
            raise RuntimeError("this external memory is closed: use it inside `with Chip(...)`")
        blob = Blob(self, kind, nbytes, owner)
        if self.path is None:
            blob.array = mapped_block(nbytes) if nbytes >= PAGE else np.zeros(nbytes, np.uint8)
        else:
            if kind != WEIGHT:
                self._take_place()
            elif self._kept:
                count = sum(other.kind == WEIGHT for other in self.blobs)
                self._compare([*self._expected, None][count], owner)
            blob.start = self._end
            room = -(-nbytes // PAGE) * PAGE
            if room:
                with self._trouble(f"no room for the {blob.what} ({show_size(nbytes)})"):
                    calls.allocate(self._descriptor, self._end, room)
            self._end += room
            if kind != GRADIENT:
                blob.sums = [0] * -(-nbytes // GRID)  # of zeros
        self._add(blob)
        return blob

    def _add(self, blob: Blob) -> None:
        self.blobs.append(blob)
        self._held += blob.nbytes
        self.nbytes = max(self.nbytes, self._held)

    def free(self, blob: Blob) -> None:
        """Forgets a blob; the room in a file is not used again."""
        if blob in self.blobs:  # not if the memory serves another chip by now
            self.blobs.remove(blob)
            self._held -= blob.nbytes

    # The file.

    def _open_file(self, path: Path, mode: int = 0o666) -> None:
        if not hasattr(os, "preadv"):
            raise ExternalMemoryError(
                errno.ENOSYS, "this system has no positional reads: leave out the path, to use RAM"
            )
        self._file = path
        try:
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
            descriptor = self._descriptor = calls.open(path, flags, mode)
        except OSError as error:
            raise ExternalMemoryError(
                error.errno, f"{path} cannot be opened as external memory: {error.strerror}"
            ) from None
        header: dict[str, Any] | None = None
        try:
            with self._trouble("cannot be locked"):
                ours_alone = calls.lock(descriptor) and os.fstat(descriptor).st_nlink > 0
            if not ours_alone:
                with contextlib.suppress(ExternalMemoryError):
                    header = self._header()
                live = header is not None and header.get("state") == "live"
                raise ExternalMemoryError(
                    errno.EBUSY,
                    f"{path} is in use by process {header['pid'] if live else 'unknown'}: wait for "
                    "it, or choose another path",
                )
            header = self._header()
            if header.get("state") == "closed":
                weights = self._verify(header)
                if weights:
                    self._expected = self._expected or weights
                    self._kept.append(descriptor)
                    beside = self._place.with_name(f"{self._place.name}.new")
                    self._open_file(beside, os.fstat(descriptor).st_mode & 0o777)
                    return
            elif header:
                warnings.warn(
                    f"{path} was left live by process {header['pid']}, which ended without closing "
                    "it: its content is volatile and is made anew; resume from the run's last "
                    "checkpoint",
                    stacklevel=4,
                )
            self._write_header({"state": "live", "pid": os.getpid()})
            with self._trouble("cannot be emptied"):
                calls.truncate(descriptor, PAGE)
        except BaseException:
            if header == {} and ours_alone:  # not half a header, which would not be known as ours
                with contextlib.suppress(OSError):
                    calls.truncate(descriptor, 0)
            calls.close(descriptor)
            self._descriptor, self._kept = -1, []
            raise

    def _header(self) -> dict[str, Any]:
        """What the file says of itself; {} for an empty one."""
        size = os.fstat(self._descriptor).st_size
        if size == 0:
            return {}
        page = np.zeros(min(size, PAGE), np.uint8)
        self._read(0, page, "header")
        text = page.tobytes().rstrip(b"\0")
        if not text.startswith(OURS):
            raise ExternalMemoryError(
                errno.EEXIST,
                f"{self._file} is not an external memory: it will not be overwritten; choose "
                "another path, or remove it",
            )
        try:
            header = json.loads(text)
        except (ValueError, RecursionError):
            header = {"version": VERSION}
        if header["version"] != VERSION:
            raise ExternalMemoryError(
                errno.EPROTO,
                f"{self._file} has version {header['version']}, this program writes version "
                f"{VERSION}: {REMOVE}",
            )
        if header.pop("check", None) != digest(json.dumps(header).encode()):
            raise ExternalMemoryError(
                errno.EIO, f"{self._file} is corrupted in its header: {REMOVE}"
            )
        return header

    def _write_header(self, fields: dict[str, Any]) -> None:
        header = {"magic": MAGIC, "version": VERSION, **fields}
        text = json.dumps({**header, "check": digest(json.dumps(header).encode())}).encode()
        page = np.zeros(PAGE, np.uint8)
        page[: len(text)] = np.frombuffer(text, np.uint8)
        self._write(0, page, "header")
        with self._trouble("cannot be flushed"):
            calls.fsync(self._descriptor)

    def _write_table(self) -> None:
        table = [
            {
                "kind": blob.kind,
                "name": blob.owner.name or "",
                "shape": list(blob.owner.shape),
                "dtype": str(blob.owner.dtype),
                "start": blob.start,
                "bytes": blob.nbytes,
                "sums": blob.sums,
            }
            for blob in self.blobs
        ]
        text = np.frombuffer(json.dumps(table).encode(), np.uint8)
        self._write(self._end, text, "table")
        with self._trouble("cannot be flushed"):
            calls.fsync(self._descriptor)
        place = {"table": self._end, "table_bytes": text.nbytes, "sha256": digest(text)}
        self._write_header({"state": "closed", "pid": os.getpid(), **place})

    def _verify(self, header: dict[str, Any]) -> list[dict[str, Any]]:
        """Checks all that a closed file holds; the weights in its table."""
        size, table = os.fstat(self._descriptor).st_size, []
        text = np.zeros(header["table_bytes"], np.uint8)
        if size >= header["table"] + text.nbytes:
            self._read(header["table"], text, "table")
            if digest(text) != header["sha256"]:
                raise ExternalMemoryError(
                    errno.EIO, f"{self._file} is corrupted in its table: {REMOVE}"
                )
            table = json.loads(text.tobytes())
        else:
            raise ExternalMemoryError(
                errno.EIO,
                f"{self._file} is truncated: {size} bytes of {header['table'] + text.nbytes}, the "
                f"table of its tensors is cut off: {REMOVE}",
            )
        for entry in table:
            blob = Blob(self, entry["kind"], entry["bytes"], owner_of(entry))
            blob.start, blob.sums = entry["start"], entry["sums"]
            for _ in checked(blob):
                pass
        return [entry for entry in table if entry["kind"] == WEIGHT]

    def _take_place(self, complete: bool = False) -> None:
        """Ours takes the place of a closed file, if all of its weights are there again."""
        if not self._kept:
            return
        weights = [blob.owner for blob in self.blobs if blob.kind == WEIGHT]
        if not weights or (not complete and len(weights) < len(self._expected)):
            return
        for entry, owner in itertools.zip_longest(self._expected, weights):
            self._compare(entry, owner)
        with self._trouble("cannot take its place"):
            calls.replace(self._file, self._place)
            while self._kept:
                calls.close(self._kept.pop())
        self._file = self.path

    def _compare(self, entry: dict[str, Any] | None, owner: Owner | None) -> None:
        """Refuses a closed file that has `entry` where the model has `owner`."""
        there = None if entry is None else owner_of(entry)
        if not same(there, owner):
            raise ExternalMemoryError(
                errno.EEXIST,
                f"{self.path} is of another model: where it has {described(there)}, this one has "
                f"{described(owner)}: {REMOVE}",
            )

    def _read(self, start: int, buffer: np.ndarray, what: str) -> None:
        rest = memoryview(buffer)
        with self._trouble(f"cannot be read ({what})"):
            while rest:
                count = calls.read(self._descriptor, rest, start)
                if count <= 0:
                    raise OSError(errno.EIO, "the file is truncated")
                rest, start = rest[count:], start + count

    def _write(self, start: int, buffer: np.ndarray, what: str) -> None:
        rest = memoryview(np.ascontiguousarray(buffer))
        with self._trouble(f"cannot be written ({what})"):
            while rest:
                count = calls.write(self._descriptor, rest, start)
                if count <= 0:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                rest, start = rest[count:], start + count

    @contextlib.contextmanager
    def _trouble(self, what: str) -> Iterator[None]:
        try:
            yield
        except ExternalMemoryError:
            raise
        except OSError as error:
            self.failure = ExternalMemoryError(
                error.errno,
                f"{self._file} {what}: {error.strerror or error}; what it holds is scratch: make "
                "room or repair the medium, then resume from the last checkpoint",
            )
            raise afresh(self.failure) from None


def owner_of(entry: dict[str, Any]) -> Owner:
    """The owner of a blob of an earlier process."""
    return Owner(tuple(entry["shape"]), entry["dtype"], entry["name"])


def same(there: Owner | None, here: Owner | None) -> bool:
    """Whether two owners are the same parameter; one without a name may be any."""
    if there is None or here is None:
        return False
    names = {there.name, here.name} - {None, ""}
    return len(names) < 2 and (there.shape, there.dtype) == (here.shape, str(here.dtype))


def described(owner: Owner | None) -> str:
    if owner is None:
        return "nothing"
    name = f"{owner.name} of " if owner.name else ""
    return f"{name}{owner.dtype} {tuple(owner.shape)}"


def checked(blob: Blob, cells: int = 4) -> Iterator[np.ndarray]:
    """All bytes of a blob in pieces of `cells` checksums, each compared before it is handed on."""
    size = cells * GRID
    buffer = np.empty(min(size, blob.nbytes), np.uint8)
    for offset in range(0, blob.nbytes, size):
        piece = buffer[: min(size, blob.nbytes - offset)]
        blob.read(offset, piece)
        blob.verify(offset, piece)
        yield piece
