"""What this machine can do at most: FMA operations and memory traffic per second, measured.

Both kernels are compiled by Numba. The first keeps twelve vectors in registers and does nothing
but multiply and add; the second copies arrays much larger than the caches. Of several times the
least counts, not the median: a limit is what is reached when nothing else disturbs.
"""

import functools
from collections.abc import Callable

import numpy as np

from tinygrad_edu.memory.calibrate import timed

ACCUMULATORS = 12  # more than the latency of an FMA times the units of a core; fits 16 registers


def vector_bytes() -> int:
    """Bytes of the widest vector this CPU computes with."""
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features()
    return 64 if features.get("avx512f") else 32 if features.get("avx") else 16


@functools.cache
def _kernels() -> tuple[Callable, Callable]:
    import numba
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic

    lanes = vector_bytes() // 4

    @intrinsic
    def fma_chain(typingctx, rounds, value):
        def codegen(context, builder, signature, args):
            vector = ir.VectorType(ir.FloatType(), lanes)
            kind = ir.FunctionType(vector, [vector] * 3)
            name = f"llvm.fma.v{lanes}f32"
            fma = cgutils.get_or_insert_function(builder.module, kind, name)
            spread = ir.Constant(vector, ir.Undefined)
            for lane in range(lanes):
                spread = builder.insert_element(spread, args[1], ir.Constant(ir.IntType(32), lane))
            before = builder.block
            loop, done = builder.append_basic_block("loop"), builder.append_basic_block("done")
            builder.branch(loop)
            builder.position_at_end(loop)
            i = builder.phi(args[0].type)
            i.add_incoming(ir.Constant(args[0].type, 0), before)
            sums = [builder.phi(vector) for _ in range(ACCUMULATORS)]
            for lane, total in enumerate(sums):
                total.add_incoming(ir.Constant(vector, [float(lane)] * lanes), before)
                total.add_incoming(builder.call(fma, [total, spread, spread]), loop)
            following = builder.add(i, ir.Constant(i.type, 1))
            i.add_incoming(following, loop)
            builder.cbranch(builder.icmp_signed("<", following, args[0]), loop, done)
            builder.position_at_end(done)
            whole = functools.reduce(builder.fadd, sums)
            return builder.extract_element(whole, ir.Constant(ir.IntType(32), 0))

        return types.float32(types.int64, types.float32), codegen

    @numba.njit(parallel=True)
    def multiply_add(threads, rounds, out):
        for t in numba.prange(threads):
            out[t] = fma_chain(rounds, np.float32(0.5))

    @numba.njit(parallel=True, error_model="numpy")
    def copy(source, target):
        for i in numba.prange(source.size):
            target[i] = source[i]

    return multiply_add, copy


def fma_peak(threads: int, repeats: int = 9, rounds: int = 10_000_000) -> float:
    """float32 operations per second on `threads` threads; an FMA counts as two."""
    import numba

    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    multiply_add, _ = _kernels()
    out = np.empty(threads, np.float32)
    seconds = min(timed(lambda: multiply_add(threads, rounds, out), repeats))
    return threads * rounds * ACCUMULATORS * 2 * (vector_bytes() // 4) / seconds


def bandwidth(threads: int, repeats: int = 9, megabytes: int = 256) -> float:
    """Bytes per second, read plus written, of copying on `threads` threads."""
    import numba

    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    _, copy = _kernels()
    source = np.ones(megabytes * 2**20 // 4, np.float32)
    target = np.empty_like(source)
    return 2 * source.nbytes / min(timed(lambda: copy(source, target), repeats))
