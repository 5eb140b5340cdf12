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


def attention_backward(grad, q, k, v, scale: float, is_causal: bool, mask=None):
    """grad (T, E) -> gradients of q, k and v of one head, from whole matrices of probabilities."""
    t, s = len(q), len(k)
    dq, dk, dv = np.zeros(q.shape), np.zeros(k.shape), np.zeros(v.shape)
    for i in range(t):
        seen = list(range(i + s - t + 1) if is_causal else range(s))
        scores = [scale * sum(float(x) * float(y) for x, y in zip(q[i], k[j], strict=True))
                  + (0.0 if mask is None else float(mask[i, j])) for j in seen]  # fmt: skip
        p = softmax(scores) if seen else []
        dp = [sum(float(x) * float(y) for x, y in zip(grad[i], v[j], strict=True)) for j in seen]
        mean = sum(x * y for x, y in zip(p, dp, strict=True))
        for j, p_j, dp_j in zip(seen, p, dp, strict=True):
            ds = p_j * (dp_j - mean) * scale
            dq[i] += ds * k[j].astype(float)
            dk[j] += ds * q[i].astype(float)
            dv[j] += p_j * grad[i].astype(float)
    return dq, dk, dv


def coefficients(classes, n_classes: int, class_weight, ignore_index: int, smooth: float):
    """Class ids (N,) or probabilities (N, C), class weights (C,) or None -> a (N, C)."""
    a = np.zeros((len(classes), n_classes))
    for i, target in enumerate(classes):
        if classes.ndim == 1 and target == ignore_index:
            continue
        for c in range(n_classes):
            p = float(target[c]) if classes.ndim == 2 else float(c == target)
            weight = 1.0 if class_weight is None else float(class_weight[c])
            a[i, c] = ((1 - smooth) * p + smooth / n_classes) * weight
    return a


def one_hot(target: np.ndarray, n_classes: int) -> np.ndarray:
    """Class ids (N,) -> a (N, C); what is (N, C) already stays."""
    return target if target.ndim == 2 else coefficients(target, n_classes, None, -100, 0.0)


def log_sum_exp(row: list[float]) -> float:
    top = max(row)
    return top + math.log(sum(math.exp(value - top) for value in row))


def cross_entropy(z: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Logits (N, C), class ids (N,) or a (N, C) -> losses (N,)"""
    losses = np.zeros(len(z))
    for i, a in enumerate(one_hot(target, z.shape[1])):
        row = list(map(float, z[i]))
        for value, a_c in zip(row, a, strict=True):
            if a_c:
                losses[i] += a_c * (log_sum_exp(row) - value)
    return losses


def cross_entropy_backward(grad: np.ndarray, z: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Row gradients (N,), logits (N, C), class ids (N,) or a (N, C) -> gradient of the logits"""
    out = np.zeros(z.shape)
    for i, a in enumerate(one_hot(target, z.shape[1])):
        if any(a):
            p = softmax(list(map(float, z[i])))
            out[i] = [float(grad[i]) * (sum(a) * p_c - a_c) for p_c, a_c in zip(p, a, strict=True)]
    return out


def linear_cross_entropy(
    x: np.ndarray, weight: np.ndarray, target: np.ndarray, bias: np.ndarray | float = 0.0
) -> np.ndarray:
    """x (N, K), weight (C, K), class ids (N,) or a (N, C), bias (C,) -> losses (N,)"""
    return cross_entropy(matmul(x, weight.T) + bias, target)


def linear_cross_entropy_backward(grad, x, weight, target, bias=0.0):
    """Gradients of x (N, K), weight (C, K) and bias (C,) from row gradients (N,)."""
    dz = cross_entropy_backward(grad, matmul(x, weight.T) + bias, target)
    dbias = np.array([sum(column) for column in dz.T])
    return matmul(dz, weight), matmul(dz.T, x), dbias


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


def layer_norm_backward(grad, x, weight, eps: float, center: bool):
    """Gradients of x (N, C), weight (C,) and bias (C,); `center` False is RMS norm."""
    n, c = x.shape
    dx, dweight, dbias = np.zeros((n, c)), np.zeros(c), np.zeros(c)
    for i in range(n):
        mean = sum(map(float, x[i])) / c if center else 0.0
        scale = 1 / math.sqrt(sum((float(v) - mean) ** 2 for v in x[i]) / c + eps)
        xhat = [(float(v) - mean) * scale for v in x[i]]
        h = [float(g) * float(w) for g, w in zip(grad[i], weight, strict=True)]
        total = sum(h) / c if center else 0.0
        projection = sum(a * b for a, b in zip(h, xhat, strict=True)) / c
        for j in range(c):
            dx[i, j] = scale * (h[j] - total - xhat[j] * projection)
            dweight[j] += float(grad[i, j]) * xhat[j]
            dbias[j] += float(grad[i, j])
    return dx, dweight, dbias


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """(N, C) -> (N, C)"""
    return np.array([
        [float(v) * float(w) / math.sqrt(sum(float(u) ** 2 for u in row) / len(row) + eps)
         for v, w in zip(row, weight, strict=True)] for row in x
    ]).reshape(x.shape)  # fmt: skip


def gelu(x: float, tanh: bool) -> float:
    if tanh:
        return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + math.erf(x / math.sqrt(2)))


def gelu_slope(x: float, tanh: bool) -> float:
    """d GELU(x) / dx"""
    if tanh:
        c = math.sqrt(2 / math.pi)
        t = math.tanh(c * (x + 0.044715 * x**3))
        return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c * (1 + 3 * 0.044715 * x * x)
    density = math.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    return 0.5 * (1 + math.erf(x / math.sqrt(2))) + x * density


def philox(counter: list[int], key: int, rounds: int = 7) -> list[int]:
    """Four random words of 32 bits from a counter of four words and a key of 64 bits."""
    c, k, low = list(counter), [key % 2**32, key >> 32], 2**32 - 1
    for _ in range(rounds):
        left, right = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [right >> 32 ^ c[1] ^ k[0], right & low, left >> 32 ^ c[3] ^ k[1], left & low]
        k = [k[0] + 0x9E3779B9 & low, k[1] + 0xBB67AE85 & low]
    return c


def dropout(x: np.ndarray, p: float, key: int) -> np.ndarray:
    """Zero with probability `p`, else x / (1 - p): see dropout_task for the order of the words."""
    out, threshold = np.zeros(x.size), min(round(p * 2**32), 2**32 - 1)
    for i, value in enumerate(x.reshape(x.size)):
        block, rest = divmod(i, 256)
        word, lane = divmod(rest, 64)
        counter = block * 64 + lane
        if philox([counter % 2**32, counter >> 32, 0, 0], key)[word] >= threshold:
            out[i] = float(value) / (1 - p)
    return out.reshape(x.shape)


def sum_rows(grad: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """grad (N, C), ids (N,) -> distinct ids (n,), their sums (n, C)"""
    rows = sorted(set(map(int, ids)))
    out = np.zeros((len(rows), grad.shape[1]))
    for i in range(len(ids)):
        for j in range(grad.shape[1]):
            out[rows.index(ids[i]), j] += float(grad[i, j])
    return np.array(rows, np.int64), out


def adamw(data, grad, m, v, *, lr, beta1, beta2, eps, weight_decay, step) -> None:
    """One element at a time, in place."""
    for i in np.ndindex(data.shape):
        m[i] = beta1 * m[i] + (1 - beta1) * grad[i]
        v[i] = beta2 * v[i] + (1 - beta2) * grad[i] ** 2
        m_hat, v_hat = m[i] / (1 - beta1**step), v[i] / (1 - beta2**step)
        data[i] -= lr * weight_decay * data[i] + lr * m_hat / (math.sqrt(v_hat) + eps)


def sgd(data, grad, velocity, *, lr, momentum, weight_decay) -> None:
    """One element at a time, in place."""
    for i in np.ndindex(data.shape):
        velocity[i] = momentum * velocity[i] + grad[i] + weight_decay * data[i]
        data[i] -= lr * velocity[i]
