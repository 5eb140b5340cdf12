"""Six ways to multiply two matrices, each faster than the one before: how one gets to `gemm`.

All compute C = A @ B for row-major float matrices A (M, K), B (K, N), C (M, N), with 2 M N K
floating-point operations on M K + K N + M N numbers. For 1024 x 1024 x 1024 that is 2.1 GFLOP on
12 MB: a product is limited by arithmetic if, and only if, every number that is fetched is used many
times before it is dropped. Each rung is about that, down to the last one.

    naive          three loops, as in a textbook
    interchanged   the same loops in another order: memory is read in order
    blocked        pieces that stay in the cache
    packed         pieces copied so that they are read in order, too
    vectorised     a tile of C in registers for a whole sum
    threaded       tiles of C shared out among the cores

Every rung is plain Python and runs as it is, slowly; `compiled(name)` gives its Numba version.
`python -m tinygrad_edu.kernels.ladder [N]` times them. `gemm` is the last rung with the size of the
tile fitted to the CPU's registers, vectors written out, and any strides.
"""

import functools
import sys
import time

import numpy as np

prange = range  # numba.prange in the compiled versions

BLOCK_M, BLOCK_N, BLOCK_K = 96, 256, 256  # of A and B: 96 KB and 256 KB in float32
TILE_M, TILE_N = 4, 64  # of C, for the vectorised rungs


def naive(a, b, c):
    """Each element of C is a row of A times a column of B.

    The inner loop walks down a column of B: one number of every cache line of 64 bytes is used and
    the line is gone before its neighbours are wanted. For N = 1024, each of the N^3 steps fetches a
    line from far away.
    """
    for i in range(a.shape[0]):
        for j in range(b.shape[1]):
            total = c.dtype.type(0)
            for k in range(a.shape[1]):
                total += a[i, k] * b[k, j]
            c[i, j] = total


def interchanged(a, b, c):
    """Loops i, k, j instead of i, j, k: row k of B, times one number of A, is added to row i of C.

    The inner loop reads and writes side by side, so every byte of a cache line is used and the
    compiler can take several elements per instruction. But each multiply-add still loads one number
    of B, loads and stores one of C: three memory operations for two of arithmetic.
    """
    for i in range(a.shape[0]):
        for j in range(b.shape[1]):
            c[i, j] = 0
        for k in range(a.shape[1]):
            factor = a[i, k]
            for j in range(b.shape[1]):
                c[i, j] += factor * b[k, j]


def blocked(a, b, c):
    """The same within blocks: a block of B is used by BLOCK_M rows of A while it is in the cache.

    Above, all of B (4 MB for N = 1024) passes through the cache once per row of A. Here a block of
    256 KB stays in the second-level cache until BLOCK_M rows have used it: B comes from far away
    M / BLOCK_M times instead of M times.
    """
    m, n, depth = a.shape[0], b.shape[1], a.shape[1]
    c[:, :] = 0
    for k0 in range(0, depth, BLOCK_K):
        k1 = min(k0 + BLOCK_K, depth)
        for j0 in range(0, n, BLOCK_N):
            j1 = min(j0 + BLOCK_N, n)
            for i in range(m):
                for k in range(k0, k1):
                    factor = a[i, k]
                    for j in range(j0, j1):
                        c[i, j] += factor * b[k, j]


def pack(source, target):
    """Copies a block into contiguous memory; what is left of `target` is not touched."""
    for i in range(source.shape[0]):
        for j in range(source.shape[1]):
            target[i, j] = source[i, j]


def packed(a, b, c):
    """The block of B is first copied to memory of its own.

    Rows of a block lie N numbers apart in B, each on a page of its own for N = 1024: too many pages
    for the processor's page table cache, and, where N is a power of two, all on the same few places
    of the cache. Side by side they are read in order. The copy costs one pass and pays off BLOCK_M
    times and more.
    """
    m, n, depth = a.shape[0], b.shape[1], a.shape[1]
    block = np.empty((BLOCK_K, BLOCK_N), b.dtype)
    c[:, :] = 0
    for k0 in range(0, depth, BLOCK_K):
        k1 = min(k0 + BLOCK_K, depth)
        for j0 in range(0, n, BLOCK_N):
            j1 = min(j0 + BLOCK_N, n)
            pack(b[k0:k1, j0:j1], block)
            for i in range(m):
                row = c[i, j0:j1]
                for k in range(k1 - k0):
                    factor, source = a[i, k0 + k], block[k, : j1 - j0]
                    for j in range(j1 - j0):
                        row[j] += factor * source[j]


def tile(a, b, c, sums):
    """C (TILE_M, TILE_N) += A (TILE_M, k) @ B (k, TILE_N), the sums in `sums` until all are done.

    Four rows of `sums` are 4 x 64 numbers. With 512-bit vectors they fill 16 registers, so the loop
    over k loads four vectors of B and four numbers of A for sixteen multiply-adds of vectors, and
    touches C once, at the end.
    """
    first, second, third, fourth = sums[0], sums[1], sums[2], sums[3]
    sums[:, :] = 0
    for k in range(b.shape[0]):
        row = b[k]
        a0, a1, a2, a3 = a[0, k], a[1, k], a[2, k], a[3, k]
        for j in range(TILE_N):
            first[j] += a0 * row[j]
            second[j] += a1 * row[j]
            third[j] += a2 * row[j]
            fourth[j] += a3 * row[j]
    for i in range(c.shape[0]):
        for j in range(c.shape[1]):
            c[i, j] += sums[i, j]


def rows_of_tiles(a, b, c, i0, i1):
    """Rows i0 .. i1 - 1 of C, tile by tile, with B packed a panel of TILE_N columns at a time."""
    n, depth = b.shape[1], a.shape[1]
    left, right = np.zeros((TILE_M, BLOCK_K), a.dtype), np.zeros((BLOCK_K, TILE_N), b.dtype)
    sums = np.empty((TILE_M, TILE_N), c.dtype)
    c[i0:i1, :] = 0
    for k0 in range(0, depth, BLOCK_K):
        k1 = min(k0 + BLOCK_K, depth)
        for j0 in range(0, n, TILE_N):
            j1 = min(j0 + TILE_N, n)
            right[:, :] = 0
            pack(b[k0:k1, j0:j1], right)
            for i in range(i0, i1, TILE_M):
                last = min(i + TILE_M, i1)
                left[:, :] = 0
                pack(a[i:last, k0:k1], left)
                tile(left, right[: k1 - k0], c[i:last, j0:j1], sums)


def vectorised(a, b, c):
    """A tile of C stays close to the arithmetic for BLOCK_K steps of the sum.

    Every rung so far loads and stores C once per multiply-add. Here four rows of A share each load
    of B, and C is touched once per BLOCK_K steps: arithmetic, at last, outnumbers memory
    operations. Compilers keep only part of the tile in registers, whatever one writes; that is why
    `gemm` prints the inner loop itself.
    """
    rows_of_tiles(a, b, c, 0, a.shape[0])


def threaded(a, b, c):
    """Bands of rows of C, as many of them for each core as for any other.

    Nobody else writes a band, and each sum is added up by one thread in one order: the bits of the
    result are the same for any number of threads.
    """
    m = a.shape[0]
    bands = (m + BLOCK_M - 1) // BLOCK_M
    for band in prange(bands):
        rows_of_tiles(a, b, c, band * BLOCK_M, min(m, (band + 1) * BLOCK_M))


RUNGS = {f.__name__: f for f in (naive, interchanged, blocked, packed, vectorised, threaded)}


@functools.cache
def compiled(name: str):
    """The Numba version of a rung: the same function, with the pieces it calls compiled, too."""
    import types

    import numba

    options = {"error_model": "numpy", "fastmath": {"contract"}}
    scope = {**globals(), "prange": numba.prange}
    for piece in (pack, tile, rows_of_tiles):
        copy = types.FunctionType(piece.__code__, scope, piece.__name__)
        scope[piece.__name__] = numba.njit(**options)(copy)
    rung = types.FunctionType(RUNGS[name].__code__, scope, name)
    return numba.njit(parallel=name == "threaded", **options)(rung)


def gflops(multiply, a, b, c, repeats: int = 5) -> float:
    """Median GFLOP/s over `repeats` runs, after one that compiles."""
    multiply(a, b, c)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        multiply(a, b, c)
        seconds.append(time.perf_counter() - start)
    return 2e-9 * a.shape[0] * a.shape[1] * b.shape[1] / sorted(seconds)[repeats // 2]


def main(n: int = 768) -> None:
    from .gemm import matmul

    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((n, n), np.float32) for _ in range(2))
    c = np.empty_like(a)
    ways = {name: compiled(name) for name in RUNGS}
    ways["gemm"] = lambda a, b, c: matmul(a, b, out=c)
    ways["numpy"] = lambda a, b, c: np.matmul(a, b, out=c)
    print(f"float32, {n} x {n} x {n}")
    for name, multiply in ways.items():
        print(f"{name:14}{gflops(multiply, a, b, c):8.1f} GFLOP/s", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
