"""Arrays in, arrays out: everything that computes, and nothing that knows of Tensors or models.

`allocator` hands out memory; `matmul` multiplies; `elementwise`, `normalize`, `cross_entropy`,
`attention`, `gather` and `update` are the fused formulas of a transformer's training step;
`naive` holds their plain-loop twins, the oracles of the tests.
"""

from .allocator import concatenate, copy, empty, zeros
from .matmul import matmul, set_matmul_backend, set_num_threads

__all__ = [
    "concatenate",
    "copy",
    "empty",
    "matmul",
    "set_matmul_backend",
    "set_num_threads",
    "zeros",
]
