"""metrics.jsonl: one JSON object per line, written as training goes.

Training goes on when a row cannot be written: rows wait in memory for the disk to recover, and
only a checkpoint insists that they are down. A crash may leave half a row or zeros: that line is
left out, and no other.
"""

import contextlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from . import disk
from .errors import UserError


class Metrics:
    """The rows of one run.

    `trouble` says, while it lasts, why rows wait in memory; `left_out`, which lines were no rows.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trouble: str | None = None
        self.forget()

    def forget(self) -> None:
        """Looks at the file anew: it was replaced."""
        self._base: int | None = None  # bytes of the file that are safely down
        self._tail = b""  # the rows after them
        self._written = 0  # how much of the tail the operating system has
        self.left_out: str | None = None

    def append(self, row: Mapping[str, Any]) -> None:
        """One row; it waits in memory, and `trouble` says so, while the disk does not take it."""
        self._tail += json.dumps(plain(row), allow_nan=False).encode() + b"\n"
        with contextlib.suppress(OSError):
            self._flush()

    def sync(self) -> None:
        """Puts every row on the disk for good, or raises OSError."""
        if self._tail:
            self._flush(fsync=True)

    def _flush(self, fsync: bool = False) -> None:
        path = self.path
        try:
            if self._base is None:
                self._base = len(whole_lines(path))
            with disk.opened(path, os.O_RDWR | os.O_CREAT) as descriptor:
                size, start = os.fstat(descriptor).st_size, self._base + self._written
                if size < start:  # somebody else made it shorter
                    self._base, self._written = min(size, self._base), 0
                    start = self._base
                if size > start:  # half a row, of a killed run or a failed write
                    disk.calls.truncate(descriptor, start)
                os.lseek(descriptor, start, os.SEEK_SET)
                try:
                    disk.write(descriptor, self._tail[self._written :])
                except OSError:
                    with contextlib.suppress(OSError):
                        disk.calls.truncate(descriptor, start)
                    raise
                self._written = len(self._tail)
                if fsync:
                    self._written = 0  # after a failed fsync the rows are written again
                    disk.calls.fsync(descriptor)
                    self._base, self._tail = self._base + len(self._tail), b""
            self.trouble = None
        except OSError as error:
            self.trouble = f"{path}: rows wait in memory: {error.strerror}"
            raise

    def rows(self) -> list[dict[str, Any]]:
        """All rows so far. Half a row at the end, left by a kill, is dropped.

        So are lines in between that are no rows, of which `left_out` then tells.
        """
        return [row for _, row in self._lines() if row is not None]

    def cut(self, step: int) -> str | None:
        """Drops the rows after `step`, which a resumed run is about to write again.

        Lines that are no rows are dropped as well; gives what `left_out` says of them.
        """
        path = self.path
        lines = self._lines()
        kept = [line for line, row in lines if row is not None and row["step"] <= step]
        try:
            if len(kept) < len(lines) or self._tail:
                disk.write_atomically(path, b"".join(kept))
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror}; mend that") from None
        left_out = self.left_out
        self.forget()
        return left_out

    def _lines(self) -> list[tuple[bytes, dict[str, Any] | None]]:
        """Each line and its row; None if it is no row."""
        path = self.path
        try:
            data = whole_lines(path)[: self._base] + self._tail
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}; make it readable") from None
        lines = [(line, row_of(line)) for line in data.splitlines(keepends=True)]
        # at the end it is no surprise: a power cut can leave zeros there
        wrong = [i for i, (_, row) in enumerate(lines, 1) if row is None and i < len(lines)]
        self.left_out = None
        if wrong:
            text = lines[wrong[0] - 1][0][:40].decode(errors="replace").rstrip("\r\n")
            more = f", and {len(wrong) - 1} more like it" if len(wrong) > 1 else ""
            self.left_out = f"{path}: left out line {wrong[0]}, which is no row: {text!r}{more}"
        return lines


def row_of(line: bytes) -> dict[str, Any] | None:
    """The row that `line` holds, or None if that is no object with a step and losses as numbers."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        return None
    losses = (row.get("loss"), row.get("val_loss"))
    return row if all(isinstance(loss, int | float | None) for loss in losses) else None


def whole_lines(path: Path) -> bytes:
    try:
        data = b"".join(disk.chunks(path))
    except FileNotFoundError:
        return b""
    return data[: data.rfind(b"\n") + 1]


def plain(value: Any) -> Any:
    """`value` as strict JSON has it: NumPy's numbers as Python's, NaN and infinities as null."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
