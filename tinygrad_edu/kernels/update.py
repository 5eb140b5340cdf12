"""What an optimizer does to one array, and the norm that clipping needs, in cache-sized blocks.

Pure functions on arrays: they know nothing of parameters or where the arrays live. All write in
place. AdamW is Loshchilov and Hutter's (arXiv 1711.05101), with PyTorch's placement of eps:

    m = b1 m + (1 - b1) g        v = b2 v + (1 - b2) g^2
    w = w (1 - lr wd) - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
"""

import math

import numpy as np

from .blocks import flat, row_blocks


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
    root_correction = 1 / math.sqrt(1 - beta2**step)
    w_all, g_all, m_all, v_all = flat(data), flat(grad), flat(m), flat(v)
    for block in row_blocks(data.size, data.itemsize):
        w, g, m_, v_ = w_all[block], g_all[block], m_all[block], v_all[block]
        scratch = g * (1 - beta1)
        m_ *= beta1
        m_ += scratch
        np.multiply(g, g, out=scratch)
        scratch *= 1 - beta2
        v_ *= beta2
        v_ += scratch
        np.sqrt(v_, out=scratch)
        scratch *= root_correction
        scratch += eps
        np.divide(m_, scratch, out=scratch)
        scratch *= step_size
        if weight_decay:
            w *= 1 - lr * weight_decay
        w -= scratch


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
    w_all, g_all = flat(data), flat(grad)
    for block in row_blocks(data.size, data.itemsize):
        w = w_all[block]
        u = w * weight_decay
        u += g_all[block]
        if velocity is not None:
            kept = flat(velocity)[block]
            kept *= momentum
            kept += u
            u[...] = kept
        u *= lr
        w -= u


def sum_of_squares(array: np.ndarray) -> float:
    """The sum of squares, added up in float64 over blocks in order."""
    values = flat(array)
    total = 0.0
    for block in row_blocks(array.size, array.itemsize):
        wide = values[block].astype(np.float64)
        total += float(np.dot(wide, wide))
    return total
