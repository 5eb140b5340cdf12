"""The chip's memory: a fixed number of bytes, every one of which is accounted for.

While a chip is open, `kernels.empty` takes its memory from here, so every activation, gradient and
workspace is charged, and so are streamed weights. Three kinds of bytes are *needed*: weights that
an op is using, activations, and kernel workspace. Two kinds go when the room is needed: copies of
weights that nobody is using are *idle*, kept for the next pass and dropped without loss; gradients
that are *leaving* can be waited for. Blocks whose arrays have died wait on a *free* list to be used
again; they are real memory too, so they count against the budget, and the one freed longest ago is
given back to the operating system when something else needs the room.

    needed + idle + leaving + free <= limit      at every instant
"""

import math
import mmap
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import tape
from ..kernels.allocator import aligned_block, lease

NEEDED = ("weights", "activations", "workspace")
LEAVING = "leaving"
KINDS = (*NEEDED, "idle", LEAVING)
MAPPED = 1 << 17  # bytes: from here on a block is a mapping of its own, and leaves when dropped
LARGE = 1 << 20
PAGE = 4096


class Budget:
    """Memory for arrays, `limit` bytes in all. Used by one thread."""

    def __init__(self, limit: int, poison: bool = False) -> None:
        self.limit, self.poison = limit, poison
        self.held = dict.fromkeys(KINDS, 0)  # bytes by kind
        self.needed = self.free = 0
        self.peak = 0  # the most that was ever needed
        self.peak_by_kind = dict.fromkeys(KINDS, 0)  # the most of each kind, each at its own time
        self.at_peak = dict.fromkeys(NEEDED, 0)  # how the peak was made up
        self.footprint = 0  # bytes of mapped blocks that serve all of a step without a new one
        self._in_use: Counter[int] = Counter()  # arrays by block size, now and at most
        self._most: Counter[int] = Counter()
        self.mapped = 0  # bytes ever asked from the system: hardly grows in a steady state
        self.high = 0  # the most needed since `take_high`
        self.leases: dict[int, tuple] = {}  # id of block -> (bytes, kind, shape, dtype, module)
        self._holders: Counter[int] = Counter()  # id of block -> leases: two while it is `outgoing`
        self.make_room: Callable[[int, Any], None] = lambda nbytes, what: None
        self.new_mapping: Callable[[int], np.ndarray] = mapped_block  # for blocks from MAPPED on
        self._free: dict[int, list[np.ndarray]] = defaultdict(list)
        self._freed: OrderedDict[int, np.ndarray] = OrderedDict()  # oldest first

    # The interface of `kernels.allocator.Recycler`.

    def empty(self, shape: tuple[int, ...], dtype: np.dtype, kind: str = "activations") -> Any:
        """An uninitialised C-contiguous array of `shape` and `dtype`, charged to `kind`."""
        block = self.block(math.prod(shape) * dtype.itemsize, kind, (shape, dtype))
        held = lease(block, self)
        held.kind = kind
        scope = tape.state.scope
        module = type(scope[-1]).__name__ if scope else ""
        size = block.nbytes
        self.leases[id(block)] = (size, kind, shape, dtype, module)
        self._holders[id(block)] = 1
        self._in_use[size] += 1
        if self._in_use[size] > self._most[size]:
            self._most[size] += 1
            self.footprint += size if size >= MAPPED else 0
        return np.ndarray(shape, dtype, held)

    def outgoing(self, array: np.ndarray) -> np.ndarray:
        """The same numbers for whoever takes them out of the chip.

        They are needed as long as anybody else holds them, and leaving afterwards. Memory that is
        not the chip's is handed on as it is.
        """
        held = array
        while isinstance(held, np.ndarray):
            held = held.base
        block = getattr(held, "block", None)
        if id(block) not in self.leases:
            return array
        out = lease(block, self)
        out.kind = LEAVING
        self._holders[id(block)] += 1
        offset = array.ctypes.data - block.ctypes.data
        return np.ndarray(array.shape, array.dtype, out, offset, array.strides)

    def give_back(self, held: Any) -> None:
        """Called when the last array of a lease has died."""
        block = held.block
        size, kind, *what = self.leases[id(block)]
        self._holders[id(block)] -= 1
        if not self._holders[id(block)]:
            del self.leases[id(block)], self._holders[id(block)]
            self._in_use[size] -= 1
            self.charge(kind, -size)
            self.release(block)
        elif held.kind != LEAVING:  # only those who take it out are left
            self.leases[id(block)] = (size, LEAVING, *what)
            self.charge(kind, -size)
            self.charge(LEAVING, size)

    # Blocks.

    def block(self, nbytes: int, kind: str, what: Any) -> np.ndarray:
        """Uninitialised bytes, charged to `kind`; a ChipMemoryError names `what` did not fit."""
        size = block_size(nbytes)
        if self.taken + size > self.limit:
            self.make_room(size, what)
        waiting = self._free.get(size)
        if waiting:
            block = waiting.pop()
            del self._freed[id(block)]
            self.free -= size
        else:
            self._trim(size)
            block = aligned_block(size) if size < MAPPED else self.new_mapping(size)
            self.mapped += size
        self.charge(kind, size)
        return block

    def release(self, block: np.ndarray) -> None:
        """The block may be used again. Its bytes must have been uncharged."""
        if self.poison:
            block.fill(0xFF)  # NaN, whoever reads it as floats
        self.free += block.nbytes
        self._free[block.nbytes].append(block)
        self._freed[id(block)] = block
        if not self.limit:
            self._trim(0)

    def close(self) -> None:
        """Keeps no memory from here on; arrays that are still held take theirs along."""
        self.limit = 0
        self._trim(0)

    def _trim(self, wanted: int) -> None:
        """Gives free blocks back to the operating system until `wanted` bytes more fit."""
        while self._freed and self.taken + self.free + wanted > self.limit:
            _, block = self._freed.popitem(last=False)
            waiting = self._free[block.nbytes]
            del waiting[next(i for i, b in enumerate(waiting) if b is block)]
            self.free -= block.nbytes

    # The account.

    def charge(self, kind: str, nbytes: int) -> None:
        """`nbytes` more (or fewer) of a kind."""
        self.held[kind] += nbytes
        self.peak_by_kind[kind] = max(self.peak_by_kind[kind], self.held[kind])
        if kind not in NEEDED:
            return
        self.needed += nbytes
        if nbytes > 0:
            self.high = max(self.high, self.needed)
            if self.needed > self.peak:
                self.peak = self.needed
                self.at_peak = {kind: self.held[kind] for kind in NEEDED}

    @property
    def taken(self) -> int:
        """Bytes in use, one way or another."""
        return self.needed + self.held["idle"] + self.held[LEAVING]

    @property
    def spare(self) -> int:
        """Bytes that idle copies may take without crowding out blocks that will be used again.

        Fresh memory from the operating system costs a page fault per page, which is more than
        fetching a weight from RAM.
        """
        return self.limit - self.footprint - self.held["weights"]

    def take_high(self) -> int:
        """The most that was needed since this was last asked."""
        high, self.high = self.high, self.needed
        return high


def block_size(nbytes: int) -> int:
    """Nearly equal arrays share blocks; at most a sixteenth of a large one is lost to that."""
    unit = 64 if nbytes < MAPPED else PAGE if nbytes < LARGE else LARGE // 16
    return max(64, -(-nbytes // unit) * unit)


def mapped_block(nbytes: int) -> np.ndarray:
    """`nbytes` of zeros that start on a page, and leave the process when the last view dies."""
    memory = mmap.mmap(-1, nbytes)
    if hasattr(memory, "madvise") and hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)  # fewer page faults, where the kernel allows it
    return np.frombuffer(memory, np.uint8)
