"""Large products: packed panels, blocks that fit the caches, and a queue of tasks shared by the
threads.

C = A @ B is cut so that every level of the memory hierarchy holds what is reused from it:

    for columns of nc, for panels of kc:                        "block"
        pack B[kc, nc]                                           stays in L3, read by every thread
        for tiles of C (mc, nt):
            pack A[mc, kc]                                       stays in the L2 of one core
            for slivers of B[kc, nv vectors]:                    stays in L1 and L2
                for slivers of A[mr, kc]: the micro-kernel       sums stay in registers

Packing a piece of B and computing a tile of C are tasks, numbered in an order in which each one
only needs earlier ones. A thread takes the next number from a shared counter and waits until what
the task needs is done. Whoever holds an earlier number is already at work on it, so the waiting
ends, with one thread or many, and a thread that the operating system delays takes fewer tasks
instead of holding up an equal share. Two buffers for B let the packing of the next block overlap
with this one.

Which thread takes a task changes no bit of the result: the panels of one tile are added in the
order of k, and the cuts depend on the shape alone.
"""

import os
import platform

from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic

from ..elementwise import logistic_of_gelu
from .gemm import BIAS, GELU, KEEP, RESIDUAL
from .microkernel import CPU, I32, Emit, itemsize, load, step, tile
from .packing import B, pack_a, pack_b, width

MR, NV = CPU.mr, CPU.nv


def _element(context, builder, array_type, array, index):
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [index])


@intrinsic
def fetch_add(typingctx, array, index, amount):
    """array[index] += amount, indivisible, publishing earlier writes; returns the old value."""

    def codegen(context, builder, signature, args):
        place = _element(context, builder, array, args[0], args[1])
        return builder.atomic_rmw("add", place, args[2], "seq_cst")

    return types.int64(array, types.intp, types.int64), codegen


@intrinsic
def read_published(typingctx, array, index):
    """array[index], and whatever was written before it was."""

    def codegen(context, builder, signature, args):
        return builder.load_atomic(
            _element(context, builder, array, args[0], args[1]), "acquire", 8
        )

    return types.int64(array, types.intp), codegen


@intrinsic
def relax(typingctx):
    """Tell the core that this is a waiting loop."""
    machine = platform.machine().lower()

    def codegen(context, builder, signature, args):
        e = Emit(builder, ir.FloatType())
        if machine in ("x86_64", "amd64"):
            e.call("llvm.x86.sse2.pause", ir.VoidType(), [])
        elif machine in ("arm64", "aarch64"):
            e.call("llvm.aarch64.hint", ir.VoidType(), [I32(1)])  # yield
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def give_way(typingctx):
    """Let another thread have this core: the one we wait for may be off its own."""

    def codegen(context, builder, signature, args):
        if os.name == "posix":
            Emit(builder, ir.FloatType()).call("sched_yield", I32, [])
        return context.get_dummy_value()

    return types.void(), codegen


@njit(error_model="numpy")
def wait(state, index, count):
    turns = 0
    while read_published(state, index) < count:
        relax()
        turns += 1
        if turns % 1024 == 0:
            give_way()


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
    a,
    a_row,
    a_col,
    b,
    b_row,
    b_col,
    c,
    c_row,
    bias,
    bias_row,
    bias_col,
    extra,
    extra_row,
    todo,
    add,
    m,
    n,
    plan,
    state,
    at,
    pa,
    pb,
):
    """Take tasks of C (m, n) (+)= A (m, k) @ B (k, n) (+ bias) until none is left.

    a, b, c         pointers with strides in bytes; C contiguous along n
    bias, extra     what `finish` needs for `todo`; extra contiguous along n, like C
    m, n, plan      the size of C, and the cuts for this size or a larger one: `_plan` in gemm.py
    state, at       from state[at] on: the counter of tasks, and what is done; zero at the start
    pa, pb          pointers to this thread's room for (mc, kc) of A, and to the common room for
                    twice (kc, nc) of B
    """
    k, mc, kc, nc, nt, nb = plan[2], plan[3], plan[4], plan[5], plan[6], plan[7]
    tiles_m, tiles_n, panels, columns, packs = plan[8], plan[9], plan[10], plan[11], plan[12]
    size, wide, tiles, blocks = itemsize(a), width(B, a), tiles_m * tiles_n, panels * columns
    packed, computed, summed = at + 1, at + 1 + blocks, at + 1 + 2 * blocks
    while True:
        task = fetch_add(state, at, 1)
        if task >= (packs + tiles) * blocks:
            return
        block, task = task // (packs + tiles), task % (packs + tiles)
        j0, k0 = block // panels * nc, block % panels * kc
        n_here, depth = min(nc, n - j0), min(kc, k - k0)
        panel = step(pb, block % 2 * nc * kc * size)
        if task < packs:
            first = task * nb
            count = min(nb, n_here - first)
            if block >= 2:
                wait(state, computed + block - 2, tiles)  # nobody reads this buffer any more
            if count > 0:
                source = step(b, k0 * b_row + (j0 + first) * b_col)
                pack_b(source, b_col, b_row, count, depth, step(panel, first * depth * size))
            fetch_add(state, packed + block, 1)
            continue
        task -= packs
        own = summed + block // panels * tiles + task
        wait(state, packed + block, packs)
        wait(state, own, block % panels)  # the panels before this one are in C
        i0, t0 = task // tiles_n * mc, task % tiles_n * nt
        rows, t1 = min(mc, m - i0), min(t0 + nt, n_here)
        if rows > 0 and t0 < t1:
            pack_a(step(a, i0 * a_row + k0 * a_col), a_row, a_col, rows, depth, pa)
            for j in range(t0, t1, wide):
                sliver, cols = step(panel, j * depth * size), min(wide, t1 - j)
                target = step(c, i0 * c_row + (j0 + j) * size)
                for i in range(0, rows, MR):
                    tile(
                        MR,
                        NV,
                        True,
                        step(pa, i * depth * size),
                        size,
                        MR * size,
                        sliver,
                        wide * size,
                        depth,
                        step(target, i * c_row),
                        c_row,
                        min(MR, rows - i),
                        cols,
                        add or k0 > 0,
                    )
                if todo and k0 + depth == k:
                    terms = step(bias, i0 * bias_row + (j0 + j) * bias_col)
                    more = step(extra, i0 * extra_row + (j0 + j) * size)
                    finish(
                        target, c_row, terms, bias_row, bias_col, more, extra_row, todo, rows, cols
                    )
        fetch_add(state, own, 1)
        fetch_add(state, computed + block, 1)
