"""AdamW, SGD, scaling, and sums of squares, in one pass over memory.

Pure functions on arrays, which know nothing of parameters or where the arrays live. A model has
many small ones, and starting a kernel takes longer than updating a small one: so each function
takes an array, or a list of them that are done with one launch. AdamW is Loshchilov and Hutter's
(arXiv 1711.05101), with PyTorch's placement of eps:

    m = b1 m + (1 - b1) g        v = b2 v + (1 - b2) g^2
    w = w (1 - lr wd) - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

The averages of a weight that gets no more gradient shrink by a constant factor per step, until they
are denormal numbers (below 1e-38 in float32), and there rounding stops them: 0.9 times the smallest
is the smallest. Some CPUs take a hundred times longer for those, so what is kept becomes 0 instead.
The smallest normal number is added to v, so that 0 / 0 is 0 even without eps.
"""

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numba import njit

from . import switch
from .allocator import empty
from .launch import SMALL, Task, computed_in, operand, pieces, seen_as, span, summing_task, task

Arrays = np.ndarray | Sequence[np.ndarray]  # of a list, no two share memory


@njit(error_model="numpy")
def without_denormal(x, smallest):
    """x, but 0 if it is nearer to 0 than the smallest normal number."""
    return type(x)(0) if abs(x) < smallest else x


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
    eps, keep, smallest = kind(numbers[4]), kind(numbers[5]), np.finfo(kind).tiny
    for i in range(len(w)):
        g = grad[i]
        m_i = without_denormal(beta1 * m[i] + rest1 * g, smallest)
        v_i = without_denormal(beta2 * v[i] + rest2 * (g * g), smallest)
        m[i] = m_i
        v[i] = v_i
        w[i] = w[i] * keep - step_size * (m_i / (np.sqrt(v_i + smallest) * correction + eps))


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
        velocity, smallest = span(arrays[2], first, last), np.finfo(kind).tiny
        for i in range(len(w)):
            u = momentum * velocity[i] + (grad[i] + decay * w[i])
            velocity[i] = u = without_denormal(u, smallest)
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
    """Runs an update on arrays of one shape, or on each of lists of such, with one launch.

    All but the second, the gradient, are written. What is not contiguous float32 or float64 goes
    through copies, one after the other.
    """
    calls = defaultdict(list)
    for arrays in (
        [operands] if isinstance(operands[0], np.ndarray) else zip(*operands, strict=True)
    ):
        written = [a for i, a in enumerate(arrays) if i != 1]
        if not all(a.flags.writeable for a in written):
            raise ValueError("an update writes into its arrays, and one of them is read-only")
        dtype = computed_in(arrays[0].dtype)
        if all(a.flags.c_contiguous and a.dtype == dtype for a in arrays):
            calls[dtype].append(_call(arrays, flags, numbers))
        else:
            _through_copies(update, arrays, flags, numbers)
    for alike in calls.values():
        _each(update, alike)


def _through_copies(update: Task, arrays: Sequence, flags: Sequence, numbers: Sequence) -> None:
    copies = [np.ascontiguousarray(a, computed_in(arrays[0].dtype)) for a in arrays]
    update(*_call(copies, flags, numbers))
    for i, (array, result) in enumerate(zip(arrays, copies, strict=True)):
        if array is not result and i != 1:
            np.copyto(array, result, casting="same_kind")


def _call(arrays: Sequence[np.ndarray], flags: Sequence[int] = (), numbers: Sequence = ()) -> tuple:
    """The arguments of a task that cuts the first array into pieces."""
    count, step = pieces(arrays[0].size, 1)
    return count, arrays, [arrays[0].size, step, *flags], numbers


def _each(task: Task, calls: list[tuple]) -> None:
    task.each(calls, 1 if sum(sizes[0] for _, _, sizes, _ in calls) < SMALL else None)


@task
def scale_task(arrays, sizes, numbers, piece, slot):
    n, step = sizes[0], sizes[1]
    x = span(arrays[0], piece * step, min(n, (piece + 1) * step))
    factor = x.dtype.type(numbers[0])
    for i in range(len(x)):
        x[i] *= factor


def scale(arrays: Arrays, factor: float) -> None:
    """array *= factor, the factor rounded to the array's dtype."""
    calls = defaultdict(list)
    for array in [arrays] if isinstance(arrays, np.ndarray) else arrays:
        dtype, flags = array.dtype, array.flags
        if array.size >= SMALL and computed_in(dtype) == dtype and flags.carray:
            calls[dtype].append(_call([array], (), [float(dtype.type(factor))]))
        elif not switch.off:
            array *= dtype.type(factor)
    for alike in calls.values():
        scale_task.each(alike)


@summing_task
def sum_of_squares_task(arrays, sizes, numbers, piece, slot):
    n, step = sizes[0], sizes[1]
    first, last = piece * step, min(n, (piece + 1) * step)
    x, total = span(arrays[0], first, last), 0.0
    for i in range(len(x)):
        value = np.float64(x[i])
        total += value * value
    seen_as(arrays[1], np.float64)[piece] = total


def piece_squares(arrays: Arrays) -> list[np.ndarray]:
    """Of each array the sums of squares of consecutive pieces, in float64, in parallel."""
    calls, found = defaultdict(list), []
    for array in [arrays] if isinstance(arrays, np.ndarray) else arrays:
        source = operand(array)
        found.append(empty(pieces(source.size, 1)[0], np.float64))
        call = _call([source, found[-1]])
        if source is array:
            calls[source.dtype].append(call)
        else:  # one copy at a time
            sum_of_squares_task(*call)
    for alike in calls.values():
        _each(sum_of_squares_task, alike)
    return found


def squares_from(totals: np.ndarray) -> float:
    """The sum of `piece_squares` of an array, in order; of one in parts if all but the last part
    hold a multiple of the elements of a piece."""
    return float(np.add.reduce(totals))


def sums_of_squares(arrays: Arrays) -> list[float]:
    """Of each array the sum of squares, in float64: over pieces in parallel, then in order."""
    return [squares_from(totals) for totals in piece_squares(arrays)]
