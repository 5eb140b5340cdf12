"""What generating text needs beside the model: remembered keys and values, and drawing a token."""

import math
import numbers

import numpy as np

import tinygrad_edu as tg
from tinygrad_edu import functional as F


class KeyValueCache:
    """The keys and values (B, H, T, C / H) of the tokens seen so far, per attention layer.

    They lie in rooms that double when they are full: a new token costs no copy of all before it.
    """

    def __init__(self) -> None:
        self.length = 0
        self.rooms: dict[int, list[tg.Tensor]] = {}

    def attend(self, layer: tg.nn.Module, qkv: tg.Tensor, n_head: int) -> tg.Tensor:
        """Attention of new tokens among all so far: qkv (B, T, 3 * C) -> (B, T, C)."""
        q, *new = F.split_heads(qkv, n_head, 3)
        start, end = self.length, self.length + q.shape[2]
        rooms = self.rooms.setdefault(id(layer), new)
        while rooms[0].shape[2] < end:
            rooms[:] = [tg.concatenate([room, room], axis=2) for room in rooms]
        if start:  # the first tokens are their own rooms
            for room, x in zip(rooms, new, strict=True):
                room.data[:, :, start:end] = x.data
        k, v = (room[:, :, :end] for room in rooms)
        return F.merge_heads(F.scaled_dot_product_attention(q, k, v, is_causal=True))


def check_sampling(n: int, temperature: float, top_k: int | None, top_p: float | None) -> None:
    if not isinstance(n, numbers.Integral) or n < 0:
        raise ValueError(f"max_new_tokens must be a whole number of at least 0, got {n}")
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"temperature must be at least 0, got {temperature}")
    if top_k is not None and (not isinstance(top_k, numbers.Integral) or top_k < 1):
        raise ValueError(f"top_k must be a whole number of at least 1, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, got {top_p}")


def sample(
    logits: np.ndarray,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    rng: np.random.Generator,
) -> np.ndarray:
    """Logits (B, V) -> one token per row (B,)."""
    if not np.isfinite(top := logits.max(axis=1)).all():
        raise ValueError(
            f"the logits are {top[~np.isfinite(top)][0]}: the model's weights are damaged, or "
            "diverged in training; load weights from before that"
        )
    if temperature == 0:
        return logits.argmax(axis=1)
    scaled = logits.astype(np.float64)
    scaled -= scaled.max(axis=1, keepdims=True)  # however small the temperature, the top stays 0
    with np.errstate(over="ignore"):
        scaled /= temperature
    order = np.argsort(-scaled, axis=1)  # ties in any order: a stable sort takes ten times as long
    ranked = np.take_along_axis(scaled, order, axis=1)
    p = np.exp(ranked)
    if top_k is not None:
        p[:, top_k:] = 0
    p /= p.sum(axis=1, keepdims=True)
    if top_p is not None:
        p[np.cumsum(p, axis=1) - p >= top_p] = 0  # keeps the token that crosses the line
    total = np.cumsum(p, axis=1)
    draw = rng.random((len(p), 1)) * total[:, -1:]
    pick = np.minimum((total <= draw).sum(axis=1), (p > 0).sum(axis=1) - 1)
    return np.take_along_axis(order, pick[:, None], axis=1)[:, 0]
