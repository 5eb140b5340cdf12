"""The functions of a neural network: PyTorch's names, argument order and meaning.

Each checks shapes and dtypes first, so that a mistake raises here and names what was given, and
then applies one fused op.
"""

import math
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import ops
from .kernels.attention import Options
from .kernels.blocks import rows_of
from .kernels.cross_entropy import Target
from .recompute import random_key
from .tensor import Tensor, apply, floating


def as_tensor(x: Any) -> Tensor:
    """`x` as a floating-point Tensor."""
    if isinstance(x, Tensor) and x.dtype.kind == "f":
        return x
    return floating(x if isinstance(x, Tensor) else Tensor(x))


def as_ids(ids: Any, name: str, high: int, ignore_index: int | None = None) -> np.ndarray:
    """Integer ids in [0, high) as an int64 array; `ignore_index` may appear among them."""
    array = np.asarray(ids.data if isinstance(ids, Tensor) else ids)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} needs integers, got {array.dtype}: convert with .astype(np.int64)")
    wrong = (array < 0) | (array >= high)
    if ignore_index is not None:
        wrong &= array != ignore_index
    if wrong.any():
        where = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise IndexError(f"{name}: {array[where]} at {where} is outside 0 .. {high - 1}")
    return array.astype(np.int64)  # a copy: nobody can change it before backward


def same_dtype(name: str, **tensors: Tensor | None) -> None:
    dtypes = {key: x.dtype for key, x in tensors.items() if x is not None}
    if len(set(dtypes.values())) > 1:
        listing = ", ".join(f"{key} {dtype}" for key, dtype in dtypes.items())
        raise TypeError(f"{name} needs one dtype, got {listing}")


def need_shape(name: str, what: str, x: Tensor | None, shape: tuple[int, ...]) -> None:
    if x is not None and x.shape != shape:
        raise ValueError(f"{name}: {what} has shape {x.shape}, expected {shape}")


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


def check_linear(name: str, x: Tensor, w: Tensor, b: Tensor | None) -> None:
    if w.ndim != 2 or x.ndim < 1 or x.shape[-1] != w.shape[1]:
        raise ValueError(
            f"{name}: input {x.shape} and weight {w.shape} do not fit: expected (..., K) and (N, K)"
        )
    need_shape(name, "bias", b, (w.shape[0],))
    same_dtype(name, input=x, weight=w, bias=b)


def embedding(input: Any, weight: Any, padding_idx: int | None = None) -> Tensor:
    """Rows of weight (V, C) picked by the ids in input (...) -> (..., C).

    The row `padding_idx` receives no gradient.
    """
    w = as_tensor(weight)
    if w.ndim != 2:
        raise ValueError(f"embedding: weight has shape {w.shape}, expected (V, C)")
    check_padding_idx("embedding", padding_idx, len(w))
    return apply(ops.Embedding, w, as_ids(input, "embedding", len(w)), padding_idx=padding_idx)


def check_padding_idx(name: str, padding_idx: int | None, rows: int) -> None:
    if padding_idx is not None and not isinstance(padding_idx, numbers.Integral):
        raise TypeError(f"{name}: padding_idx is a row number, got {padding_idx!r}")
    if padding_idx is not None and not -rows <= padding_idx < rows:
        raise ValueError(f"{name}: padding_idx {padding_idx} is outside the {rows} rows")


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
    single = isinstance(normalized_shape, numbers.Integral)
    shape = (int(normalized_shape),) if single else tuple(normalized_shape)
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
        "cross_entropy", target, rest, x.shape, weight, ignore_index, label_smoothing, logits, axis
    )
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
        "linear_cross_entropy", target, rest, (*rest, len(w)), weight, ignore_index,
        label_smoothing, rows, len(rest), n_classes=len(w),
    )  # fmt: skip
    loss = apply(
        ops.LinearCrossEntropy, rows, w, b, target=checked, reduction=as_reduction(reduction),
        recompute=recompute,
    )  # fmt: skip
    return loss.reshape(rest) if reduction == "none" else loss


def as_reduction(reduction: str) -> str:
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f'reduction is "none", "mean" or "sum", got {reduction!r}')
    return reduction


def as_target(
    name: str,
    target: Any,
    ids_shape: tuple[int, ...],
    probabilities_shape: tuple[int, ...],
    weight: Any,
    ignore_index: int,
    label_smoothing: float,
    rows: Tensor,
    class_axis: int,
    n_classes: int | None = None,
) -> Target:
    """Checks a target and its options, and flattens it to one row per loss."""
    if isinstance(target, Tensor):
        if target.requires_grad:
            raise ValueError(f"{name}: target gets no gradient: pass target.detach()")
        target = target.data
    array = np.asarray(target)
    n_classes = rows.shape[1] if n_classes is None else n_classes
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"{name}: label_smoothing is between 0 and 1, got {label_smoothing}")
    if array.dtype.kind == "f" and array.shape == probabilities_shape:
        classes = rows_of(np.moveaxis(array, class_axis, -1)).astype(rows.dtype)
    elif array.dtype.kind == "f":
        raise ValueError(
            f"{name}: target of dtype {array.dtype} and shape {array.shape}: expected class ids "
            f"(integers) of shape {ids_shape} or probabilities of shape {probabilities_shape}"
        )
    else:
        if array.shape != ids_shape:
            raise ValueError(f"{name}: target has shape {array.shape}, expected {ids_shape}")
        classes = as_ids(array, f"{name} target", n_classes, ignore_index).reshape(array.size)
    if weight is not None:
        weight = as_tensor(weight)
        if weight.requires_grad:
            raise ValueError(f"{name}: weight gets no gradient: pass weight.detach()")
        need_shape(name, "weight", weight, (n_classes,))
        weight = weight.data.astype(rows.dtype)
    return Target(classes, weight, ignore_index, float(label_smoothing))


def as_probability(p: float, name: str) -> float:
    if not 0 <= p <= 1:
        raise ValueError(f"{name} is a probability between 0 and 1, got {p}")
    return float(p)


def as_generator(rng: np.random.Generator | None, name: str) -> np.random.Generator:
    if rng is None:
        return np.random.default_rng()
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"{name}: rng is a numpy.random.Generator, got {type(rng).__name__}")
    return rng


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
    """Attention among the tokens of input (B, T, 3 * C) -> (B, T, C).

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


def head_size(name: str, x: Tensor, n_head: int, parts: int) -> int:
    """The width of a head; raises unless x (B, T, parts * C) can be cut into heads."""
    for count in (n_head, parts):
        if not isinstance(count, numbers.Integral):
            raise TypeError(f"{name} counts heads in whole numbers, got {count!r}")
    if x.ndim != 3 or min(n_head, parts) < 1 or x.shape[2] % (n_head * parts):
        raise ValueError(
            f"{name}: input {x.shape}, expected (B, T, C) with C a multiple of "
            f"{parts} x {n_head} heads"
        )
    return x.shape[2] // (n_head * parts)


def merge_heads(input: Any) -> Tensor:
    """input (B, H, T, D) -> (B, T, H * D): what every head found, side by side for each token."""
    x = as_tensor(input)
    if x.ndim != 4:
        raise ValueError(f"merge_heads: input has shape {x.shape}, expected (B, H, T, D)")
    return apply(ops.MergeHeads, x)


def four_axes(x: Tensor) -> Tensor:
    """(..., T, D) -> (B, H, T, D)"""
    if x.ndim == 4:
        return x
    lead = (1,) * max(0, 4 - x.ndim) + x.shape[:-2]
    return x.reshape(math.prod(lead[:-1]), lead[-1], *x.shape[-2:])


def as_mask(name: str, attn_mask: Any, q: Tensor, s: int) -> np.ndarray:
    if isinstance(attn_mask, Tensor):
        if attn_mask.requires_grad:
            raise ValueError(f"{name}: attn_mask gets no gradient: pass attn_mask.detach()")
        attn_mask = attn_mask.data
    mask = np.asarray(attn_mask)
    full = (*q.shape[:-1], s)
    if mask.dtype.kind not in "bf":
        raise TypeError(f"{name}: attn_mask is boolean or floating-point, got {mask.dtype}")
    try:
        fits = np.broadcast_shapes(mask.shape, full) == full
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"{name}: attn_mask {mask.shape} does not broadcast to {full}")
    mask = mask.astype(bool if mask.dtype == bool else q.dtype)  # a copy: backward reads it again
    if q.ndim > 4:  # (A, B, H, T, S): the leading axes are merged, so they must be spelled out
        mask = np.broadcast_to(mask, (*full[:-2], *mask.shape[-2:]) if mask.ndim > 1 else full)
        return mask.reshape(math.prod(full[:-3]), full[-3], *mask.shape[-2:])
    return mask.reshape((1,) * (4 - mask.ndim) + mask.shape)


def repeat_heads(name: str, q: Tensor, x: Tensor) -> Tensor:
    """(..., G, S, D) -> (..., H, S, D): each of the G heads serves H / G query heads."""
    if q.ndim < 3 or x.shape[-3] == 0 or q.shape[-3] % x.shape[-3]:
        raise ValueError(f"{name}: {x.shape} cannot share its heads among those of {q.shape}")
    times = q.shape[-3] // x.shape[-3]
    picks = np.repeat(np.arange(x.shape[-3]), times)
    return x[(..., picks, slice(None), slice(None))] if times > 1 else x
