"""A kernel's work in one block of memory: what it is given, and who takes which piece.

    pointers to arrays | sizes | numbers | count of pieces | counters

8 bytes each. Every thread has a counter, which starts where its part of the pieces does; each takes
its own part and then helps with what is left of the others', so nobody who is late holds anybody
up. Calls that do not need each other are a job together: blocks side by side, `stride` bytes apart.
(That depends on the number of threads, which compiled code, kept on disk, must not know.)
"""

from llvmlite import ir
from numba import config, njit, types
from numba.extending import intrinsic

from .objects import DATA, word

ARRAYS, SIZES, NUMBERS = 16, 64, 8  # what a block has room for, before the count of pieces
COUNT = 8 * (ARRAYS + SIZES + NUMBERS)  # where in a block that is, in bytes
LINE = 64  # bytes of a cache line: what different threads write lies on different ones
COUNTERS = -(-(COUNT + 8) // LINE) * LINE
MOST = config.NUMBA_NUM_THREADS  # threads, the caller included
BLOCK = COUNTERS + LINE * MOST


@intrinsic
def _take(typingctx, address, block, place, end, slot):
    """Calls the task at `address` for what the counter at `place` gives out, up to `end`."""

    def codegen(context, builder, signature, args):
        i64, pointer = ir.IntType(64), ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer] * 3 + [i64] * 2)
        function = builder.inttoptr(args[0], kind.as_pointer())
        base = builder.inttoptr(args[1], pointer)
        counter = builder.inttoptr(args[2], i64.as_pointer())
        at = [0, 8 * ARRAYS, 8 * (ARRAYS + SIZES)]
        places = [builder.gep(base, [i64(offset)]) for offset in at]
        loop, body, done = (builder.append_basic_block(n) for n in ("pieces", "piece", "done"))
        builder.branch(loop)
        builder.position_at_end(loop)
        piece = builder.atomic_rmw("add", counter, i64(1), "monotonic")
        builder.cbranch(builder.icmp_signed("<", piece, args[3]), body, done)
        builder.position_at_end(body)
        builder.call(function, [*places, piece, args[4]])
        builder.branch(loop)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), codegen


@intrinsic
def write(typingctx, address, value):
    """Stores an int64 at an address."""

    def codegen(context, builder, signature, args):
        builder.store(args[1], builder.inttoptr(args[0], ir.IntType(64).as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@njit
def read_pointers(blocks, calls, stride, count):
    """Replaces each array object's address in the blocks by that of its data."""
    for block in range(blocks, blocks + calls * stride, stride):
        for place in range(block, block + 8 * count, 8):
            array = word(place)
            if array != 0:
                write(place, word(array + DATA))


@njit
def deal(blocks, calls, stride, threads):
    """Sets the counters."""
    for block in range(blocks, blocks + calls * stride, stride):
        count = word(block + COUNT)
        for slot in range(threads):
            write(block + COUNTERS + LINE * slot, slot * count // threads)


@njit
def work(address, blocks, calls, stride, threads, slot):
    """Of each call this thread's part of the pieces, then what is left of the others'."""
    for block in range(blocks, blocks + calls * stride, stride):
        count, counters = word(block + COUNT), block + COUNTERS
        for i in range(threads):
            owner = (slot + i) % threads
            _take(address, block, counters + LINE * owner, (owner + 1) * count // threads, slot)
