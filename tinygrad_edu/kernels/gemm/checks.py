"""What a product is given, checked before compiled code reads it as it is."""

import numpy as np


def check_arrays(*arrays):
    """Compiled code reads array objects as they are: nothing else may pass for one."""
    for x in arrays:
        if type(x) is not np.ndarray and not isinstance(x, np.ndarray):
            raise TypeError(f"matmul needs NumPy arrays, got {type(x).__name__}")


def check_out(out, shape, a, b, bias):
    check_arrays(out)
    if out.shape != shape:
        raise ValueError(
            f"matmul: out has shape {out.shape}, the product {a.shape} @ {b.shape} has {shape}"
        )
    if out.dtype != a.dtype:
        raise TypeError(f"matmul: out is {out.dtype}, the operands are {a.dtype}")
    if not out.flags.writeable:
        raise ValueError("matmul: out is read-only")


def check_bias(bias, shape, dtype):
    check_arrays(bias)
    if bias.dtype != dtype:
        raise TypeError(f"matmul: bias is {bias.dtype}, the operands are {dtype}; use astype")
    if bias.ndim == 1 and bias.shape[0] in (1, shape[-1]):
        return bias[None, :]
    return np.broadcast_to(bias, shape)


def check_extra(out, keep, residual):
    for name, x in (("keep", keep), ("residual", residual)):
        if x is None:
            continue
        check_arrays(x)
        if x.shape != out.shape or x.dtype != out.dtype:
            raise ValueError(
                f"matmul: {name} is {x.dtype} {x.shape}, the product {out.dtype} {out.shape}"
            )
        if name == "keep" and not x.flags.writeable:
            raise ValueError("matmul: keep is read-only")
