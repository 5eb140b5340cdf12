"""Matrix products written in Python and compiled by Numba: the "numba" backend.

`gemm` chooses a way, `checks` refuses what does not fit; `blocked` is the packed way, `packing` its
copies, `microkernel` its heart; `unpacked` serves small and thin products; `entries` are the tasks
that Python launches, `short` is its quicker way to the shortest. Importing this compiles nothing.
"""

from .gemm import matmul, quick

__all__ = ["matmul", "quick"]
