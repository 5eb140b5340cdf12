"""What functions are given, checked: each of these gives back what an op takes, or raises.

An error names the function, what it was given and what it expected. Where an op reads an argument
again in backward, it gets a copy that nobody else can change.
"""

import math
import numbers
from typing import Any

import numpy as np

from .kernels.blocks import rows_of
from .kernels.cross_entropy import Target
from .tensor import Tensor, floating, whole


def as_tensor(x: Any) -> Tensor:
    """`x` as a floating-point Tensor."""
    if isinstance(x, Tensor) and x.dtype.kind == "f":
        return x
    return floating(x if isinstance(x, Tensor) else Tensor(x))


def without_gradient(name: str, what: str, x: Any) -> np.ndarray:
    """`x` as an array, for an op that has no gradient by it; one that wants a gradient raises."""
    if isinstance(x, Tensor) and x.requires_grad:
        raise ValueError(f"{name}: {what} gets no gradient: pass {what}.detach()")
    return np.asarray(x.data if isinstance(x, Tensor) else x)


def as_ids(ids: Any, name: str, high: int, ignore_index: int | None = None) -> np.ndarray:
    """Integer ids in [0, high) as an int64 array; `ignore_index` may appear among them."""
    array = np.asarray(ids.data if isinstance(ids, Tensor) else ids)
    if array.dtype.kind not in "iu":
        raise TypeError(
            f"{name} needs integers, got {array.dtype}: tg.Tensor(ids, dtype=np.int64) converts"
        )
    wrong = (array < 0) | (array >= high)
    if ignore_index is not None:
        wrong &= array != ignore_index
    if wrong.any():
        where = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise IndexError(f"{name}: {array[where]} at {where} is outside 0 .. {high - 1}")
    return array.astype(np.int64)  # a copy: nobody can change it before backward


def as_shape(shape: Any, name: str) -> tuple[int, ...]:
    """A shape that may be given as one number."""
    return whole((shape,) if isinstance(shape, numbers.Integral) else shape, name)


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


def same_dtype(name: str, **tensors: Tensor | None) -> None:
    dtypes = {key: x.dtype for key, x in tensors.items() if x is not None}
    if len(set(dtypes.values())) > 1:
        listing = ", ".join(f"{key} {dtype}" for key, dtype in dtypes.items())
        raise TypeError(f"{name} needs one dtype, got {listing}")


def need_shape(name: str, what: str, x: Tensor | None, shape: tuple[int, ...]) -> None:
    if x is not None and x.shape != shape:
        raise ValueError(f"{name}: {what} has shape {x.shape}, expected {shape}")


def check_linear(name: str, x: Tensor, w: Tensor, b: Tensor | None) -> None:
    if w.ndim != 2 or x.ndim < 1 or x.shape[-1] != w.shape[1]:
        raise ValueError(
            f"{name}: input {x.shape} and weight {w.shape} do not fit: expected (..., K) and (N, K)"
        )
    need_shape(name, "bias", b, (w.shape[0],))
    same_dtype(name, input=x, weight=w, bias=b)


def check_padding_idx(name: str, padding_idx: int | None, rows: int) -> None:
    if padding_idx is not None and not isinstance(padding_idx, numbers.Integral):
        raise TypeError(f"{name}: padding_idx is a row number, got {padding_idx!r}")
    if padding_idx is not None and not -rows <= padding_idx < rows:
        raise ValueError(f"{name}: padding_idx {padding_idx} is outside the {rows} rows")


def as_reduction(reduction: str) -> str:
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f'reduction is "none", "mean" or "sum", got {reduction!r}')
    return reduction


def as_target(
    name: str,
    target: Any,
    ids_shape: tuple[int, ...],
    class_axis: int,
    n_classes: int,
    weight: Any,
    ignore_index: int,
    label_smoothing: float,
    dtype: np.dtype,
) -> Target:
    """Checks a target and its options, and flattens it to one row per loss.

    Ids have `ids_shape`, probabilities one more axis, of `n_classes`, at `class_axis`.
    """
    array = without_gradient(name, "target", target)
    probabilities_shape = (*ids_shape[:class_axis], n_classes, *ids_shape[class_axis:])
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"{name}: label_smoothing is between 0 and 1, got {label_smoothing}")
    if array.dtype.kind == "f" and array.shape == probabilities_shape:
        classes = rows_of(np.moveaxis(array, class_axis, -1)).astype(dtype)
    elif array.dtype.kind == "f" or array.shape != ids_shape:
        raise ValueError(
            f"{name}: target of dtype {array.dtype} and shape {array.shape}: expected class ids "
            f"(integers) of shape {ids_shape} or probabilities (floats) of shape "
            f"{probabilities_shape}"
        )
    else:
        classes = as_ids(array, f"{name} target", n_classes, ignore_index).reshape(array.size)
    if weight is not None:
        weight = as_tensor(weight)
        need_shape(name, "weight", weight, (n_classes,))
        weight = without_gradient(name, "weight", weight).astype(dtype)
    return Target(classes, weight, ignore_index, float(label_smoothing))


def head_size(name: str, x: Tensor, n_head: int, parts: int) -> int:
    """The width of a head; raises unless x (B, T, parts * C) can be cut into heads."""
    for count in (n_head, parts):
        if not isinstance(count, numbers.Integral):
            raise TypeError(f"{name} counts heads in whole numbers, got {count!r}")
    if x.ndim != 3 or min(n_head, parts) < 1 or x.shape[2] % (n_head * parts):
        raise ValueError(
            f"{name}: input {x.shape}, expected (B, T, n) with n a multiple of "
            f"{parts} x {n_head} heads"
        )
    return x.shape[2] // (n_head * parts)


def four_axes(x: Tensor) -> Tensor:
    """(..., T, D) -> (B, H, T, D)"""
    if x.ndim == 4:
        return x
    lead = (1,) * max(0, 4 - x.ndim) + x.shape[:-2]
    return x.reshape(math.prod(lead[:-1]), lead[-1], *x.shape[-2:])


def as_mask(name: str, attn_mask: Any, q: Tensor, s: int) -> np.ndarray:
    mask = without_gradient(name, "attn_mask", attn_mask)
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
