"""The time of a step, split by op: every op of the catalogue and every update kernel, wrapped.

Time is exclusive: what a wrapped function spends inside another wrapped one is the inner one's.
What is left of a step after this is the tape, Python, and copies outside of the ops.
"""

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock


@contextmanager
def profiled() -> Iterator[dict[str, float]]:
    """Within the block, fills a dict: name of the op and its direction -> seconds."""
    from tinygrad_edu import ops
    from tinygrad_edu.kernels import update

    spent: dict[str, float] = defaultdict(float)
    inner = [0.0]  # seconds spent in wrapped functions, per level of nesting

    def timed(name: str, function: Callable) -> Callable:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            inner.append(0.0)
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                whole = time.perf_counter() - start
                spent[name] += whole - inner.pop()
                inner[-1] += whole

        return run

    with ExitStack() as stack:
        for op in ops.CATALOGUE:
            for way in ("forward", "backward"):
                wrapper = timed(f"{op.__name__} {way}", getattr(op, way))  # bound, if to its class
                stack.enter_context(mock.patch.object(op, way, staticmethod(wrapper)))
        for name in ("adamw", "sgd", "sums_of_squares", "scale"):
            wrapper = timed(name, getattr(update, name))
            stack.enter_context(mock.patch.object(update, name, wrapper))
        yield spent
