"""Matrix products, and the switch that says who computes them.

The matrix products of the engine go through `matmul` here, so one call to `set_matmul_backend`
changes them; einsum plans its own, and attention's are part of its kernel. A backend is a function
`(a, b, out) -> None` on operands that are at least 2-D, with leading axes already broadcastable and
`out` allocated.
"""

import math
import numbers

import numpy as np
import threadpoolctl

from . import elementwise, gemm, launch, switch
from .allocator import empty


def numpy_backend(a: np.ndarray, b: np.ndarray, out: np.ndarray, **more) -> None:
    """NumPy's own product: whatever BLAS it was built with."""
    if switch.off:
        return
    if more.get("accumulate"):
        np.add(out, np.matmul(a, b), out=out)
    else:
        np.matmul(a, b, out=out)
    if more.get("bias") is not None:
        np.add(out, more["bias"], out=out)
    if more.get("keep") is not None:
        np.copyto(more["keep"], out)
    if more.get("gelu"):
        np.copyto(out, elementwise.gelu(out, tanh=True))
    if more.get("residual") is not None:
        np.add(out, more["residual"], out=out)


def numba_backend(a: np.ndarray, b: np.ndarray, out: np.ndarray, **more) -> None:
    """The kernels of `gemm`, compiled at the first product and cached on disk; float32, float64."""
    if out.dtype.char in "fd" and a.dtype == b.dtype == out.dtype:
        gemm.matmul(a, b, out=out, **more)
    else:
        numpy_backend(a, b, out, **more)


BACKENDS = {"numpy": numpy_backend, "numba": numba_backend}
_backend = numba_backend


def set_matmul_backend(name: str) -> None:
    """Chooses who computes matrix products: one of `BACKENDS`."""
    global _backend
    if name not in BACKENDS:
        known = ", ".join(repr(key) for key in BACKENDS)
        raise ValueError(f"unknown matmul backend {name!r}: choose one of {known}")
    _backend = BACKENDS[name]


def set_num_threads(n: int) -> None:
    """Sets how many threads kernels may use (1 or more)."""
    if isinstance(n, bool) or not isinstance(n, numbers.Integral) or n < 1:
        raise ValueError(f"set_num_threads needs a whole number of at least 1, got {n!r}")
    launch.set_threads(n)
    threadpoolctl.threadpool_limits(limits=n, user_api="blas")


def matmul(a: np.ndarray, b: np.ndarray, out: np.ndarray | None = None, **more) -> np.ndarray:
    """a @ b for (..., m, k) and (..., k, n), leading axes broadcast -> (..., m, n), into `out`.

    `more` is done on the way, while the numbers are in the cache: bias=, gelu=, keep=, residual=,
    accumulate=; see `gemm.matmul`.
    A product of many matrices with one matrix is one tall product: (..., m, k) @ (k, n).
    """
    if _backend is numba_backend and not more and a.ndim == 2 == b.ndim:
        result = gemm.quick(a, b, out)
        if result is not None:
            return result
    if out is not None:
        _backend(a, b, out, **more)
        return out
    if _backend is numba_backend and a.dtype is b.dtype and a.dtype.char in "fd":
        return gemm.matmul(a, b, **more)
    leading = np.broadcast_shapes(a.shape[:-2], b.shape[:-2]) if a.ndim + b.ndim > 4 else ()
    out_shape = (*leading, a.shape[-2], b.shape[-1])
    out = empty(out_shape, np.result_type(a, b))
    if a.ndim > 2 and b.ndim == 2 and not more:
        rows = math.prod(out_shape[:-1])
        _backend(a.reshape(rows, a.shape[-1]), b, out.reshape(rows, b.shape[-1]))
    else:
        _backend(a, b, out, **more)
    return out
