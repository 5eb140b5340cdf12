"""safetensors files, written and read piece by piece: no tensor has to be in memory at once.

A `LazyTensor` has a shape and a dtype, and gives its numbers in flat pieces when asked. A file is
written from such tensors and read back as such. The layout is
https://huggingface.co/docs/safetensors: header length (u64), JSON header, data, little-endian.
"""

import hashlib
import json
import math
import os
import weakref
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from . import disk
from .errors import UserError

PIECE = 1 << 18  # elements: 1 MB of float32
HEADER_LIMIT = 100_000_000  # bytes, as in the safetensors library
DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bool": "BOOL"}
DTYPES |= {f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)}
DTYPES |= {f"uint{bits}": f"U{bits}" for bits in (8, 16, 32, 64)}
STORED = {name: np.dtype(dtype).newbyteorder("<") for dtype, name in DTYPES.items()}
STORED["BF16"] = np.dtype("<u2")  # NumPy lacks bfloat16: the upper half of a float32


@dataclass(frozen=True, eq=False)
class LazyTensor:
    """`pieces()` gives all numbers in order, in flat arrays, each valid until the next one."""

    shape: tuple[int, ...]
    dtype: np.dtype
    pieces: Callable[[], Iterator[np.ndarray]]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The whole, in memory."""
        if copy is False:
            raise ValueError("an array made from a LazyTensor is a copy")
        out, start = np.empty(math.prod(self.shape), self.dtype), 0
        for piece in self.pieces():
            out[start : start + piece.size] = piece
            start += piece.size
        return out.reshape(self.shape).astype(self.dtype if dtype is None else dtype, copy=False)

    def tobytes(self) -> bytes:
        return np.asarray(self).tobytes()

    def pieces_as(self, dtype: np.dtype) -> Iterator[np.ndarray]:
        return (piece.astype(dtype, copy=False) for piece in self.pieces())


def lazy(tensor: Any) -> LazyTensor:
    """`tensor`, an array or lazy already, as a LazyTensor."""
    if isinstance(tensor, LazyTensor):
        return tensor
    array = np.asarray(tensor)

    def pieces() -> Iterator[np.ndarray]:
        flat = np.ascontiguousarray(array).reshape(-1)
        return (flat[i : i + PIECE] for i in range(0, flat.size, PIECE))

    return LazyTensor(array.shape, array.dtype, pieces)


def transposed(matrix: LazyTensor) -> LazyTensor:
    """The transpose, which is assembled whole each time it is asked for."""
    rows, columns = matrix.shape

    def pieces() -> Iterator[np.ndarray]:
        out = np.empty((columns, rows), matrix.dtype)
        start = 0
        for piece in matrix.pieces():
            while piece.size:  # whole rows, or what there is of one row
                row, column = divmod(start, columns)
                if column == 0 and piece.size >= columns:
                    count = piece.size // columns
                    taken = count * columns
                    out.T[row : row + count] = piece[:taken].reshape(count, columns)
                else:
                    taken = min(columns - column, piece.size)
                    out.T[row, column : column + taken] = piece[:taken]
                start, piece = start + taken, piece[taken:]
        yield out.reshape(-1)

    return LazyTensor((columns, rows), matrix.dtype, pieces)


def equal(a: LazyTensor, b: LazyTensor) -> bool:
    """Whether shapes and numbers are equal, as np.array_equal has it."""
    if a.shape != b.shape:
        return False
    ours, theirs = ((p for p in tensor.pieces() if p.size) for tensor in (a, b))
    x = y = np.empty(0)
    while True:
        x = x if x.size else next(ours, None)
        y = y if y.size else next(theirs, None)
        if x is None or y is None:
            return x is y
        count = min(x.size, y.size)
        if not np.array_equal(x[:count], y[:count]):
            return False
        x, y = x[count:], y[count:]


def serialized(
    tensors: Mapping[str, Any],
    entry: dict[str, Any] | None = None,
    separators: tuple[str, str] | None = None,
) -> Iterator[Any]:
    """A safetensors file of `tensors` (arrays or LazyTensors), piece by piece, in their order.

    Largest dtype first keeps all aligned. `entry` receives the size, the sha256 of the whole and,
    under "tensors", the crc32 of each tensor. `separators` are json.dumps's.
    """
    tensors = {name: lazy(tensor) for name, tensor in tensors.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers asks for it
    end = 0
    for name, tensor in tensors.items():
        if tensor.dtype.name not in DTYPES:
            raise TypeError(f"{name} is {tensor.dtype}, which safetensors has no name for")
        start, end = end, end + tensor.dtype.itemsize * math.prod(tensor.shape)
        header[name] = {"dtype": DTYPES[tensor.dtype.name], "shape": list(tensor.shape)}
        header[name]["data_offsets"] = [start, end]
    text = json.dumps(header, separators=separators).encode()
    text += b" " * (-len(text) % 8)
    whole = hashlib.sha256(preamble := len(text).to_bytes(8, "little") + text)
    yield preamble
    checksums = {}
    for name, tensor in tensors.items():
        checksum, count, size = 0, 0, math.prod(tensor.shape)
        for piece in tensor.pieces_as(tensor.dtype.newbyteorder("<")):
            data = np.ascontiguousarray(piece).reshape(-1).view(np.uint8)
            count += piece.size
            whole.update(data)
            checksum = zlib.crc32(data, checksum)
            yield data
            del piece, data  # before the next is made: it may be a matrix
        if count != size:
            raise ValueError(f"{name} gave {count} elements, its shape {tensor.shape} has {size}")
        checksums[name] = checksum
    if entry is not None:
        entry |= {"tensors": checksums, "bytes": len(preamble) + end, "sha256": whole.hexdigest()}


class DamagedFile(UserError):
    """What is wrong with a safetensors file, and `where` in it."""

    def __init__(self, path: Path, where: str, what: str) -> None:
        super().__init__(
            f"{path} cannot be read as safetensors: {where} {what}; fetch or write the file anew"
        )
        self.where = where


class TensorFile:
    """An open safetensors file. OSError if there is none.

    It stays open, so that a file that another process removes can be read to its end, until
    `close()` or until nothing refers to it or its tensors.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = disk.calls.open(path, os.O_RDONLY | disk.BINARY, 0o666)
        self.close = weakref.finalize(self, os.close, self._descriptor)
        self.size = os.fstat(self._descriptor).st_size

    def _read(self, start: int, length: int) -> bytes:
        if not self.close.alive:
            raise ValueError(f"{self.path} was closed: open it again to read its tensors")
        return disk.read_at(self._descriptor, start, length)

    def sha256(self) -> str:
        whole, start = hashlib.sha256(), 0
        while chunk := self._read(start, 1 << 20):
            whole.update(chunk)
            start += len(chunk)
        return whole.hexdigest()

    def tensors(self) -> dict[str, LazyTensor]:
        """The tensors by name, in the order of their data; DamagedFile if the header is wrong."""
        found = {}
        for name, dtype, shape, start in self._header():
            native = np.dtype(np.float32) if dtype == "BF16" else STORED[dtype].newbyteorder("=")
            read = partial(self._pieces, name, dtype, native, math.prod(shape), start)
            found[name] = LazyTensor(shape, native, read)
        return found

    def _pieces(
        self, name: str, stored: str, native: np.dtype, size: int, start: int
    ) -> Iterator[np.ndarray]:
        itemsize = STORED[stored].itemsize
        for first in range(0, size, PIECE):
            length = min(PIECE, size - first) * itemsize
            try:
                data = self._read(start + first * itemsize, length)
            except OSError as error:
                raise DamagedFile(self.path, f"tensor {name}", f"({error.strerror})") from None
            if len(data) < length:
                raise DamagedFile(self.path, f"tensor {name}", "is cut short")
            piece = np.frombuffer(data, STORED[stored])
            if stored == "BF16":
                piece = (piece.astype(np.uint32) << 16).view(np.float32)
            yield piece.astype(native, copy=False)

    def _header(self) -> list[tuple[str, str, tuple[int, ...], int]]:
        """(name, dtype, shape, position in the file), ordered and proven to fill the file."""

        def damaged(what: str, where: str = "its header") -> DamagedFile:
            return DamagedFile(self.path, where, what)

        length = int.from_bytes(self._read(0, 8), "little")
        data = 8 + length  # where it begins
        if self.size < 8 or data > self.size:
            raise damaged(f"of {length} bytes does not fit into a file of {self.size}")
        if length > HEADER_LIMIT:
            raise damaged(f"of {length} bytes is longer than the {HEADER_LIMIT} allowed")
        try:
            header = json.loads(self._read(8, length))
        except (ValueError, RecursionError):
            raise damaged("is not JSON") from None
        if not isinstance(header, dict):
            raise damaged("is not a JSON object")
        header.pop("__metadata__", None)
        entries = []
        for name, entry in header.items():
            match entry:
                case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [start, end]} if all(
                    type(n) is int and n >= 0 for n in (*shape, start, end)
                ):
                    entries.append((start, end, name, dtype, tuple(shape)))
                case _:
                    raise damaged(f"does not give dtype, shape and data_offsets of {name}")
        entries.sort()
        position = 0
        for start, end, name, dtype, shape in entries:
            if dtype not in STORED:
                known = ", ".join(STORED)
                raise damaged(f"gives {name} the dtype {dtype}, which is none of {known}")
            if end - start != STORED[dtype].itemsize * math.prod(shape):
                raise damaged(f"gives {name} {end - start} bytes, which {dtype} {shape} is not")
            if start != position:
                raise damaged(f"has {name} begin at {start}, where {position} is due")
            position = end
            if data + end > self.size:
                raise damaged(f"ends at {data + end} in a file of {self.size}", f"tensor {name}")
        if data + position != self.size:
            raise damaged(f"accounts for {data + position} bytes of {self.size}")
        return [(name, dtype, shape, data + start) for start, _, name, dtype, shape in entries]
