"""The external memory: where every weight, gradient and optimizer state lives.

It hands out *blobs*, plain ranges of bytes that are read and written at an offset. Behind them is
RAM, or one file (see `external_file`), in which every blob starts at a multiple of 4096.

A closed file is only used again for the same model. Until that is known, whatever is written goes
to a file beside it, which takes its place then; a file that is refused has not been touched.

A file keeps a checksum per MiB of everything but gradients. They are compared where all bytes pass
by anyway, at a checkpoint and when a closed file is opened, and not on the way to the chip.
"""

import contextlib
import errno
import itertools
import numbers
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..storage import WEIGHT
from .budget import mapped_block
from .external_file import PAGE, REMOVE, ExternalFile, ExternalMemoryError
from .sizes import parse_size
from .transfer import Job

GRID = 1 << 20  # bytes per checksum
GRADIENT = "gradient"  # the kind of blob that has no checksums


class Owner:
    """What the memory knows of a parameter, so that it does not keep the parameter itself."""

    def __init__(self, shape: tuple[int, ...], dtype: Any, name: str | None = None) -> None:
        self.shape, self.dtype, self.name = shape, dtype, name
        self.updated = True  # the weight holds the numbers of the next step
        self.written: Job | None = None  # the last write of the weight


class Blob:
    """`nbytes` bytes of the memory. `kind` is "weight", "gradient" or an optimizer state's name."""

    def __init__(self, kind: str, nbytes: int, owner: Owner, file: Any = None) -> None:
        self.kind, self.nbytes, self.owner, self.file = kind, nbytes, owner, file
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
            self.file.read(self.start + offset, buffer, self.what)

    def write(self, offset: int, buffer: np.ndarray) -> None:
        """Stores `buffer` (bytes). A file takes whole GRID cells, except for gradients."""
        if self.array is not None:
            np.copyto(self.array[offset : offset + buffer.nbytes], buffer)
            return
        self.file.write(self.start + offset, buffer, self.what)
        if self.sums:
            for at in range(0, buffer.nbytes, GRID):
                self.sums[(offset + at) // GRID] = checksum(buffer[at : at + GRID])

    def verify(self, offset: int, buffer: np.ndarray) -> None:
        """Raises if whole cells that were read from `offset` are not what was written there."""
        for at in range(0, buffer.nbytes if self.sums else 0, GRID):
            if checksum(buffer[at : at + GRID]) != self.sums[(offset + at) // GRID]:
                raise self.file.broken(
                    errno.EIO,
                    f"is corrupted in the {self.what}, near byte {offset + at}: the medium or "
                    "another program changed it; resume from the last checkpoint",
                )

    def entry(self) -> dict[str, Any]:
        """What the table of a file says of it."""
        return {
            "kind": self.kind,
            "name": self.owner.name or "",
            "shape": list(self.owner.shape),
            "dtype": str(self.owner.dtype),
            "start": self.start,
            "bytes": self.nbytes,
            "sums": self.sums,
        }


def checksum(data: np.ndarray) -> int:
    """The sum of 64-bit words, modulo 2^64: as fast as memory, and no flipped bit escapes it."""
    whole = data.size // 8 * 8
    total = int(np.add.reduce(data[:whole].view(np.uint64))) if whole else 0
    return (total + int.from_bytes(data[whole:].tobytes(), "little")) % 2**64


class ExternalMemory:
    """RAM (no `path`), or a file.

    bandwidth: bytes per second between memory and chip, each way, as a number or "2GB"; latency:
    seconds until a transfer's first byte. Both emulate a link: transfers really take that long.
    None: as fast as the machine is. One memory serves one chip at a time.

    hurry: set where nobody waits for transfers any more; they take no longer than they must.
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
        self.hurry = threading.Event()
        self._file: ExternalFile | None = None  # where we write
        self._closed: ExternalFile | None = None  # until it is known whether it is this model's
        self._expected: list[dict[str, Any]] = []  # the weights that a closed file holds

    @property
    def medium(self) -> str:
        return "RAM" if self.path is None else str(self.path)

    @property
    def failure(self) -> ExternalMemoryError | None:
        """The first call of a file that went wrong; the chip does not go on after it."""
        return None if self._file is None else self._file.failure

    def open(self) -> None:
        """Takes the file; ExternalMemoryError if it is someone else's, damaged, or in use."""
        if self.is_open:
            raise RuntimeError(f"this external memory ({self.medium}) already serves a chip")
        self.blobs, self.nbytes, self._held = [], 0, 0
        self._file = self._closed = None
        self.hurry.clear()
        if self.path is not None:
            self._open_file(self.path)
        self.is_open = True

    def close(self, in_order: bool = True) -> None:
        """Lets go of the file; `in_order`: its content is whole, and is marked so."""
        if not self.is_open:
            return
        self.is_open = False
        if self._file is None:
            return
        try:
            if in_order:
                self._take_place(complete=True)
                if self._closed is None:
                    self._file.finish([blob.entry() for blob in self.blobs])
        finally:
            with contextlib.ExitStack() as stack:
                if self._closed is not None:  # and stays as it was
                    stack.callback(self._closed.close)
                    stack.callback(self._file.remove)
                stack.callback(self._file.close)
                self._closed = None

    def allocate(self, kind: str, nbytes: int, owner: Owner) -> Blob:
        """A blob of zeros."""
        if not self.is_open:
            raise RuntimeError("this external memory is closed: use it inside `with Chip(...)`")
        blob = Blob(kind, nbytes, owner, self._file)
        if self._file is None:
            blob.array = mapped_block(nbytes) if nbytes >= PAGE else np.zeros(nbytes, np.uint8)
        else:
            if kind != WEIGHT:
                self._take_place()
            elif self._closed is not None:
                count = sum(other.kind == WEIGHT for other in self.blobs)
                self._compare([*self._expected, None][count], owner)
            blob.start = self._file.room(nbytes, blob.what)
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

    # Whose a closed file is.

    def _open_file(self, path: Path) -> None:
        with contextlib.ExitStack() as opened:  # closed again if anything goes wrong
            self._file = ExternalFile(path)
            opened.callback(self._file.close)
            self._expected = weights_in(self._file)
            if self._expected:
                self._closed, self._file = self._file, self._file.beside()
                opened.callback(self._file.close)
                if self._file.table():
                    raise ExternalMemoryError(
                        errno.EEXIST,
                        f"{self._file.path} is a closed external memory of its own, and in the "
                        f"way of another: {REMOVE}",
                    )
            self._file.begin()
            opened.pop_all()

    def _take_place(self, complete: bool = False) -> None:
        """Ours takes the place of a closed file, if all of its weights are there again."""
        weights = [blob.owner for blob in self.blobs if blob.kind == WEIGHT]
        if self._closed is None or not weights:
            return
        # By shape and by name. A model that is not complete may still grow.
        pairs = itertools.zip_longest if complete else zip
        for entry, owner in pairs(self._expected, weights):
            self._compare(entry, owner)
        if len(weights) == len(self._expected):
            self._file.take_place_of(self._closed)
            self._closed = None

    def _compare(self, entry: dict[str, Any] | None, owner: Owner | None) -> None:
        """Refuses a closed file that has `entry` where the model has `owner`."""
        there = None if entry is None else owner_of(entry)
        if not same(there, owner):
            raise ExternalMemoryError(
                errno.EEXIST,
                f"{self.path} is of another model: where it has {described(there)}, this one has "
                f"{described(owner)}: {REMOVE}",
            )


def weights_in(file: ExternalFile) -> list[dict[str, Any]]:
    """The weights that a closed file holds; all that it holds is compared with its checksums."""
    table = file.table()
    for entry in table:
        blob = Blob(entry["kind"], entry["bytes"], owner_of(entry), file)
        blob.start, blob.sums = entry["start"], entry["sums"]
        for _ in checked(blob):
            pass
    return [entry for entry in table if entry["kind"] == WEIGHT]


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


def checked(blob: Blob) -> Iterator[np.ndarray]:
    """All bytes of a blob in pieces, each compared with its checksums before it is handed on."""
    size = 4 * GRID
    buffer = np.empty(min(size, blob.nbytes), np.uint8)
    for offset in range(0, blob.nbytes, size):
        piece = buffer[: min(size, blob.nbytes - offset)]
        blob.read(offset, piece)
        blob.verify(offset, piece)
        yield piece
