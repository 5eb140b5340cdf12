"""Lesson 2, solved: the chosen one receives the gradient, and all its copies' gradients add up."""

import numpy as np


def where(condition, a, b):
    """The forward pass, for reference: arrays, of any shapes that fit."""
    return np.where(condition, a, b)


def unbroadcast(grad, shape):
    missing = grad.ndim - len(shape)
    grad = grad.sum(axis=tuple(range(missing)))
    stretched = tuple(i for i, n in enumerate(shape) if n == 1 and grad.shape[i] != 1)
    return grad.sum(axis=stretched, keepdims=True)


def where_backward(grad, condition, a_shape, b_shape):
    to_a = np.where(condition, grad, 0)
    to_b = np.where(condition, 0, grad)
    return unbroadcast(to_a, a_shape), unbroadcast(to_b, b_shape)
