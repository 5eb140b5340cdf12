"""`Tensor`: a NumPy array that remembers how it was made.

Every operator here is one line: pick the op from the catalogue and `apply` it. `apply` unwraps the
arrays, runs the op's forward, and leaves a `Context` on the tape if somebody wants gradients.
"""

import math
import numbers
import operator
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from . import ops, tape
from .kernels import copy
from .kernels.blocks import Rows
from .locks import read_only_view
from .ops.reduce import as_axes

Axis = int | tuple[int, ...] | None


def apply(op: type, *inputs: Any, **parameters: Any) -> Any:
    """Runs `op.forward` on the arrays of `inputs` and gives its result as a Tensor (or a tuple).

    Inputs that are not Tensors reach the op as they are, and get no gradient.
    """
    by_rows, guarded = getattr(op, "by_rows", None), getattr(op, "is_guarded", False)
    tensors, arrays = [], []
    for i, x in enumerate(inputs):
        if isinstance(x, Tensor):
            tensors.append(x)
            array = x._rows() if i == by_rows else x._read()
            arrays.append(read_only_view(array) if guarded else array)
        else:
            tensors.append(None)
            arrays.append(x)
    ctx = tape.Context(op, tensors, arrays)
    start = time.perf_counter_ns()
    result = op.forward(ctx, *arrays, **parameters)
    state = tape.state
    if state.observer is not None:
        state.observer(op, "forward", ctx.input_shapes, start)
    many = isinstance(result, tuple)
    outputs = []
    for slot, array in enumerate(result if many else (result,)):
        out = constant(as_output(array, arrays, op), ctx._recording)
        if ctx._recording:
            if out._data.dtype.kind != "f":
                raise TypeError(
                    f"{op.__name__} gave {out._data.dtype} from inputs that need gradients: "
                    "only floating-point results have gradients; use .detach() on the inputs"
                )
            out._made_by = (ctx, slot)
        outputs.append(out)
    if ctx._recording:
        ctx._finish(outputs)
    if state.watching:
        module = state.scope[-1] if state.scope else None
        tape.check_finite(op, "forward", module, [out._data for out in outputs])
    return tuple(outputs) if many else outputs[0]


def constant(array: np.ndarray, requires_grad: bool = False) -> "Tensor":
    """A leaf Tensor that looks at `array` itself instead of a copy."""
    out = object.__new__(Tensor)
    out._init(array, requires_grad)
    return out


def as_output(array: Any, inputs: list, op: type) -> np.ndarray:
    """The array a new Tensor may own. What looks into another array is made read-only."""
    if not isinstance(array, np.ndarray):
        if not isinstance(array, (np.generic, numbers.Number)):
            raise TypeError(f"{op.__name__}.forward gave {type(array).__name__}, expected an array")
        array = np.asarray(array)
    for x in inputs:
        if x is array:
            array = array.view()
    if isinstance(array.base, np.ndarray) and array.flags.writeable:
        array.flags.writeable = False
    return array


def as_array(data: Any, dtype: Any) -> np.ndarray:
    """A fresh array of `as_numbers`."""
    return copy(as_numbers(data, dtype))


def as_numbers(data: Any, dtype: Any) -> np.ndarray:
    """Python floats become float32, ints int64; arrays keep their dtype, and are not copied.

    Kernels read memory as it is, so numbers are brought into the machine's byte order.
    """
    if isinstance(data, Tensor):
        data = data.data
    is_numpy = isinstance(data, (np.ndarray, np.generic))
    if isinstance(data, (list, tuple)) and holds_gradients(data):
        raise TypeError(
            "a list with Tensors that need gradients would lose them: join them with tg.stack"
        )
    try:
        array = np.asarray(data)
    except ValueError as error:
        raise ValueError(f"Tensor needs a rectangular array of numbers: {error}") from None
    if array.dtype.kind not in "fiub":
        raise TypeError(
            f"Tensor holds floats, ints or booleans, got dtype {array.dtype} "
            f"from {type(data).__name__}"
        )
    if dtype is None and not is_numpy:
        dtype = {"f": np.float32, "i": np.int64, "u": np.int64, "b": np.bool_}[array.dtype.kind]
    if not is_numpy and array.dtype.kind in "iu" and np.dtype(dtype).kind in "iu" and array.size:
        limits = np.iinfo(dtype)
        for x in (int(array.min()), int(array.max())):
            if not limits.min <= x <= limits.max:
                raise OverflowError(
                    f"{x} does not fit into {limits.dtype}, which holds {limits.min} to "
                    f"{limits.max}: ask for another dtype"
                )
    if dtype is not None and np.dtype(dtype).kind not in "fiub":
        raise TypeError(f"Tensor holds floats, ints or booleans, dtype={dtype} is none of them")
    dtype = np.dtype(array.dtype if dtype is None else dtype).newbyteorder("=")
    return array.astype(dtype, copy=False)


GRAPH_KEEPING = {  # what NumPy users type, and what keeps the gradients of Tensors
    **{name: f"tg.{name}" for name in ("concatenate", "stack", "where", "einsum")},
    **{name: f"the Tensor's .{name}" for name in ("reshape", "transpose", "clip", "split")},
    **{name: f"the Tensor's .{name}" for name in ("sum", "mean", "var", "max", "min")},
    **{"dot": "@", "vstack": "tg.concatenate", "hstack": "tg.concatenate"},
}


def holds_gradients(data: Any) -> bool:
    """Whether a Tensor that needs a gradient sits in a (nested) list or tuple."""
    if isinstance(data, (list, tuple)):
        return any(holds_gradients(item) for item in data)
    return isinstance(data, Tensor) and data.requires_grad


class Tensor:
    """An array with gradients.

    `data` is copied. `requires_grad` asks for `.grad` after `backward()`; only floating-point
    tensors may ask. NumPy arrays and Python numbers mix in on either side of every operator.
    """

    __array_ufunc__ = None  # lets `array + tensor` come to `tensor.__radd__`
    __slots__ = ("__weakref__", "_data", "_grad", "_made_by", "_requires_grad", "_version")

    def __init__(self, data: Any, requires_grad: bool = False, dtype: Any = None) -> None:
        self._init(as_array(data, dtype), False)
        self.requires_grad = requires_grad

    def _init(self, array: np.ndarray, requires_grad: bool) -> None:
        self._data = array
        self._grad: np.ndarray | None = None
        self._made_by: tuple[tape.Context, int] | None = None
        self._requires_grad = requires_grad
        self._version = [0]  # counts replacements of the array, so that stale graphs notice

    # What the tape needs of a tensor.

    def _read(self) -> np.ndarray:
        return self._data

    def _rows(self) -> Rows:
        return Rows(self._read())

    def _lockable(self) -> np.ndarray | None:
        return self._data

    def _is_kept(self) -> bool:
        """Does a checkpoint keep it that reads it? What is made inside is made again."""
        return self._requires_grad

    def _accumulate(self, grad: np.ndarray) -> None:
        """Adds one finished contribution to `.grad`, into memory that is this tensor's own."""
        if self._grad is None:
            self._grad = copy(grad).astype(self.dtype, copy=False)  # .data may have another by now
        else:
            self._grad += grad

    def _row_sink(self) -> Any:
        """Who takes a gradient row by row (see `tape.RowGradient`); None: it comes as one array."""
        return None

    # The array and its gradient.

    @property
    def data(self) -> np.ndarray:
        return self._data

    @data.setter
    def data(self, value: Any) -> None:
        array = as_numbers(value, None)
        if array.shape != self.shape:
            raise ValueError(f".data has shape {self.shape}, cannot become {array.shape}")
        if self._requires_grad and array.dtype.kind != "f":
            raise TypeError(f".data needs a floating-point dtype to have gradients: {array.dtype}")
        self._write(array)
        self._version[0] += 1

    def _write(self, array: np.ndarray) -> None:
        if self._grad is not None and self._grad.dtype != array.dtype:
            self._grad = self._grad.astype(array.dtype)
        self._data = copy(array)

    @property
    def grad(self) -> np.ndarray | None:
        return self._grad

    @grad.setter
    def grad(self, value: Any) -> None:
        if value is not None:
            value = as_array(value, self.dtype)
            if value.shape != self.shape:
                raise ValueError(f".grad needs the shape of .data, {self.shape}: {value.shape}")
        self._grad = value

    @property
    def requires_grad(self) -> bool:
        return self._requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if value and self.dtype.kind != "f":
            raise TypeError(
                f"only floating-point tensors have gradients, this one is {self.dtype}: "
                "pass dtype=np.float32"
            )
        if self._made_by is not None and not value:
            raise RuntimeError("requires_grad of a result follows its inputs: use .detach()")
        self._requires_grad = bool(value)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._data.shape

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def dtype(self) -> np.dtype:
        return self._data.dtype

    @property
    def T(self) -> "Tensor":
        return self.transpose()

    def numpy(self) -> np.ndarray:
        """A copy of the array."""
        return np.array(self.data)

    def item(self) -> float | int | bool:
        """The only element, as a Python number."""
        if self.size != 1:
            raise ValueError(f"item() needs one element, shape {self.shape} has {self.size}")
        return self.data.item()

    def tolist(self) -> Any:
        return self.data.tolist()

    def detach(self) -> "Tensor":
        """The same values outside the graph (a copy)."""
        return Tensor(self.data)

    def zero_grad(self) -> None:
        self._grad = None

    def backward(self, grad: Any = None) -> None:
        """Adds d self / d leaf, times `grad`, to the `.grad` of every leaf that asked for one.

        `grad` has this tensor's shape; it may be left out for a single element (then 1).
        """
        if not self._requires_grad:
            raise RuntimeError(
                "backward() on a tensor without a graph: none of its inputs has "
                "requires_grad=True, or it was made under no_grad()"
            )
        if not tape.state.grad_enabled:
            raise RuntimeError("backward() inside no_grad(): move it out of the block")
        if grad is None:
            if self.size != 1:
                raise RuntimeError(
                    f"backward() needs a scalar, this tensor has shape {self.shape}: "
                    "reduce it (for example .sum()) or pass grad= of that shape"
                )
            grad = np.ones(self.shape, self.dtype)
        else:
            grad = as_array(grad, self.dtype)
            if grad.shape != self.shape:
                raise ValueError(f"backward: grad has shape {grad.shape}, expected {self.shape}")
        if self._made_by is None:
            self._accumulate(grad)
            return
        with tape.no_grad():
            tape.walk(*self._made_by, grad)

    # Operators.

    def __add__(self, other: Any) -> "Tensor":
        return binary(ops.Add, self, other)

    def __radd__(self, other: Any) -> "Tensor":
        return binary(ops.Add, other, self)

    def __sub__(self, other: Any) -> "Tensor":
        return binary(ops.Subtract, self, other)

    def __rsub__(self, other: Any) -> "Tensor":
        return binary(ops.Subtract, other, self)

    def __mul__(self, other: Any) -> "Tensor":
        return binary(ops.Multiply, self, other)

    def __rmul__(self, other: Any) -> "Tensor":
        return binary(ops.Multiply, other, self)

    def __truediv__(self, other: Any) -> "Tensor":
        return binary(ops.Divide, self, other, floating=True)

    def __rtruediv__(self, other: Any) -> "Tensor":
        return binary(ops.Divide, other, self, floating=True)

    def __pow__(self, other: Any) -> "Tensor":
        return binary(ops.Power, self, other)

    def __rpow__(self, other: Any) -> "Tensor":
        return binary(ops.Power, other, self)

    def __matmul__(self, other: Any) -> "Tensor":
        return matmul(self, other)

    def __rmatmul__(self, other: Any) -> "Tensor":
        return matmul(other, self)

    def _in_place(self, other: Any) -> "Tensor":
        """`x -= y` is `x = x - y`, another tensor: an update of a leaf would be lost."""
        is_leaf = self._requires_grad and self._made_by is None
        if is_leaf and (self.grad is not None or not tape.state.grad_enabled):
            raise TypeError(
                "an operator like -= makes another tensor, and this one would stay as it is: "
                "assign to .data (w.data -= lr * w.grad), or write x = x - y for another tensor"
            )
        return NotImplemented  # Python goes on with __add__ and so on

    __iadd__ = __isub__ = __imul__ = __itruediv__ = _in_place

    def __neg__(self) -> "Tensor":
        return apply(ops.Negate, self)

    def __abs__(self) -> "Tensor":
        return self.abs()

    def __eq__(self, other: Any) -> "Tensor":  # type: ignore[override]
        return compare(np.equal, self, other)

    def __ne__(self, other: Any) -> "Tensor":  # type: ignore[override]
        return compare(np.not_equal, self, other)

    def __lt__(self, other: Any) -> "Tensor":
        return compare(np.less, self, other)

    def __le__(self, other: Any) -> "Tensor":
        return compare(np.less_equal, self, other)

    def __gt__(self, other: Any) -> "Tensor":
        return compare(np.greater, self, other)

    def __ge__(self, other: Any) -> "Tensor":
        return compare(np.greater_equal, self, other)

    __hash__ = object.__hash__

    def __getitem__(self, index: Any) -> "Tensor":
        return apply(ops.Index, self, index=plain_index(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        raise TypeError(
            "tensors are not written in place, as a graph may need the old values: use tg.where "
            "or tg.concatenate, or assign a whole array to .data"
        )

    def __len__(self) -> int:
        if self.ndim == 0:
            raise TypeError("len() of a 0-d tensor")
        return self.shape[0]

    def __iter__(self) -> "Iterator[Tensor]":
        return (self[i] for i in range(len(self)))

    def __bool__(self) -> bool:
        return bool(self.data)

    def __float__(self) -> float:
        return float(self.item())

    def __index__(self) -> int:
        if self.dtype.kind not in "iu":
            raise TypeError(f"only an integer can be an index, this tensor is {self.dtype}")
        return self.item()

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec and self.size == 1 else str(self)

    def __int__(self) -> int:
        return int(self.item())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("an array made from a Tensor is a copy: use .data to look inside")
        return np.array(self.data, dtype=dtype)

    def __array_function__(self, function: Any, types: Any, args: tuple, kwargs: dict) -> Any:
        """NumPy's functions see arrays: those that would end a graph unnoticed name the way out."""
        name = function.__name__
        instead = GRAPH_KEEPING.get(name)
        if instead and tape.state.grad_enabled and holds_gradients((args, *kwargs.values())):
            raise TypeError(f"np.{name} makes an array, without gradients: use {instead} instead")
        return function._implementation(*args, **kwargs)

    def __repr__(self) -> str:
        values = np.array2string(self.data, precision=4, threshold=100, prefix="Tensor(")
        dtype = "" if self.dtype in (np.float32, np.int64, np.bool_) else f", dtype={self.dtype}"
        grad = ", requires_grad=True" if self._requires_grad else ""
        return f"Tensor({values}{dtype}{grad})"

    def _repr_svg_(self) -> str | None:
        """In a notebook: the graph that made this tensor, or nothing if there is none."""
        from .graph import graph_svg

        return None if self._made_by is None else graph_svg(self)

    # Functions of one tensor. `axis` and `keepdims` are NumPy's.

    def exp(self) -> "Tensor":
        return unary(ops.Exp, self)

    def log(self) -> "Tensor":
        """The natural logarithm."""
        return unary(ops.Log, self)

    def tanh(self) -> "Tensor":
        return unary(ops.Tanh, self)

    def sigmoid(self) -> "Tensor":
        """1 / (1 + exp(-x))"""
        return unary(ops.Sigmoid, self)

    def relu(self) -> "Tensor":
        """max(x, 0); the gradient at 0 is 0."""
        return apply(ops.Relu, cast(self, np.int64) if self.dtype == np.bool_ else self)

    def gelu(self, approximate: str = "none") -> "Tensor":
        """x * Phi(x), exact ("none") or in GPT-2's form ("tanh")."""
        if approximate not in ("none", "tanh"):
            raise ValueError(f'gelu: approximate is "none" or "tanh", got {approximate!r}')
        return unary(ops.Gelu, self, approximate=approximate)

    def sqrt(self) -> "Tensor":
        return unary(ops.Sqrt, self)

    def abs(self) -> "Tensor":
        """The gradient at 0 is 0."""
        return apply(ops.Abs, self)

    def clip(self, min: float | None = None, max: float | None = None) -> "Tensor":
        """Limits values to [min, max]; gradient flows where nothing was cut off."""
        bounds = [bound for bound in (min, max) if bound is not None]
        if not bounds:
            raise ValueError("clip needs min, max or both")
        if any(isinstance(bound, Tensor) for bound in bounds):
            raise TypeError(
                "clip takes numbers or arrays as bounds, got a Tensor: use tg.maximum and "
                "tg.minimum, which have gradients for both"
            )
        x = cast(self, np.int64) if self.dtype == np.bool_ else self
        for bound in bounds if x.dtype.kind != "f" else ():  # the dtype that arithmetic would give
            x, limit = operands(x, bound)
            x = cast(x, np.result_type(x.dtype, limit.dtype))
        return apply(ops.Clip, x, low=min, high=max)

    def sum(self, axis: Axis = None, keepdims: bool = False) -> "Tensor":
        """Booleans and short ints are added up as int64."""
        keeps = self.dtype.kind == "f" or self.dtype == np.uint64
        x = self if keeps else cast(self, np.int64)
        return apply(ops.Sum, x, axis=axis, keepdims=keepdims)

    def mean(self, axis: Axis = None, keepdims: bool = False) -> "Tensor":
        return unary(ops.Mean, self, axis=axis, keepdims=keepdims)

    def var(self, axis: Axis = None, keepdims: bool = False, ddof: int = 0) -> "Tensor":
        """The mean squared deviation, divided by (count - ddof) as in NumPy."""
        return unary(ops.Variance, self, axis=axis, keepdims=keepdims, ddof=ddof)

    def max(self, axis: Axis = None, keepdims: bool = False) -> "Tensor":
        """The largest values; tied elements share the gradient equally."""
        return apply(ops.Max, self, axis=axis, keepdims=keepdims)

    def min(self, axis: Axis = None, keepdims: bool = False) -> "Tensor":
        """The smallest values; tied elements share the gradient equally."""
        return apply(ops.Min, self, axis=axis, keepdims=keepdims)

    def argmax(self, axis: int | None = None, keepdims: bool = False) -> "Tensor":
        """The index of the first largest value, int64, without gradient."""
        return Tensor(np.argmax(self._read(), axis=axis, keepdims=keepdims))

    def softmax(self, axis: int = -1) -> "Tensor":
        """exp(x) / sum(exp(x)) along `axis`."""
        return unary(ops.Softmax, self, axis=one_axis(axis, self.ndim, "softmax"))

    def log_softmax(self, axis: int = -1) -> "Tensor":
        """x - log(sum(exp(x))) along `axis`."""
        return unary(ops.LogSoftmax, self, axis=one_axis(axis, self.ndim, "log_softmax"))

    # Functions that move axes.

    def reshape(self, *shape: Any) -> "Tensor":
        """The same elements in another shape; one size may be -1."""
        wanted = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], Sequence) else shape
        return apply(ops.Reshape, self, shape=whole(wanted, "reshape"))

    def permute(self, *axes: Any) -> "Tensor":
        """Axes in a new order, all of them named: permute(0, 2, 1)."""
        order = tuple(axes[0]) if len(axes) == 1 and isinstance(axes[0], Sequence) else axes
        order = as_axes(order, self.ndim)
        if len(order) != self.ndim:
            raise ValueError(f"permute needs all {self.ndim} axes of shape {self.shape}: {axes}")
        return apply(ops.Permute, self, axes=order)

    def transpose(self, *axes: int) -> "Tensor":
        """Swaps the two axes given; without arguments reverses all, as `.T`."""
        if len(axes) == 1 and isinstance(axes[0], Sequence):
            axes = tuple(axes[0])
        if not axes:
            return self.permute(*range(self.ndim)[::-1])
        if len(axes) != 2:
            return self.permute(*axes)
        i, j = (one_axis(axis, self.ndim, "transpose") for axis in axes)
        order = list(range(self.ndim))
        order[i], order[j] = order[j], order[i]
        return self.permute(*order)

    def squeeze(self, axis: Axis = None) -> "Tensor":
        """Drops axes of size 1: all of them, or those given."""
        axes = as_axes(axis, self.ndim)
        if axis is None:
            axes = tuple(i for i in axes if self.shape[i] == 1)
        wrong = [i for i in axes if self.shape[i] != 1]
        if wrong:
            raise ValueError(f"squeeze: axis {wrong[0]} of shape {self.shape} is not of size 1")
        return self.reshape(tuple(n for i, n in enumerate(self.shape) if i not in axes))

    def unsqueeze(self, axis: int) -> "Tensor":
        """Puts an axis of size 1 at `axis`."""
        at = one_axis(axis, self.ndim + 1, "unsqueeze")
        return self.reshape((*self.shape[:at], 1, *self.shape[at:]))

    def split(self, size: int | Sequence[int], axis: int = 0) -> "tuple[Tensor, ...]":
        """Parts of `size` along `axis` (the last may be shorter), or of the sizes listed."""
        axis = one_axis(axis, self.ndim, "split")
        length = self.shape[axis]
        if isinstance(size, numbers.Integral):
            if size < 1:
                raise ValueError(f"split needs parts of at least 1 element, got {size}")
            sizes = [min(size, length - start) for start in range(0, length, size)] or [0]
        else:
            sizes = list(whole(size, "split"))
        if sum(sizes) != length or min(sizes, default=0) < 0:
            raise ValueError(f"split: sizes {sizes} do not add up to {length}, axis {axis}")
        return apply(ops.Split, self, sizes=sizes, axis=axis)


def one_axis(axis: int, ndim: int, name: str) -> int:
    if not isinstance(axis, numbers.Integral):
        raise TypeError(f"{name} works along one axis, got axis={axis!r}: give one whole number")
    return as_axes(axis, ndim)[0]


def whole(sizes: Any, name: str) -> tuple[int, ...]:
    """Sizes as ints; what is no integer is refused, not rounded."""
    try:
        return tuple(operator.index(n) for n in sizes)
    except TypeError:
        raise TypeError(f"{name} needs whole numbers as sizes, got {sizes!r}") from None


def plain_index(index: Any) -> Any:
    """An index as NumPy would write it, with its arrays copied: backward needs it unchanged."""
    if isinstance(index, tuple):
        return tuple(plain_index(part) for part in index)
    if isinstance(index, list):
        index = np.array(index) if index else np.array(index, np.int64)
    return np.array(index) if isinstance(index, (Tensor, np.ndarray)) else index


def cast(x: Tensor, dtype: Any) -> Tensor:
    return x if x.dtype == dtype else apply(ops.Cast, x, dtype=np.dtype(dtype))


def floating(x: Tensor) -> Tensor:
    """Ints and booleans as float32; floats as they are."""
    return x if x.dtype.kind == "f" else cast(x, np.float32)


def unary(op: type, x: Tensor, **parameters: Any) -> Tensor:
    return apply(op, floating(x), **parameters)


def operands(a: Any, b: Any) -> tuple[Tensor, Tensor]:
    """Both as Tensors that NumPy would combine in the intended dtype.

    A Python number takes the other's dtype (a float beside ints: float32); ints beside floats
    take the float's dtype, so that an index never turns float32 into float64.
    """
    beside = a
    if not isinstance(a, Tensor):
        a = wrap(a, b)
    if not isinstance(b, Tensor):
        b = wrap(b, beside)
    floating = a.dtype.kind == "f"
    if floating != (b.dtype.kind == "f"):
        return (a, cast(b, a.dtype)) if floating else (cast(a, b.dtype), b)
    return a, b


def wrap(x: Any, beside: Any) -> Tensor:
    """A constant beside a Tensor (or beside something that will be wrapped itself)."""
    dtype = None
    if isinstance(x, numbers.Number) and not isinstance(x, np.generic):
        dtype = getattr(beside, "dtype", None)
        if dtype is not None and np.dtype(dtype).kind != "f":
            dtype = np.float32 if isinstance(x, float) else dtype if dtype != np.bool_ else None
    return Tensor(x, dtype=dtype)


def binary(op: type, a: Any, b: Any, floating: bool = False) -> Tensor:
    try:
        a, b = operands(a, b)
    except TypeError:
        return NotImplemented
    if floating and a.dtype.kind != "f":
        a, b = cast(a, np.float32), cast(b, np.float32)
    return apply(op, a, b)


def compare(function: np.ufunc, a: Tensor, b: Any) -> Tensor:
    """A boolean Tensor, without gradient."""
    try:
        if isinstance(b, int) and a.dtype.kind in "iu":
            b = Tensor(b)  # int64: it may lie beyond what the other's dtype holds
        a, b = operands(a, b)
    except TypeError:
        return NotImplemented
    return Tensor(function(a._read(), b._read()))


def matmul(a: Any, b: Any) -> Tensor:
    a, b = operands(a, b)
    if a.ndim == 0 or b.ndim == 0:
        raise ValueError(f"matmul needs at least 1-D operands, got {a.shape} @ {b.shape}: use *")
    inner = a.shape[-1], b.shape[-2 if b.ndim > 1 else 0]
    if inner[0] != inner[1]:
        raise ValueError(
            f"matmul: {a.shape} @ {b.shape}: the inner sizes {inner[0]} and {inner[1]} differ"
        )
    return apply(ops.Matmul, a, b)
