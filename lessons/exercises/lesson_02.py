"""Lesson 2: the gradient of `where`, whatever was stretched.

`np.where(condition, a, b)` takes a where the condition holds, and b elsewhere. All three may have
different shapes, as long as they can be stretched to one.

Write `where_backward`. NumPy is allowed, the package is not. Then: python -m lessons.check 2
"""

import numpy as np


def where(condition, a, b):
    """The forward pass, for reference: arrays, of any shapes that fit."""
    return np.where(condition, a, b)


def where_backward(grad, condition, a_shape, b_shape):
    """Gradients of a, of shape `a_shape`, and of b, of shape `b_shape`.

    grad: the gradient of the result, and of its shape; it may hold infinities. condition: an array
    of booleans, as it was given, so it may have been stretched as well. The arguments stay as they
    are.
    """
    raise NotImplementedError("Who was chosen receives the gradient; what was copied, the sum.")
