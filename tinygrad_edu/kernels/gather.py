"""Embedding: picking rows of a table, and summing gradients back into the rows picked."""

import numpy as np

from .allocator import empty, zeros


def gather_rows(table: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """table (V, C), ids (...) -> (..., C)."""
    out = empty((*ids.shape, table.shape[1]), table.dtype)
    return np.take(table, ids, axis=0, out=out, mode="wrap")  # "wrap" writes without a buffer


def scatter_rows(grad: np.ndarray, ids: np.ndarray, rows: int) -> np.ndarray:
    """grad (..., C), ids (...) -> (rows, C): for each row, the sum of the gradients it received.

    Sorting the ids brings equal ones together, so each row is one sum, in the order of the text.
    """
    c = grad.shape[-1]
    out = zeros((rows, c), grad.dtype)
    if ids.size == 0 or c == 0:
        return out
    flat_ids = ids.reshape(ids.size)
    order = np.argsort(flat_ids, kind="stable")
    ordered = flat_ids[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    out[ordered[starts]] = np.add.reduceat(grad.reshape(ids.size, c)[order], starts, axis=0)
    return out
