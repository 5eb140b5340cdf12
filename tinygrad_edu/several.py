"""Functions of several tensors: choosing between them, joining them, Einstein summation."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import ops
from .ops.linear import parse_einsum
from .tensor import Tensor, apply, cast, one_axis, operands


def where(condition: Any, a: Any, b: Any) -> Tensor:
    """Elements of `a` where `condition` is true, else of `b`; all three broadcast."""
    mask = np.asarray(condition._read() if isinstance(condition, Tensor) else condition)
    if mask.dtype != np.bool_:
        raise TypeError(f"where needs a boolean condition, got {mask.dtype}: compare with != 0")
    a, b = operands(a, b)
    return apply(ops.Where, mask, a, b)


def maximum(a: Any, b: Any) -> Tensor:
    """The larger of two, element by element; where they tie, each gets half of the gradient."""
    return apply(ops.Maximum, *operands(a, b))


def minimum(a: Any, b: Any) -> Tensor:
    """The smaller of two, element by element; where they tie, each gets half of the gradient."""
    return apply(ops.Minimum, *operands(a, b))


def concatenate(tensors: Sequence[Any], axis: int = 0) -> Tensor:
    """Joins along an existing axis."""
    parts = at_least_one(tensors, "concatenate")
    axis = one_axis(axis, parts[0].ndim, "concatenate")
    if len({(part.ndim, part.shape[:axis], part.shape[axis + 1 :]) for part in parts}) > 1:
        shapes = [part.shape for part in parts]
        raise ValueError(f"concatenate needs equal shapes but for axis {axis}, got {shapes}")
    return apply(ops.Concatenate, *parts, axis=axis)


def stack(tensors: Sequence[Any], axis: int = 0) -> Tensor:
    """Joins along a new axis."""
    parts = at_least_one(tensors, "stack")
    if len({part.shape for part in parts}) > 1:
        raise ValueError(f"stack needs equal shapes, got {[part.shape for part in parts]}")
    axis = one_axis(axis, parts[0].ndim + 1, "stack")
    return apply(ops.Stack, *parts, axis=axis)


def at_least_one(tensors: Sequence[Any], name: str) -> list[Tensor]:
    parts = one_kind([x if isinstance(x, Tensor) else Tensor(x) for x in tensors])
    if not parts:
        raise ValueError(f"{name} needs at least one tensor")
    return parts


def one_kind(tensors: list[Tensor]) -> list[Tensor]:
    """Ints beside floats in the floats' dtype, as between two operands."""
    floats = [x.dtype for x in tensors if x.dtype.kind == "f"]
    if not floats:
        return tensors
    return [x if x.dtype.kind == "f" else cast(x, np.result_type(*floats)) for x in tensors]


def einsum(subscripts: str, *tensors: Any) -> Tensor:
    """Einstein summation, as np.einsum with subscripts in letters; "..." is understood."""
    if not isinstance(subscripts, str):
        raise TypeError(
            f"einsum needs its subscripts first, as a string, got {type(subscripts).__name__}"
        )
    inputs = one_kind([x if isinstance(x, Tensor) else Tensor(x) for x in tensors])
    terms, result = parse_einsum(subscripts, [x.shape for x in inputs])
    return apply(ops.Einsum, *inputs, terms=terms, result=result)
