"""What an optimizer does to one array, and the norm that clipping needs, in one pass over memory.

Pure functions on arrays: they know nothing of parameters or where the arrays live. All write in
place. AdamW is Loshchilov and Hutter's (arXiv 1711.05101), with PyTorch's placement of eps:

    m = b1 m + (1 - b1) g        v = b2 v + (1 - b2) g^2
    w = w (1 - lr wd) - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
"""

import math

import numpy as np

from .allocator import empty
from .launch import computed_in, operand, pieces, seen_as, span, summing_task, task


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


def adamw(
    data: np.ndarray,
    grad: np.ndarray,
    m: np.ndarray,
    v: np.ndarray,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
) -> None:
    """One AdamW step (the `step`-th, from 1) on contiguous arrays of one shape."""
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
    data: np.ndarray,
    grad: np.ndarray,
    velocity: np.ndarray | None = None,
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


def _in_place(update, arrays: list[np.ndarray], numbers: list[float], *flags: int) -> None:
    """Runs an update on arrays of one shape; what is not float32 or float64 goes through copies."""
    data = arrays[0]
    if data.dtype.char in "fd" and all(
        a.flags.c_contiguous and a.dtype == data.dtype for a in arrays
    ):
        count, step = pieces(data.size, 1)
        update(count, arrays, [data.size, step, *flags], numbers)
        return
    dtype = computed_in(data.dtype)
    copies = [np.ascontiguousarray(a, dtype) for a in arrays]
    _in_place(update, copies, numbers, *flags)
    for array, result in zip(arrays, copies, strict=True):
        if array is not result and array is not arrays[1]:
            np.copyto(array, result, casting="same_kind")


@summing_task
def sum_of_squares_task(arrays, sizes, numbers, piece, slot):
    n, step = sizes[0], sizes[1]
    first, last = piece * step, min(n, (piece + 1) * step)
    x, total = span(arrays[0], first, last), 0.0
    for i in range(len(x)):
        value = np.float64(x[i])
        total += value * value
    seen_as(arrays[1], np.float64)[piece] = total


def piece_squares(array: np.ndarray) -> np.ndarray:
    """The sums of squares of consecutive pieces, in float64, in parallel."""
    source = operand(array)
    count, step = pieces(source.size, 1)
    totals = empty(count, np.float64)
    sum_of_squares_task(count, [source, totals], [source.size, step])
    return totals


def squares_from(totals: np.ndarray) -> float:
    """The sum of `piece_squares`, in order; of an array in parts if all but the last part hold a
    multiple of the elements of a piece."""
    return float(np.add.reduce(totals))


def sum_of_squares(array: np.ndarray) -> float:
    """The sum of squares, in float64: over pieces in parallel, then over their sums in order."""
    return squares_from(piece_squares(array))
