"""What an optimizer does to arrays, and the norm that clipping needs, in one pass over memory.

Pure functions on arrays: they know nothing of parameters or where the arrays live. All write in
place. Many are small, and starting a kernel takes longer than a small one does: so each takes one
array, or a list of them to be done together. AdamW is Loshchilov and Hutter's (arXiv 1711.05101),
with PyTorch's placement of eps:

    m = b1 m + (1 - b1) g        v = b2 v + (1 - b2) g^2
    w = w (1 - lr wd) - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
"""

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from .allocator import empty
from .launch import Task, computed_in, operand, pieces, seen_as, span, summing_task, task


@task
def adamw_task(arrays, sizes, numbers, piece, slot):
    n, step = sizes[0], sizes[1]
    first, last = piece * step, min(n, (piece + 1) * step)
    w, grad = span(arrays[0], first, last), span(arrays[1], first, last)
    m, v = span(arrays[2], first, last), span(arrays[3], first, last)
    kind = w.dtype.type
    beta1, rest1 = kind(numbers[0]), kind(1 - numbers[0])
    beta2, rest2 = kind(numbers[1]), kind(1 - numbers[1])
    step_size, correction = kind(numbers[2]), kind(numbers[3])
    eps, keep = kind(numbers[4]), kind(numbers[5])
    for i in range(len(w)):
        g = grad[i]
        m_i = beta1 * m[i] + rest1 * g
        v_i = beta2 * v[i] + rest2 * (g * g)
        m[i] = m_i
        v[i] = v_i
        w[i] = w[i] * keep - step_size * (m_i / (np.sqrt(v_i) * correction + eps))


Arrays = np.ndarray | Sequence[np.ndarray]


def adamw(
    data: Arrays,
    grad: Arrays,
    m: Arrays,
    v: Arrays,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
) -> None:
    """One AdamW step (the `step`-th, from 1) on arrays of one shape, or on each of a list."""
    step_size = lr / (1 - beta1**step)
    correction = 1 / math.sqrt(1 - beta2**step)
    numbers = [beta1, beta2, step_size, correction, eps, 1 - lr * weight_decay]
    _in_place(adamw_task, [data, grad, m, v], numbers)


@task
def sgd_task(arrays, sizes, numbers, piece, slot):
    n, step, has_velocity = sizes[0], sizes[1], sizes[2]
    first, last = piece * step, min(n, (piece + 1) * step)
    w, grad = span(arrays[0], first, last), span(arrays[1], first, last)
    kind = w.dtype.type
    lr, momentum, decay = kind(numbers[0]), kind(numbers[1]), kind(numbers[2])
    if has_velocity:
        velocity = span(arrays[2], first, last)
        for i in range(len(w)):
            u = momentum * velocity[i] + (grad[i] + decay * w[i])
            velocity[i] = u
            w[i] -= lr * u
    else:
        for i in range(len(w)):
            w[i] -= lr * (grad[i] + decay * w[i])


def sgd(
    data: Arrays,
    grad: Arrays,
    velocity: Arrays | None = None,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> None:
    """w -= lr * u, with u = momentum * u + g + weight_decay * w (PyTorch's order).

    Without `velocity`, u is not kept and momentum is 0.
    """
    arrays = [data, grad] if velocity is None else [data, grad, velocity]
    _in_place(sgd_task, arrays, [lr, momentum, weight_decay], velocity is not None)


def _in_place(update: Task, operands: list, numbers: list[float], *flags: int) -> None:
    """Runs an update on arrays of one shape, or on each of a list of such, with one launch.

    What is not contiguous float32 or float64 goes through copies.
    """
    each = [operands] if isinstance(operands[0], np.ndarray) else zip(*operands, strict=True)
    calls, copied = defaultdict(list), []
    for arrays in each:
        dtype = arrays[0].dtype
        if dtype.char not in "fd" or not all(
            a.flags.c_contiguous and a.dtype == dtype for a in arrays
        ):
            given, dtype = arrays, computed_in(dtype)
            arrays = [np.ascontiguousarray(a, dtype) for a in given]
            copied.append((given, arrays))
        count, step = pieces(arrays[0].size, 1)
        calls[dtype].append((count, arrays, [arrays[0].size, step, *flags], numbers))
    for alike in calls.values():
        update.each(alike)
    for given, results in copied:
        for i, (array, result) in enumerate(zip(given, results, strict=True)):
            if array is not result and i != 1:  # the gradient is only read
                np.copyto(array, result, casting="same_kind")


@task
def scale_task(arrays, sizes, numbers, piece, slot):
    n, step = sizes[0], sizes[1]
    x = span(arrays[0], piece * step, min(n, (piece + 1) * step))
    factor = x.dtype.type(numbers[0])
    for i in range(len(x)):
        x[i] *= factor


def scale(arrays: Sequence[np.ndarray], factor: float) -> None:
    """array *= factor, for each array, the factor rounded to its dtype."""
    for dtype in {array.dtype for array in arrays}:
        alike = [array for array in arrays if array.dtype == dtype]
        _in_place(scale_task, [alike], [float(dtype.type(factor))])


@summing_task
def sum_of_squares_task(arrays, sizes, numbers, piece, slot):
    n, step = sizes[0], sizes[1]
    first, last = piece * step, min(n, (piece + 1) * step)
    x, total = span(arrays[0], first, last), 0.0
    for i in range(len(x)):
        value = np.float64(x[i])
        total += value * value
    seen_as(arrays[1], np.float64)[piece] = total


def piece_squares(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Of each array the sums of squares of consecutive pieces, in float64, in parallel."""
    calls, found = defaultdict(list), []
    for source in map(operand, arrays):
        count, step = pieces(source.size, 1)
        found.append(empty(count, np.float64))
        calls[source.dtype].append((count, [source, found[-1]], [source.size, step], ()))
    for alike in calls.values():
        sum_of_squares_task.each(alike)
    return found


def squares_from(totals: np.ndarray) -> float:
    """The sum of `piece_squares` of an array, in order; of one in parts if all but the last part
    hold a multiple of the elements of a piece."""
    return float(np.add.reduce(totals))


def sums_of_squares(arrays: Sequence[np.ndarray]) -> list[float]:
    """Of each array the sum of squares, in float64: over pieces in parallel, then in order."""
    return [squares_from(totals) for totals in piece_squares(arrays)]
