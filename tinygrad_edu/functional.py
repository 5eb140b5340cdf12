"""The functions of a neural network: where PyTorch has one, its name, argument order and meaning.

Each checks shapes and dtypes first (see `arguments.py`), so that a mistake raises here and names
what was given, and then applies one fused op.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import ops
from .arguments import (
    as_generator,
    as_ids,
    as_mask,
    as_probability,
    as_reduction,
    as_shape,
    as_target,
    as_tensor,
    check_linear,
    check_padding_idx,
    four_axes,
    head_size,
    need_shape,
    repeat_heads,
    same_dtype,
)
from .kernels.attention import Options
from .recompute import random_key
from .tensor import Tensor, apply


def linear(input: Any, weight: Any, bias: Any = None, *, residual: Any = None) -> Tensor:
    """input (..., K) @ weight (N, K).T + bias (N,) -> (..., N), plus `residual` of that shape.

    The residual costs no pass over memory of its own where the product is this project's kernel.
    """
    x, w = as_tensor(input), as_tensor(weight)
    b = None if bias is None else as_tensor(bias)
    r = None if residual is None else as_tensor(residual)
    check_linear("linear", x, w, b)
    if r is not None:
        need_shape("linear", "residual", r, (*x.shape[:-1], w.shape[0]))
        same_dtype("linear", input=x, residual=r)
    return apply(ops.Linear, x, w, b, r)


def embedding(input: Any, weight: Any, padding_idx: int | None = None) -> Tensor:
    """Rows of weight (V, C) picked by the ids in input (...) -> (..., C).

    The row `padding_idx` receives no gradient.
    """
    w = as_tensor(weight)
    if w.ndim != 2:
        raise ValueError(f"embedding: weight has shape {w.shape}, expected (V, C)")
    check_padding_idx("embedding", padding_idx, len(w))
    return apply(ops.Embedding, w, as_ids(input, "embedding", len(w)), padding_idx=padding_idx)


def layer_norm(
    input: Any,
    normalized_shape: int | Sequence[int],
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias over the last axes, of `normalized_shape`."""
    return normalize("layer_norm", input, normalized_shape, weight, bias, eps, center=True)


def rms_norm(
    input: Any,
    normalized_shape: int | Sequence[int],
    weight: Any = None,
    eps: float | None = None,
) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight; eps defaults to the dtype's machine epsilon."""
    x = as_tensor(input)
    eps = float(np.finfo(x.dtype).eps) if eps is None else eps
    return normalize("rms_norm", x, normalized_shape, weight, None, eps, center=False)


def normalize(
    name: str, input: Any, normalized_shape: Any, weight: Any, bias: Any, eps: float, center: bool
) -> Tensor:
    x = as_tensor(input)
    shape = as_shape(normalized_shape, name)
    if not (math.isfinite(eps) and eps >= 0):
        raise ValueError(f"{name}: eps must be at least 0, got {eps}")
    if not shape or x.shape[-len(shape) :] != shape:
        raise ValueError(f"{name}: input {x.shape} does not end in normalized_shape {shape}")
    w = None if weight is None else as_tensor(weight)
    b = None if bias is None else as_tensor(bias)
    need_shape(name, "weight", w, shape)
    need_shape(name, "bias", b, shape)
    same_dtype(name, input=x, weight=w, bias=b)
    return apply(ops.LayerNorm, x, w, b, eps=eps, row_ndim=len(shape), center=center)


def gelu(input: Any, approximate: str = "none") -> Tensor:
    """x * Phi(x), exact ("none") or in GPT-2's form ("tanh")."""
    return as_tensor(input).gelu(approximate)


def softmax(input: Any, dim: int = -1) -> Tensor:
    """exp(x) / sum(exp(x)) along `dim`."""
    return as_tensor(input).softmax(dim)


def log_softmax(input: Any, dim: int = -1) -> Tensor:
    """x - log(sum(exp(x))) along `dim`."""
    return as_tensor(input).log_softmax(dim)


def cross_entropy(
    input: Any,
    target: Any,
    weight: Any = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """-log softmax(input)[target], for logits (C,), (N, C) or (N, C, d1, ...).

    `target` holds class ids, shaped as input without the class axis, or class probabilities,
    shaped as input. `weight` (C,) scales each class; rows of `ignore_index` do not count; "mean"
    divides by the sum of the weights of the rows that count. Gradients go to `input` alone.
    """
    x = as_tensor(input)
    if x.ndim == 0:
        raise ValueError("cross_entropy: input needs a class axis, got shape ()")
    axis = min(1, x.ndim - 1)
    rest = x.shape[:axis] + x.shape[axis + 1 :]
    logits = x.permute(*(i for i in range(x.ndim) if i != axis), axis)
    logits = logits.reshape(math.prod(rest), x.shape[axis])
    checked = as_target(
        "cross_entropy", target, rest, axis, x.shape[axis], weight, ignore_index, label_smoothing,
        x.dtype,
    )  # fmt: skip
    loss = apply(ops.CrossEntropy, logits, target=checked, reduction=as_reduction(reduction))
    return loss.reshape(rest) if reduction == "none" else loss


def linear_cross_entropy(
    input: Any,
    linear_weight: Any,
    target: Any,
    *,
    linear_bias: Any = None,
    weight: Any = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    recompute: bool = False,
) -> Tensor:
    """cross_entropy(linear(input, linear_weight, linear_bias), target) without all the logits.

    input (..., K), linear_weight (C, K), linear_bias (C,), target (...) class ids or (..., C)
    probabilities. Logits are made in blocks. Up to 256 MiB of them are kept for backward; more, all
    of them with `recompute`, and all of them where memory is counted, are made again there instead,
    block by block. The numbers are the same bits.
    """
    x, w = as_tensor(input), as_tensor(linear_weight)
    b = None if linear_bias is None else as_tensor(linear_bias)
    check_linear("linear_cross_entropy", x, w, b)
    rest, rows = x.shape[:-1], x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    checked = as_target(
        "linear_cross_entropy", target, rest, len(rest), len(w), weight, ignore_index,
        label_smoothing, x.dtype,
    )  # fmt: skip
    loss = apply(
        ops.LinearCrossEntropy, rows, w, b, target=checked, reduction=as_reduction(reduction),
        recompute=recompute,
    )  # fmt: skip
    return loss.reshape(rest) if reduction == "none" else loss


def dropout(
    input: Any, p: float = 0.5, training: bool = True, rng: np.random.Generator | None = None
) -> Tensor:
    """Zeroes each element with probability `p` and scales the others by 1 / (1 - p).

    `rng` gives one key per call, and the mask follows from the key; without it masks are random
    from run to run.
    """
    x = as_tensor(input)
    if as_probability(p, "dropout: p") == 0 or not training:
        return x
    key = random_key(as_generator(rng, "dropout"))
    return apply(ops.Dropout, x, p=float(p), key=key)


def scaled_dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    rng: np.random.Generator | None = None,
) -> Tensor:
    """softmax(scale * query key^T + mask) value; scale defaults to 1 / sqrt(D).

    query (..., T, D), key (..., S, D), value (..., S, E) -> (..., T, E), leading axes equal.
    `attn_mask` broadcasts to (..., T, S): booleans say who may attend, numbers are added; it gets
    no gradient. `is_causal` lets query i see keys 0 .. i + S - T, so that with fewer queries than
    keys they align at the end, as cached decoding needs. `enable_gqa` lets groups of query heads
    (third axis from the end) share a key and value head. `rng` feeds the dropout of `dropout_p`.
    """
    name = "scaled_dot_product_attention"
    q, k, v = as_tensor(query), as_tensor(key), as_tensor(value)
    shapes = f"query {q.shape}, key {k.shape}, value {v.shape}"
    if min(q.ndim, k.ndim, v.ndim) < 2 or not q.ndim == k.ndim == v.ndim:
        raise ValueError(f"{name}: {shapes}: expected equally many axes, at least two")
    same_dtype(name, query=q, key=k, value=v)
    if enable_gqa:
        k, v = repeat_heads(name, q, k), repeat_heads(name, q, v)
    t, s = q.shape[-2], k.shape[-2]
    if not (
        q.shape[:-2] == k.shape[:-2] == v.shape[:-2]
        and q.shape[-1] == k.shape[-1]
        and s == v.shape[-2]
    ):
        raise ValueError(f"{name}: {shapes}: expected (..., T, D), (..., S, D) and (..., S, E)")
    if is_causal and t > s:
        raise ValueError(
            f"{name}: {shapes}: causal attention needs at least as many keys as queries"
        )
    mask = None if attn_mask is None else as_mask(name, attn_mask, q, s)
    p = as_probability(dropout_p, f"{name}: dropout_p")
    draw = random_key(as_generator(rng, name)) if p else 0
    if isinstance(scale, Tensor) and scale.requires_grad:
        raise ValueError(f"{name}: scale gets no gradient: multiply the query by it instead")
    if scale is not None and not math.isfinite(scale):
        raise ValueError(f"{name}: scale must be a finite number, got {scale}")
    options = Options(1 / math.sqrt(max(1, q.shape[-1])) if scale is None else float(scale),
                      bool(is_causal), mask, p, draw)  # fmt: skip
    out = apply(ops.Attention, four_axes(q), four_axes(k), four_axes(v), options=options)
    return out.reshape(*q.shape[:-1], v.shape[-1]) if q.ndim != 4 else out


def self_attention(
    input: Any,
    n_head: int,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    rng: np.random.Generator | None = None,
) -> Tensor:
    """Attention among the tokens of input (B, T, 3 * C) -> (B, T, C), C = n_head * D.

    The input holds queries, keys and values side by side, each as `n_head` heads side by side: what
    one projection makes. The numbers are those of `merge_heads(scaled_dot_product_attention(
    *split_heads(input, n_head, 3), ...))`, in one op.
    """
    name, x = "self_attention", as_tensor(input)
    width = head_size(name, x, n_head, 3)
    p = as_probability(dropout_p, f"{name}: dropout_p")
    draw = random_key(as_generator(rng, name)) if p else 0
    options = Options(1 / math.sqrt(max(1, width)), bool(is_causal), None, p, draw)
    return apply(ops.SelfAttention, x, n_head=n_head, options=options)


def split_heads(input: Any, n_head: int, parts: int = 1) -> tuple[Tensor, ...]:
    """input (B, T, parts * H * D) -> `parts` Tensors (B, H, T, D), H = n_head, side by side in it.

    Queries, keys and values of one product are `q, k, v = split_heads(qkv, n_head, 3)`.
    """
    x = as_tensor(input)
    head_size("split_heads", x, n_head, parts)
    return apply(ops.SplitHeads, x, n_head=n_head, parts=parts)


def merge_heads(input: Any) -> Tensor:
    """input (B, H, T, D) -> (B, T, H * D): what every head found, side by side for each token."""
    x = as_tensor(input)
    if x.ndim != 4:
        raise ValueError(f"merge_heads: input has shape {x.shape}, expected (B, H, T, D)")
    return apply(ops.MergeHeads, x)
