"""Recompute instead of store: `checkpoint(f, *inputs)` keeps only the inputs of a piece of model.

Forward runs `f` without a tape. Backward runs it once more, with one, and walks that. Memory falls
from every intermediate value to the inputs; the price is one more forward. The second run has to
be the first one again, bit for bit, so random numbers must not be drawn anew: dropout draws one
integer key per call, through `random_key`, and a recomputation replays the keys of the first run.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from . import tape
from .tensor import Tensor, apply, constant

_recorders: list[list[int]] = []  # every checkpoint now in its first run
_replays: list[Iterator[int]] = []  # keys of the recomputation now running, innermost last


def random_key(rng: np.random.Generator) -> int:
    """An integer for a counter-based generator; in a recomputation, the same one as before."""
    key = next(_replays[-1]) if _replays else int(rng.integers(2**63))
    for recorder in _recorders:
        recorder.append(key)
    return key


@contextlib.contextmanager
def pushed(stack: list, item: Any) -> Iterator[None]:
    stack.append(item)
    try:
        yield
    finally:
        stack.pop()


class Checkpoint:
    """The op behind `checkpoint`. Its inputs are `f`, a list for the keys, and the inputs of `f`.

    Parameters that `f` uses without being handed them get their gradients in the inner walk.
    """

    @staticmethod
    def forward(ctx, f, trigger, *arrays):
        ctx.f, ctx.keys = f, []
        ctx.save_for_backward(*arrays)
        with pushed(_recorders, ctx.keys), tape.no_grad():
            out = f(*(constant(a) if isinstance(a, np.ndarray) else a for a in arrays))
        if not isinstance(out, Tensor):
            raise TypeError(f"checkpoint needs f to give one Tensor, got {type(out).__name__}")
        return out.data

    @staticmethod
    def backward(ctx, grad):
        needs = ctx.needs_input_grad[2:]
        inputs = [
            constant(a, requires_grad=need) if isinstance(a, np.ndarray) else a
            for a, need in zip(ctx.saved_tensors, needs, strict=True)
        ]
        with pushed(_replays, iter(ctx.keys)), tape.enable_grad():
            out = ctx.f(*inputs)
            if out._made_by is not None:
                with tape.no_grad():
                    tape.walk(*out._made_by, grad)
        return None, np.zeros(()), *(
            (np.zeros_like(x.data) if x.grad is None else x.grad) if need else None
            for x, need in zip(inputs, needs, strict=True)
        )


def checkpoint(f: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """`f(*inputs)`, keeping only `inputs` for backward and running `f` again there.

    Saves memory for about one more forward of `f`. The gradients are the same bits. `f` gives one
    Tensor; parameters it uses from outside get their gradients too. Source: Chen et al.,
    arXiv 1604.06174.
    """
    if not tape.state.grad_enabled:
        return f(*inputs)
    # `f` may use parameters that are not among its inputs, so the tape must record in any case.
    trigger = Tensor(0.0, requires_grad=True)
    return apply(Checkpoint, f, trigger, *inputs)
