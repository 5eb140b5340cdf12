"""Matrix products written in Python and compiled by Numba: the "numba" backend.

`gemm` chooses a path; `blocked` is the packed one, `packing` its copies, `microkernel` its heart;
`unpacked` serves small and thin products; `entries` are the two compiled functions and `jit`
compiles and caches them. Importing this compiles nothing.
"""

from .gemm import matmul, quick

__all__ = ["matmul", "quick"]
