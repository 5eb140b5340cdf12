"""Walking a large array in pieces that stay in the cache.

An element-wise formula written in NumPy is a chain of passes. Over a whole activation each pass
goes out to memory; over a block of a quarter megabyte all but the first find their data in the
second-level cache. Block sizes depend on shapes alone, so results do not depend on anything else.
"""

import math
from collections.abc import Iterator

import numpy as np

BLOCK_BYTES = 256 * 1024


def row_blocks(rows: int, row_bytes: int, block_bytes: int = BLOCK_BYTES) -> Iterator[slice]:
    """Slices that cover `rows` rows of `row_bytes` bytes, each about `block_bytes` large."""
    step = max(1, block_bytes // max(1, row_bytes))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def flat(array: np.ndarray) -> np.ndarray:
    """(...) -> (size,), as a view where `array` is contiguous."""
    return array.reshape(-1)


def rows_of(array: np.ndarray, row_ndim: int = 1) -> np.ndarray:
    """(..., *row) -> (rows, row size), as a view where `array` is contiguous.

    Written without -1 so that arrays of size 0 work.
    """
    split = array.ndim - row_ndim
    return array.reshape(math.prod(array.shape[:split]), math.prod(array.shape[split:]))
