"""How far a step has come, and whether it shall be the last: one of a large model takes minutes."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

from tqdm import tqdm


class Progress:
    """Told of each op of a chip, writes what has been done of `step_flops` into the bar."""

    def __init__(self, bar: tqdm, step_flops: int) -> None:
        self.bar, self.whole = bar, step_flops
        self.done, self.shown = 0, time.monotonic()

    def __call__(self, op: str, flops: int) -> None:
        if self.done == 0:  # a step begins
            self.shown = time.monotonic()
        self.done = 0 if op == "update" else self.done + flops
        if time.monotonic() - self.shown > 1:
            self.shown = time.monotonic()
            percent = min(100, 100 * self.done // max(1, self.whole))
            self.bar.set_postfix_str(f"{op} {percent} %" if self.done else "update")


class Display:
    """stderr, as the bar's place: what a full disk does not take of a log ends no run."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> None:
        self.attempt(self.stream.write, text)

    def flush(self) -> None:
        self.attempt(self.stream.flush)

    def attempt(self, call: Callable[..., Any], *arguments: str) -> None:
        try:
            call(*arguments)
        except BrokenPipeError:  # the reader has left
            raise
        except OSError:
            pass


@contextlib.contextmanager
def stop_requests() -> Iterator[list[int]]:
    """The first Ctrl-C (or SIGTERM) is put in a list, to be seen between steps; a second kills."""
    seen: list[int] = []

    def note(number: int, frame: Any) -> None:
        seen.append(number)
        for which in before:
            signal.signal(which, before[which])
        with contextlib.suppress(OSError):  # past buffers, which may be in use at this moment
            os.write(2, b"\nstopping after this step; once more stops at once\n")

    before = {which: signal.signal(which, note) for which in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield seen
    finally:
        for which in before:
            signal.signal(which, before[which])
