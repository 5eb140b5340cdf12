"""Embedding: picking rows of a table, and summing gradients back into the rows picked."""

import numpy as np

from .allocator import empty
from .launch import carray, operand, pieces, rows, seen_as, task


@task
def gather_task(arrays, sizes, numbers, piece, slot):
    n, c, step = sizes[0], sizes[1], sizes[2]
    first, last = piece * step, min(n, (piece + 1) * step)
    out, ids = rows(arrays[0], first, last, c), carray(seen_as(arrays[2], np.int64), n)
    for i in range(last - first):
        row, target = rows(arrays[1], ids[first + i], ids[first + i] + 1, c)[0], out[i]
        for j in range(c):
            target[j] = row[j]


def gather_rows(table: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """table (V, C), ids (...), 0 <= id < V -> (..., C)."""
    source, c = operand(table), table.shape[1]
    out = empty((*ids.shape, c), source.dtype)
    count, step = pieces(ids.size, c)
    gather_task(count, [out, source, operand(ids, np.int64)], [ids.size, c, step])
    return out.astype(table.dtype, copy=False)


@task
def sum_runs_task(arrays, sizes, numbers, piece, slot):
    n, runs, c, step = sizes[0], sizes[1], sizes[2], sizes[3]
    first, last = piece * step, min(runs, (piece + 1) * step)
    out = rows(arrays[0], first, last, c)
    order, starts = (
        carray(seen_as(arrays[2], np.int64), n),
        carray(seen_as(arrays[3], np.int64), runs + 1),
    )
    for i in range(last - first):
        target = out[i]
        target[:] = out.dtype.type(0)
        for place in range(starts[first + i], starts[first + i + 1]):
            grad = rows(arrays[1], order[place], order[place] + 1, c)[0]
            for j in range(c):
                target[j] += grad[j]


def sum_runs(grad: np.ndarray, order: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """grad (..., C), order (n,), starts (runs + 1,) -> (runs, C).

    Row r is the sum of the gradients `order[starts[r] : starts[r + 1]]`, in this order.
    """
    source, c, runs = operand(grad), grad.shape[-1], len(starts) - 1
    out = empty((runs, c), source.dtype)
    count, step = pieces(runs, c)
    arrays = [out, source, operand(order, np.int64), operand(starts, np.int64)]
    sum_runs_task(count, arrays, [order.size, runs, c, step])
    return out.astype(grad.dtype, copy=False)


def sum_rows(grad: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """grad (..., C), ids (...) -> the distinct ids, ascending (n,), and their sums (n, C).

    Sorting the ids brings equal ones together, so each row is one sum, in the order of the text.
    """
    flat_ids = ids.reshape(ids.size)
    order = np.argsort(flat_ids, kind="stable")
    in_order = flat_ids[order].astype(np.int64, copy=False)
    is_first = np.ones(ids.size + 1, bool)  # of its run; and the end
    np.not_equal(in_order[1:], in_order[:-1], out=is_first[1:-1])
    starts = np.flatnonzero(is_first)
    return in_order[starts[:-1]], sum_runs(grad, order, starts)
