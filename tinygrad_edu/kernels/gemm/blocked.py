"""Large products: packed panels, and blocks that fit the caches.

A piece of C = A @ B, one thread's work, is cut so that every level of the memory hierarchy holds
what is reused from it:

    for columns of nc, for panels of kc:
        pack B[kc, nc]                                           stays in L3
        for rows of mc:
            pack A[mc, kc]                                       stays in L2
            for slivers of B[kc, nv vectors]:                    stays in L2
                for slivers of A[mr, kc]: the micro-kernel       sums stay in registers

Threads share nothing but what they read: each packs what its pieces need. Packing the same panel
twice costs a few percent of a piece. Packing it once would make the threads wait for one another
and fetch half of their panels from another core's cache, which costs more, and far more where two
cores have no cache in common.

The panels of a sum are added in the order of k, wherever C was cut, so the cuts change no bit.
"""

from numba import carray, njit

from ..elementwise import logistic_of_gelu
from .microkernel import CPU, itemsize, load, step, tile
from .packing import A, B, pack, width

MR, NV = CPU.mr, CPU.nv
BIAS, GELU, KEEP, RESIDUAL = 1, 2, 4, 8  # what `finish` is to do, added up


@njit(error_model="numpy")
def finish(c, c_row, bias, bias_row, bias_col, extra, extra_row, todo, m, n):
    """What is left to do to a finished piece of C (m, n) while it is in the cache, in this order:

    BIAS       C += bias, which has strides of its own: 0 along an axis it is repeated on
    KEEP       extra = C: the backward pass of GELU needs what went into it
    GELU       C = GELU(C), the tanh form
    RESIDUAL   C += extra
    """
    size = itemsize(c)
    for i in range(m):
        row, more = carray(step(c, i * c_row), n), carray(step(extra, i * extra_row), n)
        term = step(bias, i * bias_row)
        if todo & BIAS:
            if bias_col == size:
                terms = carray(term, n)
                for j in range(n):
                    row[j] += terms[j]
            else:
                for j in range(n):
                    row[j] += load(step(term, j * bias_col))
        if todo & KEEP:
            for j in range(n):
                more[j] = row[j]
        if todo & GELU:
            for j in range(n):
                row[j] *= logistic_of_gelu(row[j])
        if todo & RESIDUAL:
            for j in range(n):
                row[j] += more[j]


@njit(error_model="numpy")
def blocked(
    a, a_row, a_col, b, b_row, b_col, c, c_row, bias, bias_row, bias_col, extra, extra_row,
    todo, add, m, n, plan, pa, pb,
):  # fmt: skip
    """C (m, n) (+)= A (m, k) @ B (k, n) (+ bias).

    a, b, c         pointers with strides in bytes; C contiguous along n
    bias, extra     what `finish` needs for `todo`; extra contiguous along n, like C
    plan            k and the cuts, see `_cuts` in gemm.py
    pa, pb          pointers to room for (mc, kc) of A and (kc, nc) of B
    """
    k, mc, kc, nc = plan[2], plan[3], plan[4], plan[5]
    size, wide = itemsize(a), width(B, a)
    for j0 in range(0, n, nc):
        columns = min(nc, n - j0)
        for k0 in range(0, k, kc):
            depth = min(kc, k - k0)
            pack(B, step(b, k0 * b_row + j0 * b_col), b_col, b_row, columns, depth, pb)
            for i0 in range(0, m, mc):
                rows = min(mc, m - i0)
                pack(A, step(a, i0 * a_row + k0 * a_col), a_row, a_col, rows, depth, pa)
                for j in range(0, columns, wide):
                    sliver, cols = step(pb, j * depth * size), min(wide, columns - j)
                    target = step(c, i0 * c_row + (j0 + j) * size)
                    for i in range(0, rows, MR):
                        tile(
                            MR, NV, True, step(pa, i * depth * size), size, MR * size,
                            sliver, wide * size, depth, step(target, i * c_row), c_row,
                            min(MR, rows - i), cols, add or k0 > 0,
                        )  # fmt: skip
                    if todo and k0 + depth == k:
                        terms = step(bias, i0 * bias_row + (j0 + j) * bias_col)
                        more = step(extra, i0 * extra_row + (j0 + j) * size)
                        finish(
                            target, c_row, terms, bias_row, bias_col, more, extra_row,
                            todo, rows, cols,
                        )  # fmt: skip
