"""Where arrays come from: `empty(shape, dtype)`, which hands out recycled memory.

Every op's output and workspace is made here. A training step asks for the same sizes again and
again; fresh memory from the operating system costs a page fault per 4096 bytes, so blocks whose
last array has died go to a free list and are handed out again. Nobody has to say "free": a block
comes back when Python drops the last array that looks into it, views included.

    array --base--> lease (owns the right to one block) --__del__--> free list
"""

import contextlib
import ctypes
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from . import switch

ALIGNMENT = 64  # bytes: a cache line, and one 512-bit vector
SMALLEST = 32768  # bytes: below this the system allocator recycles well enough by itself
SPARE = 64 << 20  # bytes free at any time: small models need not count


class Recycler:
    """Free lists by block size. Holds a quarter (and `spare`) more than was ever in use at once."""

    def __init__(self, spare: int = SPARE) -> None:
        self.spare = spare
        self.free: dict[int, list[np.ndarray]] = {}
        self.live_bytes = 0  # bytes of blocks somebody holds
        self.free_bytes = 0  # bytes of blocks waiting on a free list
        self.peak_bytes = 0  # the most `live_bytes` has been
        self.mapped_bytes = 0  # bytes ever asked from the system: flat in a steady state

    def empty(self, shape: tuple[int, ...], dtype: np.dtype, kind: str = "") -> np.ndarray:
        """An uninitialised C-contiguous array of `shape` and `dtype`."""
        nbytes = math.prod(shape) * dtype.itemsize
        if nbytes < SMALLEST:
            return np.empty(shape, dtype)
        block_bytes = round_up(nbytes)
        waiting = self.free.get(block_bytes)
        if waiting:
            block = waiting.pop()
            self.free_bytes -= block_bytes
        else:
            self._make_room(block_bytes)
            block = aligned_block(block_bytes)
            self.mapped_bytes += block_bytes
        self.live_bytes += block_bytes
        if self.live_bytes > self.peak_bytes:
            self.peak_bytes = self.live_bytes
        return np.ndarray(shape, dtype, lease(block, self))

    def give_back(self, held: "ctypes.Array") -> None:
        block, nbytes = held.block, held.block.nbytes
        self.live_bytes -= nbytes
        self.free_bytes += nbytes
        self.free.setdefault(nbytes, []).append(block)

    def _make_room(self, wanted: int) -> None:
        """Drops free blocks, largest first, while keeping them would hoard memory."""
        ceiling = self.spare + 1.25 * max(self.peak_bytes, self.live_bytes + wanted)
        for size in sorted(self.free, reverse=True):
            while self.free[size] and self.live_bytes + self.free_bytes + wanted > ceiling:
                self.free[size].pop()
                self.free_bytes -= size


@functools.lru_cache(4096)
def round_up(nbytes: int) -> int:
    """The block size for `nbytes`: eight sizes per power of two, so at most 1/8 is wasted."""
    step = max(4096, 1 << max(0, nbytes.bit_length() - 4))
    return -(-nbytes // step) * step


def aligned_block(nbytes: int) -> np.ndarray:
    """`nbytes` of uninitialised memory that start on a cache line."""
    raw = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + nbytes]


@functools.cache
def lease_type(nbytes: int) -> type:
    """A buffer type of `nbytes` that returns its block when the last array using it dies.

    ctypes is the one place in pure Python where a class of ours can be the memory behind an array.
    """

    class Lease(ctypes.c_char * nbytes):
        __slots__ = ("block", "recycler")

        def __del__(self) -> None:
            self.recycler.give_back(self)

    return Lease


def lease(block: np.ndarray, recycler: Recycler) -> ctypes.Array:
    held = lease_type(block.nbytes).from_buffer(block)
    held.block, held.recycler = block, recycler
    return held


RECYCLER = Recycler()
_source: list = [RECYCLER]  # where memory comes from now: the last one


def empty(
    shape: tuple[int, ...] | int, dtype: np.dtype | type, kind: str = "activations"
) -> np.ndarray:
    """An uninitialised array, like `np.empty`, from recycled memory where that pays.

    `kind` ("activations" or "workspace") is for the account of a memory with a budget.
    """
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    return _source[-1].empty(shape, np.dtype(dtype), kind)


@contextlib.contextmanager
def memory_from(source: Any) -> Iterator[None]:
    """Inside, `empty` is `source.empty(shape, dtype, kind)`."""
    _source.append(source)
    try:
        yield
    finally:
        remove_last(_source, source)


def remove_last(stack: list, item: Any) -> None:
    """Leaves a context that need not be the innermost one."""
    del stack[max(place for place, other in enumerate(stack) if other is item)]


def is_counted() -> bool:
    """Does memory come from a source with a budget?"""
    return _source[-1] is not RECYCLER


def zeros(shape: tuple[int, ...] | int, dtype: np.dtype | type) -> np.ndarray:
    """Like `np.zeros`, from `empty`."""
    out = empty(shape, dtype)
    if not switch.off:
        out.fill(0)
    return out


def copy(array: np.ndarray) -> np.ndarray:
    """A C-contiguous copy of `array`, from `empty`."""
    out = empty(array.shape, array.dtype)
    if not switch.off:
        np.copyto(out, array)
    return out


def concatenate(arrays: Sequence[np.ndarray], axis: int) -> np.ndarray:
    """Like `np.concatenate`, from `empty`."""
    shape = list(arrays[0].shape)
    shape[axis] = sum(array.shape[axis] for array in arrays)
    out = empty(tuple(shape), np.result_type(*arrays))
    return out if switch.off else np.concatenate(arrays, axis=axis, out=out)
