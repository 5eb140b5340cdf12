"""Recompute instead of store: `checkpoint(f, *inputs)` keeps only the inputs of a piece of model.

Forward runs `f` without a tape. Backward runs it once more, with one, and walks that. Memory falls
from every intermediate value to the inputs; the price is one more forward. The second run has to
be the first one again, bit for bit, so random numbers must not be drawn anew: dropout draws one
integer key per call, through `random_key`, and a recomputation replays the keys of the first run.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from . import tape
from .kernels import copy
from .tensor import Tensor, apply, constant


class _State(threading.local):
    def __init__(self) -> None:
        self.recorders: list[list[int]] = []  # every checkpoint now in its first run
        self.replays: list[Iterator[int]] = []  # keys of recomputations, innermost last


state = _State()


def random_key(rng: np.random.Generator) -> int:
    """An integer for a counter-based generator; in a recomputation, the same one as before."""
    key = next(state.replays[-1], None) if state.replays else int(rng.integers(2**63))
    if key is None:
        raise RuntimeError(
            "checkpoint: f drew more random numbers when it was run again: it must do the same "
            "both times (was the model switched between train() and eval()?)"
        )
    for recorder in state.recorders:
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
    """The op behind `checkpoint`: a trigger, `f`, which inputs are Tensors, and the inputs.

    Parameters that `f` uses without being handed them get their gradients in the inner walk, so
    they are saved as well, frozen ones too: if one changes before backward, that raises. What
    reaches an input is handed on part by part, for the outer walk to add up in the order it has
    without checkpoints.
    """

    @staticmethod
    def forward(ctx, trigger, f, are_tensors, *arrays):
        ctx.f, ctx.are_tensors, ctx.keys = f, are_tensors, []
        inputs = [constant(a) if is_ else a for a, is_ in zip(arrays, are_tensors, strict=True)]
        outside: dict[int, Tensor] = {}
        with (
            pushed(state.recorders, ctx.keys),
            pushed(tape.state.readers, outside),
            tape.no_grad(),
        ):
            out = f(*inputs)
        if not isinstance(out, Tensor):
            raise TypeError(f"checkpoint needs f to give one Tensor, got {type(out).__name__}")
        if out.requires_grad:  # f gave back a tensor of the world outside as it is
            outside[id(out)] = out
        for tensor in outside.values():
            if tensor._made_by is not None:
                raise ValueError(
                    f"checkpoint: f uses a result of shape {tensor.shape} from outside, whose "
                    "graph it would use up in backward: pass it to checkpoint as an input"
                )
        ctx.save_for_backward(*arrays)
        ctx.save_leaves(list(outside.values()))
        ctx.reads = any(tensor.requires_grad for tensor in outside.values())
        return copy(out.data) if out.requires_grad else out.data

    @staticmethod
    def backward(ctx, grad):
        needs = ctx.needs_input_grad[3:]
        arrays = ctx.saved_tensors[: len(needs)]
        inputs = [
            Collector(a, need) if is_ else a
            for a, need, is_ in zip(arrays, needs, ctx.are_tensors, strict=True)
        ]
        keys = iter(ctx.keys)
        with pushed(state.replays, keys), tape.enable_grad():
            out = ctx.f(*inputs)
        if next(keys, None) is not None:
            raise RuntimeError(
                "checkpoint: f drew fewer random numbers when it was run again: it must do the "
                "same both times (was the model switched between train() and eval()?)"
            )
        if out.shape != grad.shape:
            raise RuntimeError(
                f"checkpoint: f gave shape {grad.shape}, and {out.shape} when it was run again: it "
                "must do the same both times"
            )
        if out._made_by is not None:
            tape.walk(*out._made_by, grad)
        elif out.requires_grad:
            out._accumulate(grad)
        grads = [
            (x.parts or np.zeros_like(x.data)) if need else None
            for x, need in zip(inputs, needs, strict=True)
        ]
        return np.zeros(()), None, None, *grads


class Collector(Tensor):
    """An input of a recomputation: keeps its gradient as parts."""

    __slots__ = ("parts",)

    def __init__(self, array: np.ndarray, requires_grad: bool) -> None:
        self._init(array, requires_grad)
        self.parts = tape.Parts()

    def _accumulate(self, grad: np.ndarray) -> None:
        self.parts.append(grad)


def checkpoint(f: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """`f(*inputs)`, keeping only `inputs` for backward and running `f` again there.

    Saves memory for about one more forward of `f`. The gradients are the same bits. `f` gives one
    Tensor; parameters it uses from outside get their gradients too. Source: Chen et al.,
    arXiv 1604.06174.
    """
    if not tape.state.grad_enabled:
        return f(*inputs)
    # `f` may use parameters that are not among its inputs, so the tape must record in any case.
    trigger = constant(np.zeros((), np.float32), True)
    out = apply(Checkpoint, trigger, f, [isinstance(x, Tensor) for x in inputs], *inputs)
    ctx, _ = out._made_by
    if not ctx.reads and not any(ctx.needs_input_grad[1:]):  # nobody wants a gradient
        out._made_by, out._requires_grad = None, False
    return out
