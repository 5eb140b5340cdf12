"""Threads of our own that help with kernels, and that nobody has to wait for.

A kernel's work is cut into pieces. The thread that calls takes one after the other until none is
left, and whoever of the pool is awake does the same beside it. A helper that comes late, as the
system gave its core to somebody else, costs its help and nothing more: the caller waits only for
those who are at work. (OpenMP, which Numba would take, waits for all of its threads at the
beginning and at the end of every loop.)

All is in one block of memory:

    OWNER    1 while a caller has the pool; another one meanwhile works alone
    TICKET   counts the jobs; helpers look at it until it changes
    JOB      the arguments of `work`, written only while the gate is closed and nobody inside
    GATE     how many helpers are inside a job, and OPEN as long as they may enter. The caller
             closes it when no piece is left, and goes on when nobody is inside
    SLOTS    per thread (the caller has slot 0): 1 if it sleeps or is about to, and its lock

A helper too late for its job finds the gate closed, or open for the next one, in which it is as
welcome: nobody ever looks at a job that is over.

Who waits looks again and again at first, for some tenths of a millisecond: that spans the Python
between two kernels. Then it sleeps, and gives its core to whoever needs it: another program, or the
threads of NumPy's BLAS, beside which a step takes twice as long if helpers look for much longer.

The locks are those of Python itself (`PyThread_acquire_lock`), which need no interpreter lock and
are there on every system.
"""

import ctypes
import os
import threading

import numpy as np
from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from . import jit
from .allocator import aligned_block
from .job import LINE, MOST, deal, work, write
from .objects import word

OWNER, GATE, TICKET, JOB, SLOTS = 0, LINE, 2 * LINE, 2 * LINE + 8, 3 * LINE
OPEN = 1 << 32
X86 = binding.get_process_triple().startswith(("x86_64", "i686"))
SPINS = 8000 if X86 else 100_000  # looks before sleep: some tenths of a millisecond
I32, I64, VOID = ir.IntType(32), ir.IntType(64), ir.VoidType()


def _from_python(name, result, *arguments):
    return ctypes.PYFUNCTYPE(result, *arguments)((name, ctypes.pythonapi))


new_lock = _from_python("PyThread_allocate_lock", ctypes.c_size_t)
acquire = _from_python("PyThread_acquire_lock", ctypes.c_int, ctypes.c_size_t, ctypes.c_int)


def _call(builder, name, result, *arguments):
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def _at(builder, address):
    return builder.inttoptr(address, I64.as_pointer())


@intrinsic
def load(typingctx, address):
    """The int64 at an address, as other threads have left it."""

    def codegen(context, builder, signature, args):
        return builder.load_atomic(_at(builder, args[0]), "seq_cst", 8)

    return types.int64(types.int64), codegen


@intrinsic
def add(typingctx, address, value):
    """Adds to the int64 at an address -> what it was before."""

    def codegen(context, builder, signature, args):
        return builder.atomic_rmw("add", _at(builder, args[0]), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def exchange(typingctx, address, value):
    """Writes the int64 at an address -> what it was before."""

    def codegen(context, builder, signature, args):
        return builder.atomic_rmw("xchg", _at(builder, args[0]), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def pause(typingctx):
    """Tells the core that this is a loop that waits, where there is an instruction for it."""

    def codegen(context, builder, signature, args):
        if X86:
            _call(builder, "llvm.x86.sse2.pause", VOID)
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def sleep(typingctx, lock):
    """Returns when somebody has called `ring`, before or after, once for each call."""

    def codegen(context, builder, signature, args):
        _call(builder, "PyThread_acquire_lock", I32, args[0], I32(1))
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def ring(typingctx, lock):
    """Ends a `sleep` on this lock."""

    def codegen(context, builder, signature, args):
        _call(builder, "PyThread_release_lock", VOID, args[0])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@njit
def wait(pool, slot, place, value, spins):
    """Returns when the word at `place` is not `value`; after `spins` looks sleeps until woken."""
    turns, mine = 0, pool + SLOTS + LINE * slot
    while load(place) == value:
        if turns < spins:
            turns += 1
            pause()
            continue
        exchange(mine, 1)
        # If the word has changed meanwhile, whoever did it may have seen that we sleep: then a ring
        # is on its way and has to be taken, or the next sleep would end at once.
        if load(place) == value or exchange(mine, 0) == 0:
            sleep(word(mine + 8))
        turns = 0


@njit
def wake(pool, slot):
    mine = pool + SLOTS + LINE * slot
    if load(mine) and exchange(mine, 0):
        ring(word(mine + 8))


@njit
def run(pool, address, blocks, calls, stride, threads):
    """A job for up to `threads` threads; returns when it is done."""
    deal(blocks, calls, stride, threads)
    if threads <= 1 or exchange(pool + OWNER, 1) != 0:
        work(address, blocks, calls, stride, threads, 0)
        return
    for i, value in enumerate((address, blocks, calls, stride, threads)):
        write(pool + JOB + 8 * i, value)
    add(pool + GATE, OPEN)
    add(pool + TICKET, 1)
    for slot in range(1, threads):
        wake(pool, slot)
    work(address, blocks, calls, stride, threads, 0)
    inside = add(pool + GATE, -OPEN) - OPEN
    while inside != 0:
        wait(pool, 0, pool + GATE, inside, SPINS)
        inside = load(pool + GATE)
    exchange(pool + OWNER, 0)


def help_out(pool, slot):
    """What a helper does, until the process ends."""
    seen, spins = 0, SPINS
    while True:
        wait(pool, slot, pool + TICKET, seen, spins)
        seen, spins = load(pool + TICKET), SPINS
        if load(pool + GATE) < OPEN:
            continue
        if add(pool + GATE, 1) >= OPEN:
            job = pool + JOB
            threads = word(job + 32)
            if slot < threads:
                work(word(job), word(job + 8), word(job + 16), word(job + 24), threads, slot)
            else:  # not for us, and the next ones will not be, either
                spins = 0
        if add(pool + GATE, -1) == 1:
            wake(pool, 0)


_help = jit.Kernel(help_out, lambda dtype: types.void(types.int64, types.int64), nogil=True)


class Pool:
    """The block of memory, and the Python threads that run `help_out` on it."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """No helpers yet: at first, and in a forked process, which has none of its parent's."""
        self.size, self.helpers, self.starting = 1, {}, threading.RLock()
        memory = aligned_block(SLOTS + LINE * MOST)
        memory[:] = 0
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(memory))  # never freed: helpers look at it
        self.words, self.address = memory.view(np.int64), memory.ctypes.data
        for slot in range(MOST):
            lock = new_lock()
            acquire(lock, 1)
            self.words[(SLOTS + LINE * slot) // 8 + 1] = lock

    def asleep(self, slot: int) -> bool:
        return bool(self.words[(SLOTS + LINE * slot) // 8])

    def ready(self, threads: int) -> int:
        """The pool's address, once it has been given helpers for so many threads."""
        if threads > self.size:
            self.start(threads)
        return self.address

    def start(self, threads: int) -> None:
        with self.starting:
            job = _help["d"]
            for slot in range(self.size, min(threads, MOST)):
                self.size = slot + 1  # first: whatever interrupts us, no slot is given out twice
                name = f"kernels {slot}"
                helper = threading.Thread(target=job, args=(self.address, slot), name=name)
                helper.daemon = True
                self.helpers[slot] = helper
                try:
                    helper.start()
                except RuntimeError:  # the system has no more: those that run will do
                    self.size = MOST


POOL = Pool()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=POOL.reset)
