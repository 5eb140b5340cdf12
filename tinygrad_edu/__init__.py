"""A tensor autograd engine to read in an afternoon and to train with: see the README.

import tinygrad_edu as tg
x = tg.Tensor([1.0, 2.0], requires_grad=True)
(x * x).sum().backward()
x.grad                      # array([2., 4.], dtype=float32)
"""

from . import functional, memory, nn, optim
from .function import Function
from .gradcheck import GradcheckError, gradcheck
from .kernels import set_matmul_backend, set_num_threads
from .recompute import checkpoint
from .several import concatenate, einsum, maximum, minimum, stack, where
from .tape import NonFiniteError, detect_nan, no_grad
from .tensor import Tensor

__version__ = "0.1.0"
__all__ = [
    "Function",
    "GradcheckError",
    "NonFiniteError",
    "Tensor",
    "checkpoint",
    "concatenate",
    "detect_nan",
    "einsum",
    "functional",
    "gradcheck",
    "maximum",
    "memory",
    "minimum",
    "nn",
    "no_grad",
    "optim",
    "set_matmul_backend",
    "set_num_threads",
    "stack",
    "where",
]
