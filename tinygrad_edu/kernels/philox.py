"""Random bits that are a function of their position: Philox4x32 with 7 rounds.

A counter-based generator has no state. The same key and counter give the same four words, on any
thread, in any order, as often as they are asked for, so backward makes a dropout mask again instead
of keeping it. Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011), who find
7 rounds enough to pass every test of TestU01's BigCrush.
"""

import numpy as np
from numba import njit

ROUNDS = 7
U32, U64 = np.uint32, np.uint64


@njit(error_model="numpy")
def philox(c0, c1, c2, c3, key):
    """Four random uint32 from a counter of four uint32 and a uint64 key."""
    k0, k1 = U32(key), U32(key >> U64(32))
    for _ in range(ROUNDS):
        left, right = U64(0xD2511F53) * U64(c0), U64(0xCD9E8D57) * U64(c2)
        c0, c2 = U32(right >> U64(32)) ^ c1 ^ k0, U32(left >> U64(32)) ^ c3 ^ k1
        c1, c3 = U32(right), U32(left)
        k0, k1 = U32(k0 + U32(0x9E3779B9)), U32(k1 + U32(0xBB67AE85))
    return c0, c1, c2, c3
