"""Running a compiled kernel on all threads.

A kernel's work is cut into pieces, numbered from 0. The cuts depend on shapes alone, and whoever
takes a piece does all of it, so the bits of a result do not depend on the number of threads. Each
thread has an equal share of the numbers, in order: from op to op it meets the same rows again, and
finds them in its own cache. A thread whose share is done takes from the others', so that one the
operating system holds up takes fewer pieces instead of keeping everybody waiting.

    @task
    def double(arrays, sizes, numbers, piece, slot):
        n, step = sizes[0], sizes[1]
        first, last = piece * step, min(n, (piece + 1) * step)
        x, y = span(arrays[0], first, last), span(arrays[1], first, last)
        for i in range(len(x)):
            y[i] = x[i] + x[i]

    double(pieces, [x, y], [n, step])

Calls that do not need each other share one launch: `double.each([(pieces, [x, y], ...), ...])`.

`slot` numbers the threads, for kernels that need workspace of their own.

A task is compiled once per element type (float32, float64), when it is first called. Its arguments
travel in one block of memory (a `job`), which is why every task has the same signature and one
launcher, with the threads of one `pool`, serves them all: most compile in a few tenths of a second
instead of seconds. (The shortest products go to the pool from compiled code, `gemm.short`, as the
way there counts.)
`arrays` are pointers to the element type; `seen_as` changes the type.
"""

import functools
import struct
import threading
from collections.abc import Callable, Sequence

import numpy as np
from numba import carray, cfunc, njit, types
from numba.extending import intrinsic

from . import jit, switch
from .allocator import aligned_block
from .job import ARRAYS, BLOCK, MOST, NUMBERS, SIZES, read_pointers
from .pool import POOL, run

SMALL = 1 << 15  # elements: below this, waking a second thread costs more than it helps

_threads = MOST
_local = threading.local()


@intrinsic
def seen_as(typingctx, pointer, kind):
    """The pointer, to elements of another type: seen_as(arrays[2], np.int64)."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(kind.dtype)(pointer, kind), codegen


@njit
def span(pointer, first, last):
    """Elements first .. last - 1 behind a pointer, as an array indexed from 0.

    Numba lets indices count from the end; it must see that they start at 0 to vectorise a loop.
    """
    return carray(pointer, last)[first:last]


@njit
def rows(pointer, first, last, columns):
    """Rows first .. last - 1 of a contiguous matrix, as an array (last - first, columns)."""
    return carray(pointer, (last, columns))[first:last]


def computed_in(dtype: np.dtype) -> np.dtype:
    """float32 and float64 as they are; anything shorter in float32, anything longer in float64."""
    if dtype.char in "fd" and dtype.isnative:
        return dtype
    return np.dtype(np.float32 if dtype.itemsize <= 4 else np.float64)


def operand(array: np.ndarray, dtype: np.dtype | None = None) -> np.ndarray:
    """The array as kernels want it: contiguous, and of `dtype` or what its own is computed in.

    Compute in the result; convert back with `astype(array.dtype, copy=False)`.
    """
    return np.ascontiguousarray(array, computed_in(array.dtype) if dtype is None else dtype)


def set_threads(n: int) -> None:
    global _threads
    _threads = min(n, MOST)


def threads() -> int:
    return _threads


def most_threads() -> int:
    """What `set_threads` is limited to."""
    return MOST


def pieces(rows: int, row_size: int, grain: int = SMALL // 2) -> tuple[int, int]:
    """(number of pieces, rows per piece) so that a piece has about `grain` elements."""
    step = max(1, grain // max(1, row_size))
    return -(-rows // step), step


def launch(pool, address, blocks, calls, stride, arrays, threads):
    """Runs the task at `address` on up to `threads` threads, for each block of arguments."""
    read_pointers(blocks, calls, stride, arrays)
    run(pool, address, blocks, calls, stride, threads)


_launch = jit.Kernel(launch, lambda dtype: types.void(*[types.int64] * 7), nogil=True)


class Blocks:
    """The memory that carries the arguments of some calls, one per Python thread."""

    def __init__(self, calls: int) -> None:
        self.calls, self.memory = calls, aligned_block(calls * BLOCK)
        self.address = self.memory.ctypes.data


@functools.cache
def layout(arrays: int, sizes: int, numbers: int) -> struct.Struct:
    """How so many arguments lie in a block."""
    fields = (arrays, "q", ARRAYS), (sizes, "q", SIZES), (numbers, "d", NUMBERS)
    return struct.Struct("".join(f"{n}{kind}{8 * (room - n)}x" for n, kind, room in fields) + "q")


class Task:
    """`body(arrays, sizes, numbers, piece, slot)`, compiled per element type on first use."""

    def __init__(self, body: Callable, **options) -> None:
        self.body, self.options = body, {"error_model": "numpy", **options}
        self.compiled: dict[str, tuple] = {}
        self.__doc__, self.__name__ = body.__doc__, body.__name__

    def __call__(
        self,
        count: int,
        arrays: Sequence[np.ndarray | None],
        sizes: Sequence[int] = (),
        numbers: Sequence[float] = (),
        workers: int | None = None,
    ) -> None:
        """Does pieces 0 .. count - 1. The first array's dtype decides; None is a null pointer.

        The task sees no shapes or strides: callers pass contiguous arrays, or strides as sizes.
        Callers with workspace for each thread say how many `workers` that is for.
        """
        self.each([(count, arrays, sizes, numbers)], workers)

    def each(self, calls: Sequence[tuple], workers: int | None = None) -> None:
        """Several calls that do not need each other, with one launch.

        All have as many arrays, sizes and numbers, and the first arrays one dtype.
        """
        if switch.off:
            return
        dtype = calls[0][1][0].dtype.char
        address, start, _ = self.compiled.get(dtype) or self.compile(dtype)
        blocks = _local.__dict__.get("blocks")
        if blocks is None or blocks.calls < len(calls):
            blocks = _local.blocks = Blocks(len(calls))
        memory, pieces, place = blocks.memory, 0, 0
        for count, arrays, sizes, numbers in calls:
            held = [0 if a is None else id(a) for a in arrays]
            how = layout(len(held), len(sizes), len(numbers))
            how.pack_into(memory, place, *held, *sizes, *numbers, count)
            pieces, place = pieces + count, place + BLOCK
        workers = min(pieces, _threads if workers is None else workers)
        pool = POOL.ready(workers)
        start(pool, address, blocks.address, len(calls), BLOCK, len(held), workers)

    def address(self, dtype: str) -> int:
        """Where the compiled body is."""
        return (self.compiled.get(dtype) or self.compile(dtype))[0]

    def compile(self, dtype: str) -> tuple:
        scalar = {"f": types.float32, "d": types.float64}[dtype]
        pointers = types.CPointer(types.CPointer(scalar))
        signature = types.void(
            pointers,
            types.CPointer(types.int64),
            types.CPointer(types.float64),
            types.int64,
            types.int64,
        )

        def decorator(**options):
            return cfunc(signature, **options)

        with jit.announced(f"{self.__name__} for {jit.NAMES[dtype]}"):
            try:
                function = jit.cached(decorator, self.body, dtype, **self.options)
            except Exception:  # no room for the cache, or a damaged file in it
                function = decorator(**self.options)(self.body)
        self.compiled[dtype] = function.address, _launch["d"], function
        return self.compiled[dtype]


def task(body: Callable) -> Task:
    """Sums keep their order: a task's loops run as they are written."""
    return Task(body)


def summing_task(body: Callable) -> Task:
    """A task whose sums may be taken in lanes, which vectorises them; NaN and infinity survive."""
    return Task(body, fastmath={"contract", "reassoc", "nsz"})
