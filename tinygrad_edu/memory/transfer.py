"""Threads that move bytes, and nothing else: one for what comes to the chip, one for what leaves.

A `Job` is one transfer. The thread that computes hands it over, goes on, and waits for it where it
needs the result. Every wait has a way out: the job is done, the job failed (its error is raised
where it is waited for), or the thread that should have done it is dead. A `Link` makes a transfer
take as long as it would between a chip and the memory that is emulated.
"""

import copy
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from .timeline import Timeline

POLL = 0.2  # seconds between looks at whether the other thread is still alive
FAREWELL = 10.0  # seconds that a thread gets to finish when the chip closes


def afresh(error: BaseException) -> BaseException:
    """The same error, to be raised again: one that is kept must not keep a traceback.

    That holds frames, and they tensors, whose arrays lead back here through memory that the garbage
    collector cannot look into.
    """
    return copy.copy(error).with_traceback(None)


class Job:
    """One transfer: `move()` is called in the mover's thread.

    It may give the time at which the bytes count as arrived, for an emulated latency.
    """

    __slots__ = ("done", "error", "move", "mover", "ready_at", "what")

    def __init__(self, move: Callable[[], float | None], what: str, mover: "Mover") -> None:
        self.move: Callable[[], float | None] | None = move
        self.what, self.mover = what, mover
        self.error: BaseException | None = None
        self.ready_at = 0.0
        self.done = threading.Event()

    @property
    def arrived(self) -> bool:
        return self.done.is_set() and time.perf_counter() >= self.ready_at

    def run(self) -> None:
        try:
            self.ready_at = self.move() or 0.0
        except BaseException as error:  # whoever waits for the job raises it
            self.error = error.with_traceback(None)
            self.mover.failure = self.mover.failure or self.error
        finally:
            self.move = None  # what it held dies before anybody can see the job done
            self.done.set()

    def drop(self) -> None:
        """Ends the job undone."""
        self.error = RuntimeError(f"{self.what} was not moved: the chip was closed")
        self.move = None
        self.done.set()

    def wait(self) -> None:
        """Returns when the bytes have arrived; raises what went wrong on the way."""
        while not self.done.wait(POLL):
            if not self.mover.alive and not self.done.is_set():
                raise RuntimeError(
                    f"the thread that was to move {self.what} has died: this chip cannot go on; "
                    "resume from the last checkpoint"
                )
        if self.error is not None:
            raise afresh(self.error)
        if (rest := self.ready_at - time.perf_counter()) > 0:
            time.sleep(rest)


class Mover:
    """A thread that does jobs in the order in which they are handed over.

    failure: what the first job that went wrong raised.
    """

    def __init__(self, name: str) -> None:
        self.failure: BaseException | None = None
        self.closing = False
        self.queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._work, name=f"chip {name}", daemon=True)
        self.thread.start()

    @property
    def alive(self) -> bool:
        return self.thread.is_alive()

    def submit(self, move: Callable[[], float | None], what: str) -> Job:
        job = Job(move, what, self)
        self.queue.put(job)
        return job

    def close(self) -> None:
        """Ends the thread after the job it is at; jobs that it has not begun are dropped."""
        self.closing = True
        self.queue.put(None)
        self.thread.join(FAREWELL)

    def _work(self) -> None:
        while (job := self.queue.get()) is not None:
            if self.closing:
                job.drop()
            else:
                job.run()
            del job


def wait_for(job: Job, cause: str, timeline: Timeline) -> None:
    """Waits for a job in the thread that computes, whose stall this is."""
    start, late = time.perf_counter_ns(), not job.arrived
    job.wait()
    if late:
        timeline.stall(cause, start, time.perf_counter_ns())


class Link:
    """One direction between memory and chip, with the bandwidth and latency of the memory."""

    def __init__(self, memory: Any) -> None:
        self.memory = memory
        self.free_at = 0.0  # when the last byte of the transfer before has passed

    def carry(self, nbytes: int, move: Callable[[], None]) -> float:
        """Runs `move`, and takes as long as the link would; when the bytes have arrived."""
        began = max(time.perf_counter(), self.free_at)
        move()
        if self.memory.bandwidth is None:
            return time.perf_counter() + self.memory.latency
        self.free_at = began + nbytes / self.memory.bandwidth
        wait = self.free_at - time.perf_counter()
        if wait > 0:
            self.memory.hurry.wait(wait)
        return max(time.perf_counter(), self.free_at) + self.memory.latency
