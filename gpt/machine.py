"""What this machine can do at most: FMA operations and memory traffic per second, measured.

One kernel keeps twelve vectors in registers and does nothing but multiply and add; the other copies
arrays much larger than the caches. Of several times the least counts, not the median: a limit is
what is reached when nothing else disturbs.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tinygrad_edu.kernels import launch
from tinygrad_edu.kernels.launch import pieces, span, task
from tinygrad_edu.memory.calibrate import timed

ACCUMULATORS = 12  # more than the latency of an FMA times the units of a core; fits 16 registers
LINE = 16  # float32 numbers on a cache line
COPIED = 1 << 16  # numbers copied at a time


def vector_bytes() -> int:
    """Bytes of the widest vector this CPU computes with."""
    features = llvm.get_host_cpu_features()
    return 64 if features.get("avx512f") else 32 if features.get("avx") else 16


@intrinsic
def fma_chain(typingctx, rounds, value):
    """ACCUMULATORS independent sums, `rounds` FMAs each -> something that depends on all."""
    lanes = vector_bytes() // 4

    def codegen(context, builder, signature, args):
        vector = ir.VectorType(ir.FloatType(), lanes)
        kind = ir.FunctionType(vector, [vector] * 3)
        fma = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{lanes}f32")
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


@task
def multiply_add(arrays, sizes, numbers, piece, slot):
    arrays[0][LINE * piece] = fma_chain(sizes[0], np.float32(0.5))


@task
def copy(arrays, sizes, numbers, piece, slot):
    n, step = sizes[0], sizes[1]
    first, last = piece * step, min(n, (piece + 1) * step)
    source, target = span(arrays[0], first, last), span(arrays[1], first, last)
    for i in range(len(source)):
        target[i] = source[i]


@contextmanager
def on_threads(n: int) -> Iterator[None]:
    before = launch.threads()
    launch.set_threads(n)
    try:
        yield
    finally:
        launch.set_threads(before)


def fma_peak(threads: int, repeats: int = 9, rounds: int = 10_000_000) -> float:
    """float32 operations per second on `threads` threads; an FMA counts as two."""
    out = np.empty(LINE * threads, np.float32)
    with on_threads(threads):
        seconds = min(timed(lambda: multiply_add(threads, [out], [rounds]), repeats))
    return threads * rounds * ACCUMULATORS * 2 * (vector_bytes() // 4) / seconds


def bandwidth(threads: int, repeats: int = 9, megabytes: int = 256) -> float:
    """Bytes per second, read plus written, of copying on `threads` threads."""
    source = np.ones(megabytes * 2**20 // 4, np.float32)
    target, (count, step) = np.empty_like(source), pieces(source.size, 1, COPIED)
    with on_threads(threads):
        seconds = min(timed(lambda: copy(count, [source, target], [source.size, step]), repeats))
    return 2 * source.nbytes / seconds
