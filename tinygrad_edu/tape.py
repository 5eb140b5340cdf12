"""The tape: what each op leaves behind for backward, and the walk that uses it up.

Applying an op to tensors that want gradients makes a `Context`: the op, what it saved, and an edge
to whatever made each input. Contexts are numbered as they are made, so a larger number always
means "later": popping the largest number first visits every op after all of its consumers. There
is no recursion and no separate sort, and a context is emptied as soon as it has been visited.

An edge ends at another context, for an intermediate value, or at a leaf tensor, which adds the
gradient to its `.grad`. A context never points to its own output, so there are no cycles and
Python's reference counts free a graph by themselves.
"""

import contextlib
import heapq
import itertools
import threading
import time
from typing import Any

import numpy as np

from .kernels import copy, zeros
from .kernels.blocks import Rows
from .kernels.elementwise import add, sum_axes
from .locks import locks, read_only_view

_numbers = itertools.count()


class _State(threading.local):
    grad_enabled = True
    watching = False  # look for NaN and infinity after every op
    observer: Any = None  # told of every op: (class, phase, input shapes, start in ns)

    def __init__(self) -> None:
        self.scope: list[Any] = []  # the modules being called, outermost first
        self.before: list[bool] = []  # `grad_enabled` outside each open no_grad()
        self.readers: list[dict[int, Any]] = []  # what open checkpoints read, to be kept


state = _State()


class no_grad(contextlib.ContextDecorator):
    """Inside (as a context manager or decorator) ops leave nothing on the tape."""

    enabled = False

    def __enter__(self) -> None:
        state.before.append(state.grad_enabled)
        state.grad_enabled = self.enabled

    def __exit__(self, *exc: object) -> None:
        state.grad_enabled = state.before.pop()


class enable_grad(no_grad):
    """Undoes `no_grad` inside: for recomputation during backward."""

    enabled = True


class NonFiniteError(ArithmeticError):
    """An op made NaN or infinity. `op`, `phase` and `module` (the innermost called) say where."""

    def __init__(self, op: str, phase: str, module: Any, what: str) -> None:
        self.op, self.phase, self.module, self.what = op, phase, module, what
        where = "" if module is None else f" in {type(module).__name__}"
        super().__init__(f"{op}{where} made {what} in its {phase} pass")


@contextlib.contextmanager
def detect_nan():
    """Inside, the first op whose result holds NaN or infinity raises `NonFiniteError`."""
    before, state.watching = state.watching, True
    try:
        yield
    finally:
        state.watching = before


def check_finite(op: type, phase: str, module: Any, arrays: list[np.ndarray | None]) -> None:
    for array in arrays:
        if array is not None and array.dtype.kind == "f" and not np.isfinite(array).all():
            what = "NaN" if np.isnan(array).any() else "infinity"
            count = int((~np.isfinite(array)).sum())
            raise NonFiniteError(
                op.__name__, phase, module, f"{what} ({count} of {array.size} elements)"
            )


class Context:
    """One application of an op. Ops use the public part; the engine the rest."""

    # What every op has is in slots; an op's own attributes go to the dictionary, if it has any.
    __slots__ = (
        "__dict__", "__weakref__", "_by_rows", "_dtypes", "_edges", "_inputs", "_least", "_module",
        "_number", "_op", "_out_like", "_recording", "_saved", "input_shapes", "needs_input_grad",
    )  # fmt: skip

    def __init__(self, op: type, tensors: list, arrays: list) -> None:
        self._saved: list | None = []
        tracked = state.grad_enabled
        needs = [tracked and t is not None and t._requires_grad for t in tensors]
        self.needs_input_grad = tuple(needs)
        self.input_shapes = tuple([getattr(array, "shape", None) for array in arrays])
        self._op = op
        self._recording = recording = True in needs
        for reader in state.readers:
            reader.update((id(t), t) for t in tensors if t is not None and t._is_kept())
        if recording:
            self._number = next(_numbers)
            self._inputs = tensors, arrays
            self._dtypes = tuple([getattr(array, "dtype", None) for array in arrays])
            self._edges = tuple([
                (t._made_by or (t, 0)) if needed else None
                for t, needed in zip(tensors, needs, strict=True)
            ])  # fmt: skip
            self._by_rows = getattr(op, "by_rows", None)
            self._module = state.scope[-1] if state.scope else None
            self._least = len(tensors)  # gradients that backward gives at least
            while tensors[self._least - 1] is None:
                self._least -= 1

    def save_for_backward(self, *arrays: np.ndarray | None) -> None:
        """Keeps arrays for backward; None stays None. Nothing is kept if nobody wants gradients.

        An input that belongs to a leaf tensor is kept as that tensor, and read again in backward.
        """
        if not self._recording:
            return
        tensors, inputs = self._inputs
        for array in arrays:
            if array is None:
                self._saved.append(None)
                continue
            source = keep = version = number = None
            for place, given in enumerate(inputs):
                if given is array and tensors[place] is not None:
                    source = tensors[place]
                    version, number = source._version, source._version[0]
                    break
            if source is not None and source._made_by is None:
                # a leaf: the tensor is kept, and its array only to be unlocked
                array, keep = source._lockable(), (source, place == self._by_rows)
            elif isinstance(array, Rows):
                array, keep = array.array, (None, True)
            locks.lock(array)
            self._saved.append((keep, array, version, number))

    def save_leaves(self, tensors: list) -> None:
        """Keeps leaf tensors that are not inputs, to raise if they change before backward."""
        for tensor in tensors if self._recording else ():
            array = tensor._lockable()
            locks.lock(array)
            self._saved.append(((tensor, None), array, tensor._version, tensor._version[0]))

    @property
    def saved_tensors(self) -> tuple[np.ndarray | None, ...]:
        """What `save_for_backward` was given, as arrays."""
        if self._saved is None:
            raise RuntimeError(consumed_message(self._op))
        out = []
        for entry in self._saved:
            if entry is None:
                out.append(None)
                continue
            (leaf, by_rows), array, version, number = entry[0] or (None, False), *entry[1:]
            if version is not None and version[0] != number:
                shape = array.shape if leaf is None else leaf.shape
                raise RuntimeError(
                    f"{self._op.__name__} saved an array of shape {shape} for backward, and "
                    "that tensor's .data was replaced since (by assignment or an optimizer step): "
                    "call backward() before changing it, or run forward again"
                )
            if by_rows is None:
                out.append(None)  # kept only to see whether it has changed
            elif by_rows:
                out.append(Rows(array) if leaf is None else leaf._rows())
            else:
                out.append(array if leaf is None else leaf._read())
        return tuple(out)

    def row_gradient(self, i: int) -> "RowGradient | None":
        """Takes the gradient of input `i`, a matrix, by rows; None if nobody asked for it.

        `backward` hands rows over as they are finished, and returns `.rest()` for that input.
        """
        if not self.needs_input_grad[i]:
            return None
        sink = self._edges[i][0]._row_sink() if self._edges[i] else None
        return RowGradient(sink, self.input_shapes[i], self._dtypes[i], self._op, self._module)

    def _row_sink(self) -> None:
        return None

    def _finish(self, outputs: list) -> None:
        """After forward: forgets the inputs, and watches outputs that were saved."""
        self._out_like = tuple([(out._data.shape, out._data.dtype) for out in outputs])
        self._inputs = None
        for i, entry in enumerate(self._saved):
            if entry is not None and entry[2] is None:
                for out in outputs:
                    if entry[1] is out._data:
                        self._saved[i] = (None, entry[1], out._version, out._version[0])

    def _release(self) -> None:
        """After backward: forgets everything but what it was."""
        self._unlock()
        self._edges = self._inputs = self._module = None
        self.__dict__.clear()

    def _unlock(self) -> None:
        saved, self._saved = self._saved, None
        for entry in saved or ():
            if entry is not None:
                locks.unlock(entry[1])

    def __del__(self) -> None:
        if self._saved and locks is not None:  # it is None when the interpreter is closing
            self._unlock()

    def _backward(self, grads: list[np.ndarray | None]) -> list[list[np.ndarray] | None]:
        """Gradients of the outputs (None: nobody used it) -> the parts of each input's."""
        grads = [
            zeros(*like) if grad is None else grad
            for grad, like in zip(grads, self._out_like, strict=True)
        ]
        guarded = getattr(self._op, "is_guarded", False)
        if guarded:
            grads = [read_only_view(grad) for grad in grads]
        results = self._op.backward(self, *grads)
        results = list(results) if isinstance(results, (tuple, list)) else [results]
        if guarded:  # which may use its arrays again
            results = [copy(x) if isinstance(x, np.ndarray) else x for x in results]
        if len(results) != len(self._edges):
            self._match(results)
        shapes, dtypes = self.input_shapes, self._dtypes
        for i, needed in enumerate(self.needs_input_grad):
            given = results[i]
            if not needed:
                results[i] = None
            elif (
                type(given) is np.ndarray and given.shape == shapes[i] and given.dtype is dtypes[i]
            ):
                results[i] = (given,)
            elif given is None:
                raise RuntimeError(
                    f"{self._op.__name__}.backward gave None for input {i}, which needs a "
                    "gradient: return an array (of zeros, if the gradient is zero)"
                )
            else:
                parts = given if isinstance(given, Parts) else (given,)
                results[i] = [self._fit(part, i) for part in parts]
        return results

    def _match(self, results: list) -> None:
        """One result per input: the last ones may be missing or too many, but not of Tensors."""
        count = len(self._edges)
        if len(results) >= self._least:
            results += [None] * (count - len(results))
        if all(extra is None for extra in results[count:]):
            del results[count:]
        if len(results) != count:
            raise RuntimeError(
                f"{self._op.__name__}.backward gave {len(results)} gradients for {count} inputs: "
                "return one per argument of forward, None for those without a gradient"
            )

    def _fit(self, grad: Any, i: int) -> np.ndarray:
        """A gradient in the shape and dtype of input `i`."""
        shape, dtype = self.input_shapes[i], self._dtypes[i]
        if type(grad) is not np.ndarray:
            grad = np.asarray(grad)
        if grad.shape != shape:
            grad = unbroadcast(grad, shape, f"{self._op.__name__}.backward, input {i}")
        return grad if grad.dtype is dtype else grad.astype(dtype, copy=False)


class Parts(list):
    """The gradient of one input as contributions still to be added up, in walk order."""


class RowGradient:
    """Collects the gradient (V, C) of one input by rows.

    What belongs to a parameter goes to its storage at once, so that all of it need never exist;
    for any other tensor it is one array.
    """

    def __init__(self, sink: Any, shape: tuple, dtype: np.dtype, op: type, module: Any) -> None:
        self.sink, self.op, self.module = sink, op, module
        self.array = zeros(shape, dtype) if sink is None else None

    def add_rows(self, start: int, block: np.ndarray) -> None:
        """Adds finished rows, from `start` on. `block` may be kept."""
        self._check(block)
        if self.sink is not None:
            self.sink.add_grad_rows(start, block)
        else:
            self.array[start : start + len(block)] += block

    def add_picked(self, rows: np.ndarray, values: np.ndarray) -> None:
        """Adds `values` (n, C) to n different `rows`."""
        self._check(values)
        if self.sink is not None:
            self.sink.add_grad_picked(rows, values)
        else:
            self.array[rows] += values

    def _check(self, block: np.ndarray) -> None:
        if state.watching:
            check_finite(self.op, "backward", self.module, [block])

    def rest(self) -> "np.ndarray | Parts":
        """What is still to be added where the gradient belongs."""
        return Parts() if self.sink is not None else self.array


def consumed_message(op: type) -> str:
    return (
        f"graph already consumed: the part with {op.__name__} was walked by an earlier backward(), "
        "which frees it; run forward again, or add the losses and call backward() once"
    )


def unbroadcast(grad: np.ndarray, shape: tuple[int, ...], what: str = "gradient") -> np.ndarray:
    """Sums `grad` over the axes along which an input of `shape` was broadcast."""
    extra = grad.ndim - len(shape)
    if extra < 0 or any(n not in (1, m) for n, m in zip(shape, grad.shape[extra:], strict=True)):
        hint = " (a missing transpose?)" if grad.shape == shape[::-1] else ""
        raise RuntimeError(f"{what}: gradient of shape {grad.shape}, expected {shape}{hint}")
    axes = tuple(range(extra)) + tuple(
        extra + i for i, n in enumerate(shape) if n == 1 and grad.shape[extra + i] != 1
    )
    return sum_axes(grad, axes).reshape(shape)


def walk(root: Context, slot: int, grad: np.ndarray) -> None:
    """Runs backward from output `slot` of `root`, adding to `.grad` of the leaves it reaches."""
    if root._saved is None:
        raise RuntimeError(consumed_message(root._op))
    pending: dict[Context, list] = {root: [None] * len(root._out_like)}
    pending[root][slot] = grad
    owned: set[tuple[Context, int]] = set()  # sums made here, safe to add to in place
    heap = [(-root._number, root)]
    while heap:
        _, node = heapq.heappop(heap)
        grads = pending.pop(node)
        if owned:
            owned.difference_update([(node, i) for i in range(len(grads))])
        start = time.perf_counter_ns()
        results = node._backward(grads)
        if state.observer is not None:
            state.observer(node._op, "backward", node.input_shapes, start)
        if state.watching:
            check_finite(node._op, "backward", node._module, [a for r in results for a in r or ()])
        edges = node._edges
        node._release()
        del grads
        for i, edge in enumerate(edges):
            if edge is None:
                continue
            target, slot = edge
            parts, results[i] = results[i], None
            if not isinstance(target, Context):
                for part in parts:
                    target._accumulate(part)
                parts = part = None  # not one moment longer: it is on its way out
                continue
            if target._saved is None:
                raise RuntimeError(consumed_message(target._op))
            sums = pending.get(target)
            if sums is None:
                sums = pending[target] = [None] * len(target._out_like)
                heapq.heappush(heap, (-target._number, target))
            for part in parts:
                total = sums[slot]
                if total is None:
                    sums[slot] = part
                elif (target, slot) in owned:
                    add(total, part, out=total)
                else:
                    sums[slot] = add(total, part)
                    owned.add((target, slot))
            parts = part = total = sums = None
        del node, edges, results
