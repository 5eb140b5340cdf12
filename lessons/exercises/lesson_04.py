"""Lesson 4: pack the panels that the inner loop of a matrix product reads.

A tile of C has `height` rows and `width` columns. Step k of its sum needs `width` numbers of B, a
piece of row k, and `height` numbers of A, a piece of column k. Copy both so that the steps lie one
after another in memory, and the inner loop reads from the first number to the last:

    B = 0 1 2 3 4      width 2:  panel 0 = 0 1    panel 1 = 2 3    panel 2 = 4 0
        5 6 7 8 9                          5 6              7 8              9 0

    pack_b(b, width)   b (K, N) -> (panels, K, width): [p, k, j] is b[k, p * width + j]
    pack_a(a, height)  a (M, K) -> (panels, K, height): [p, k, i] is a[p * height + i, k]

As many panels as it takes, of an empty matrix none; what lies beyond the edge is 0. The result is
a new, C-contiguous array of the matrix's dtype; the matrix stays as it is, and may be a slice or a
transposed view. With `width` = TILE_N, `pack_b` gives the panels that `rows_of_tiles` in
tinygrad_edu/kernels/ladder.py makes one by one, and with one panel the block that `packed` makes.

Then: python -m lessons.check 4
"""

import numpy as np  # noqa: F401


def pack_b(b, width):
    """b (K, N) -> (panels, K, width), zeros beyond column N."""
    raise NotImplementedError("Make an array of zeros, and copy one panel of columns at a time.")


def pack_a(a, height):
    """a (M, K) -> (panels, K, height), zeros beyond row M."""
    raise NotImplementedError("A panel is `height` rows of A, turned so that k comes first.")
