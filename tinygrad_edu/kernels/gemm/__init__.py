"""Matrix products written in Python and compiled by Numba: the "numba" backend.

`gemm` chooses a way, `checks` refuses what does not fit; `blocked` is the packed way, `packing` its
copies, `microkernel` its heart; `unpacked` serves small and thin products; `entries` and `short`
are the compiled functions that Python calls. Importing this compiles nothing.
"""

from .gemm import matmul, quick

__all__ = ["matmul", "quick"]
