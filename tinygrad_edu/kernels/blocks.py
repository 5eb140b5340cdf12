"""Walking a large array in pieces: blocks that stay in the cache, units that travel.

An element-wise formula written in NumPy is a chain of passes. Over a whole activation each pass
goes out to memory; over a block of a quarter megabyte all but the first find their data in the
second-level cache. A table too large to be held whole is used a unit of rows at a time (`Rows`).
Sizes depend on shapes alone, so results do not depend on anything else.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from . import switch
from .allocator import empty
from .gather import gather_rows

BLOCK_BYTES = 256 * 1024
UNIT_BYTES = 16 * 1024 * 1024  # long enough to read at full speed, and a product near its peak


def row_blocks(rows: int, row_bytes: int) -> Iterator[slice]:
    """Slices that cover `rows` rows of `row_bytes` bytes, each about BLOCK_BYTES large."""
    step = max(1, BLOCK_BYTES // max(1, row_bytes))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def broadcast_empty(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Memory from `empty` for what an element-wise formula makes of the arrays."""
    shape, dtype = arrays[0].shape, arrays[0].dtype
    for x in arrays:  # most are alike: NumPy takes longer to say so
        if x.shape != shape or x.dtype != dtype:
            return empty(np.broadcast_shapes(*[x.shape for x in arrays]), np.result_type(*arrays))
    return empty(shape, dtype)


def blockwise(formula: Callable[..., np.ndarray], *arrays: np.ndarray) -> np.ndarray:
    """formula(*arrays), element by element and broadcast, in memory from `empty`.

    It is called with blocks of the arrays, so that what it makes on the way stays small and in the
    cache. Where one is broadcast or not contiguous, a block is some rows of the first axis, or of a
    later one if a row is larger than a block.
    """
    out = broadcast_empty(arrays)
    shape = out.shape
    if switch.off or out.size == 0:
        return out
    if out.nbytes <= BLOCK_BYTES:
        out[...] = formula(*arrays)
        return out
    if all(x.ndim == 0 or (x.shape == shape and x.flags.c_contiguous) for x in arrays):
        parts, target = [x if x.ndim == 0 else x.reshape(-1) for x in arrays], out.reshape(-1)
    else:
        parts, target = [x if x.ndim == 0 else np.broadcast_to(x, shape) for x in arrays], out
    fill_blocks(formula, parts, target)
    return out


def fill_blocks(formula: Callable, parts: Sequence[np.ndarray], target: np.ndarray) -> None:
    """target[...] = formula(*parts), block by block; parts have its shape, or none."""
    row_bytes = target[:1].nbytes
    if target.ndim > 1 and row_bytes > BLOCK_BYTES:
        for i in range(len(target)):
            fill_blocks(formula, [x if x.ndim == 0 else x[i] for x in parts], target[i])
        return
    for block in row_blocks(len(target), row_bytes):
        target[block] = formula(*[x if x.ndim == 0 else x[block] for x in parts])


def rows_of(array: np.ndarray, row_ndim: int = 1) -> np.ndarray:
    """(..., *row) -> (rows, row size), as a view where `array` is contiguous.

    Written without -1 so that arrays of size 0 work.
    """
    split = array.ndim - row_ndim
    return array.reshape(math.prod(array.shape[:split]), math.prod(array.shape[split:]))


def row_units(rows: int, row_bytes: int, most_bytes: int | None = None) -> list[tuple[int, int]]:
    """(start, stop) of parts of `rows` rows of `row_bytes` bytes, in order, equal up to one row.

    A part has at most `most_bytes` (`UNIT_BYTES` unless told), but at least one row. Equal parts
    take turns in the same memory. No rows are one empty part, so that whoever walks the parts still
    makes results of size 0.
    """
    most_bytes = UNIT_BYTES if most_bytes is None else most_bytes
    if rows * row_bytes <= most_bytes:
        return [(0, rows)]
    count = -(-rows // max(1, most_bytes // row_bytes))
    edges = [rows * i // count for i in range(count + 1)]
    return list(itertools.pairwise(edges))


class Rows:
    """A table (R, C) of which an op reads some rows at a time; this one is an array in memory.

    Ops rely on these names alone, so another table may fetch its rows when asked for them. Rows are
    borrowed: drop every reference to them, views included, before asking for the next.
    """

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.shape, self.dtype, self.ndim = array.shape, array.dtype, array.ndim

    def __len__(self) -> int:
        return self.shape[0]

    def rows(self, start: int, stop: int) -> np.ndarray:
        """-> (stop - start, C)"""
        return self.array[start:stop]

    def take(self, ids: np.ndarray) -> np.ndarray:
        """ids (...), 0 <= id < R -> (..., C)"""
        return gather_rows(self.array, ids)
