"""One file of an external memory: whose it is, what it says of itself, how bytes get there.

    header (4096 bytes) | weights | gradients and optimizer state | table

The header says that the file is ours, and whether it is live. A live file is scratch: nothing in it
can be trusted after a crash, and the run's last checkpoint is what one goes on from. Finishing a
file writes the table (what is where, with checksums) and marks it closed. What the table means, and
who may use a closed file again, is not this file's concern.

A file is read and written with positional calls only: mapping it would let an I/O error kill the
process, and would hide what is really in memory. It is locked, so no two processes have it open.
"""

import contextlib
import errno
import hashlib
import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .sizes import show_size
from .transfer import afresh

PAGE = 4096
MAGIC = "tinygrad_edu external memory"
OURS = f'{{"magic": "{MAGIC}", "version": '.encode()  # what our files begin with
VERSION = 1
REMOVE = "remove it (checkpoints are elsewhere), or choose another path"


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


def digest(text: Any) -> str:
    return hashlib.sha256(text).hexdigest()


class ExternalFile:
    """The file at `path`, made if it is not there, and ours alone until it is closed.

    ExternalMemoryError if it is someone else's, damaged, or in use. Nothing is changed before
    `begin`. header: what the file said of itself when it was opened, {} for an empty one. failure:
    the first call that went wrong; nothing is known of what the file holds from then on.
    """

    def __init__(self, path: Path, mode: int = 0o666) -> None:
        if not hasattr(os, "preadv"):
            raise ExternalMemoryError(
                errno.ENOSYS, "this system has no positional reads: leave out the path, to use RAM"
            )
        self.path, self.place = path, Path(os.path.realpath(path))
        self.end = PAGE  # of what has room so far
        self.failure: ExternalMemoryError | None = None
        try:
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
            self._descriptor = calls.open(path, flags, mode)
        except OSError as error:
            raise ExternalMemoryError(
                error.errno, f"{path} cannot be opened as external memory: {error.strerror}"
            ) from None
        try:
            self._lock()
            self.header = self._read_header()
        except BaseException:
            self.close()
            raise

    def begin(self) -> None:
        """Marks the file live, and empties it."""
        if self.header.get("state", "closed") != "closed":
            warnings.warn(
                f"{self.path} was left live by process {self.header['pid']}, which ended without "
                "closing it: its content is volatile and is made anew; resume from the run's last "
                "checkpoint",
                stacklevel=5,
            )
        try:
            self._write_header({"state": "live", "pid": os.getpid()})
            with self._trouble("cannot be emptied"):
                calls.truncate(self._descriptor, PAGE)
        except BaseException:
            if not self.header:  # not half a header, which would not be known as ours
                with contextlib.suppress(OSError):
                    calls.truncate(self._descriptor, 0)
            raise

    def room(self, nbytes: int, what: str) -> int:
        """Makes room for `nbytes` (of zeros) more, and gives the place where it begins."""
        start, room = self.end, -(-nbytes // PAGE) * PAGE
        if room:
            with self._trouble(f"no room for the {what} ({show_size(nbytes)})"):
                calls.allocate(self._descriptor, start, room)
        self.end += room
        return start

    def read(self, start: int, buffer: np.ndarray, what: str) -> None:
        """Fills `buffer` (bytes) from byte `start` of the file on."""
        rest = memoryview(buffer)
        with self._trouble(f"cannot be read ({what})"):
            while rest:
                count = calls.read(self._descriptor, rest, start)
                if count <= 0:
                    raise OSError(errno.EIO, "the file is truncated")
                rest, start = rest[count:], start + count

    def write(self, start: int, buffer: np.ndarray, what: str) -> None:
        """Stores `buffer` (bytes) from byte `start` of the file on."""
        rest = memoryview(np.ascontiguousarray(buffer))
        with self._trouble(f"cannot be written ({what})"):
            while rest:
                count = calls.write(self._descriptor, rest, start)
                if count <= 0:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                rest, start = rest[count:], start + count

    def finish(self, table: list[dict[str, Any]]) -> None:
        """Writes the table behind everything else, and then marks the file closed."""
        text = np.frombuffer(json.dumps(table).encode(), np.uint8)
        self.write(self.end, text, "table")
        self._flush()
        place = {"table": self.end, "table_bytes": text.nbytes, "sha256": digest(text)}
        self._write_header({"state": "closed", "pid": os.getpid(), **place})

    def table(self) -> list[dict[str, Any]]:
        """What `finish` was given; of a file that is not closed, nothing."""
        header = self.header
        if header.get("state") != "closed":
            return []
        size = os.fstat(self._descriptor).st_size
        text = np.zeros(header["table_bytes"], np.uint8)
        if size < header["table"] + text.nbytes:
            raise ExternalMemoryError(
                errno.EIO,
                f"{self.path} is truncated: {size} bytes of {header['table'] + text.nbytes}, the "
                f"table of its tensors is cut off: {REMOVE}",
            )
        self.read(header["table"], text, "table")
        if digest(text) != header["sha256"]:
            raise ExternalMemoryError(errno.EIO, f"{self.path} is corrupted in its table: {REMOVE}")
        return json.loads(text.tobytes())

    def beside(self) -> "ExternalFile":
        """A file NAME.new beside this one, which may take its place."""
        mode = os.fstat(self._descriptor).st_mode & 0o777
        return ExternalFile(self.place.with_name(f"{self.place.name}.new"), mode)

    def take_place_of(self, other: "ExternalFile") -> None:
        """Renames this file to `other`, which is closed."""
        with self._trouble("cannot take its place"):
            calls.replace(self.path, other.place)
        other.close()
        self.path = other.path

    def remove(self) -> None:
        with self._trouble("cannot be removed"):
            calls.remove(self.path)

    def close(self) -> None:
        """Lets go of the file, as it is."""
        descriptor, self._descriptor = self._descriptor, -1
        with self._trouble("cannot be closed"):
            calls.close(descriptor)

    def broken(self, number: int | None, what: str) -> "ExternalMemoryError":
        """An error about this file, to be raised; the file is not to be used after it."""
        self.failure = ExternalMemoryError(number, f"{self.path} {what}")
        return afresh(self.failure)

    # Inside.

    def _lock(self) -> None:
        with self._trouble("cannot be locked"):
            if calls.lock(self._descriptor) and os.fstat(self._descriptor).st_nlink > 0:
                return
        header: dict[str, Any] = {}
        with contextlib.suppress(ExternalMemoryError):
            header = self._read_header()
        user = header["pid"] if header.get("state") == "live" else "unknown"
        raise ExternalMemoryError(
            errno.EBUSY,
            f"{self.path} is in use by process {user}: wait for it, or choose another path",
        )

    def _read_header(self) -> dict[str, Any]:
        """What the file says of itself; {} for an empty one."""
        size = os.fstat(self._descriptor).st_size
        if size == 0:
            return {}
        page = np.zeros(min(size, PAGE), np.uint8)
        self.read(0, page, "header")
        text = page.tobytes().rstrip(b"\0")
        if not text.startswith(OURS):
            raise ExternalMemoryError(
                errno.EEXIST,
                f"{self.path} is not an external memory: it will not be overwritten; choose "
                "another path, or remove it",
            )
        try:
            header = json.loads(text)
        except (ValueError, RecursionError):
            header = {"version": VERSION}
        if header["version"] != VERSION:
            raise ExternalMemoryError(
                errno.EPROTO,
                f"{self.path} has version {header['version']}, this program writes version "
                f"{VERSION}: {REMOVE}",
            )
        if header.pop("check", None) != digest(json.dumps(header).encode()):
            raise ExternalMemoryError(
                errno.EIO, f"{self.path} is corrupted in its header: {REMOVE}"
            )
        return header

    def _write_header(self, fields: dict[str, Any]) -> None:
        header = {"magic": MAGIC, "version": VERSION, **fields}
        text = json.dumps({**header, "check": digest(json.dumps(header).encode())}).encode()
        page = np.zeros(PAGE, np.uint8)
        page[: len(text)] = np.frombuffer(text, np.uint8)
        self.write(0, page, "header")
        self._flush()

    def _flush(self) -> None:
        with self._trouble("cannot be flushed"):
            calls.fsync(self._descriptor)

    @contextlib.contextmanager
    def _trouble(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self.broken(
                error.errno,
                f"{what}: {error.strerror or error}; what it holds is scratch: make room or repair "
                "the medium, then resume from the last checkpoint",
            ) from None
