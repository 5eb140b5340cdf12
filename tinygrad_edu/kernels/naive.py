"""The kernels as plain loops: slow, obvious, and the oracle the fast ones are tested against.

Each has the fast kernel's name and meaning, works in Python floats (double precision), and
follows the formula of a textbook instead of any trick.
"""

import math

import numpy as np


def matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(m, k) @ (k, n) -> (m, n)"""
    m, k = a.shape
    n = b.shape[1]
    out = np.zeros((m, n))
    for i in range(m):
        for j in range(n):
            for p in range(k):
                out[i, j] += float(a[i, p]) * float(b[p, j])
    return out


def softmax(row: list[float]) -> list[float]:
    top = max(row)
    powers = [math.exp(value - top) for value in row]
    return [power / sum(powers) for power in powers]


def attention(q, k, v, scale: float, is_causal: bool, mask=None) -> np.ndarray:
    """q (T, D), k (S, D), v (S, E) -> (T, E), one head; mask (T, S) is added to the scores."""
    t, s = len(q), len(k)
    out = np.zeros((t, v.shape[1]))
    for i in range(t):
        seen = range(i + s - t + 1) if is_causal else range(s)
        scores = []
        for j in seen:
            score = scale * sum(float(x) * float(y) for x, y in zip(q[i], k[j], strict=True))
            scores.append(score + (0.0 if mask is None else float(mask[i, j])))
        for j, p in zip(seen, softmax(scores), strict=True):
            for e in range(v.shape[1]):
                out[i, e] += p * float(v[j, e])
    return out


def cross_entropy(z: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Logits (N, C), class ids (N,) -> losses (N,)"""
    return np.array([-math.log(softmax(list(map(float, z[i])))[ids[i]]) for i in range(len(z))])


def linear_cross_entropy(x: np.ndarray, weight: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """x (N, K), weight (C, K), class ids (N,) -> losses (N,)"""
    return cross_entropy(matmul(x, weight.T), ids)


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    """(N, C) -> (N, C)"""
    n, c = x.shape
    out = np.zeros((n, c))
    for i in range(n):
        mean = sum(float(value) for value in x[i]) / c
        variance = sum((float(value) - mean) ** 2 for value in x[i]) / c
        for j in range(c):
            normal = (float(x[i, j]) - mean) / math.sqrt(variance + eps)
            out[i, j] = normal * float(weight[j]) + float(bias[j])
    return out


def gelu(x: float, tanh: bool) -> float:
    if tanh:
        return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + math.erf(x / math.sqrt(2)))


def scatter_rows(grad: np.ndarray, ids: np.ndarray, rows: int) -> np.ndarray:
    """grad (N, C), ids (N,) -> (rows, C)"""
    out = np.zeros((rows, grad.shape[1]))
    for i in range(len(ids)):
        for j in range(grad.shape[1]):
            out[ids[i], j] += float(grad[i, j])
    return out


def adamw(data, grad, m, v, *, lr, beta1, beta2, eps, weight_decay, step) -> None:
    """One element at a time, in place."""
    for i in np.ndindex(data.shape):
        m[i] = beta1 * m[i] + (1 - beta1) * grad[i]
        v[i] = beta2 * v[i] + (1 - beta2) * grad[i] ** 2
        m_hat, v_hat = m[i] / (1 - beta1**step), v[i] / (1 - beta2**step)
        data[i] -= lr * weight_decay * data[i] + lr * m_hat / (math.sqrt(v_hat) + eps)
