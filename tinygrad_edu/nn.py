"""Layers. A `Module` is any object whose attributes hold Parameters, Modules, or lists of them.

Parameters are found by walking attributes, lists, tuples and dicts in the order they were set; the
path is the name ("transformer.h.0.attn.c_attn.weight"). One parameter reached by two paths (tied
weights) is one parameter, under its first name. Layers that draw numbers take a `rng`.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from . import functional as F
from . import tape
from .arguments import as_generator, as_probability, as_shape, check_padding_idx
from .kernels.blocks import row_units
from .storage import WEIGHT, Storage, new_storage
from .tensor import Tensor, as_numbers

Init = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


class Parameter(Tensor):
    """A leaf Tensor that wants gradients and keeps its numbers in a `storage`."""

    __slots__ = ("storage",)

    def __init__(self, data: Any, requires_grad: bool = True, dtype: Any = None) -> None:
        array = as_numbers(data, dtype)
        self._born(array.shape, array.dtype, [array], requires_grad)

    @classmethod
    def drawn(cls, init: Init, rng: np.random.Generator, shape: tuple[int, ...]) -> "Parameter":
        """A float32 parameter of `shape` that `init` draws: all at once, or, where it may and the
        parameter is large, some rows at a time, so that it need never exist as one array."""
        whole = not getattr(init, "by_rows", False) or len(shape) != 2
        units = [(0, shape[0])] if whole else row_units(shape[0], 4 * shape[1])
        pieces = (init(rng, (stop - start, *shape[1:])) for start, stop in units)
        if whole:
            return cls(next(pieces))
        self = object.__new__(cls)
        self._born(shape, np.dtype(np.float32), pieces, True)
        return self

    def _born(
        self, shape: tuple[int, ...], dtype: np.dtype, pieces: Any, requires_grad: bool
    ) -> None:
        self.storage = new_storage(shape, dtype)
        self.storage.fill(WEIGHT, pieces)
        self._init(None, False)
        self.requires_grad = requires_grad

    def _read(self) -> np.ndarray:
        return self.storage.read()

    def _rows(self) -> Any:
        return self.storage.by_rows()

    def _lockable(self) -> np.ndarray | None:
        return self.storage.lockable()

    def _is_kept(self) -> bool:
        return True  # also if it is frozen

    def _row_sink(self) -> Storage:
        return self.storage

    def _accumulate(self, grad: np.ndarray) -> None:
        self.storage.add_grad(grad)

    @property
    def data(self) -> np.ndarray:
        return self.storage.look()

    @data.setter
    def data(self, value: Any) -> None:
        Tensor.data.fset(self, value)

    def _write(self, array: np.ndarray) -> None:
        self.storage.fill(WEIGHT, [array], array.dtype)

    def assign(self, chunks: Iterable[np.ndarray]) -> None:
        """Like assigning to `.data`, from flat pieces of any size in order, in this dtype."""
        try:
            self.storage.fill(WEIGHT, chunks)
        finally:  # what came before an error may have been written
            self._version[0] += 1

    def zero_grad(self) -> None:
        self.storage.drop_grad()

    @property
    def grad(self) -> np.ndarray | None:
        return self.storage.grad

    @grad.setter
    def grad(self, value: Any) -> None:
        Tensor.grad.fset(self, value)
        self.storage.grad, self._grad = self._grad, None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.storage.shape

    @property
    def dtype(self) -> np.dtype:
        return self.storage.dtype


class Module:
    """Holds parameters and submodules as plain attributes; subclasses write `forward`."""

    training = True

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} needs a forward()")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        tape.state.scope.append(self)
        try:
            return self.forward(*args, **kwargs)
        finally:
            tape.state.scope.pop()

    def named_modules(self) -> list[tuple[str, "Module"]]:
        """This module (named "") and all below it, each once."""
        seen: dict[int, tuple[str, Module]] = {}
        for name, x in walk(self, ""):
            if isinstance(x, Module):
                seen.setdefault(id(x), (name, x))
        return list(seen.values())

    def named_parameters(self) -> list[tuple[str, Parameter]]:
        """Every parameter once, under the first path that reaches it."""
        seen: dict[int, tuple[str, Parameter]] = {}
        for name, x in walk(self, ""):
            if isinstance(x, Parameter):
                seen.setdefault(id(x), (name, x))
        named: dict[str, Parameter] = {}
        for name, parameter in seen.values():
            if named.setdefault(name, parameter) is not parameter:
                raise ValueError(
                    f"two parameters have the name {name!r}, of shapes {named[name].shape} and "
                    f"{parameter.shape}: rename a dict key or an attribute on the way to one"
                )
        for name, parameter in seen.values():
            parameter.storage.name = parameter.storage.name or name
        return list(seen.values())

    def parameters(self) -> list[Parameter]:
        return [parameter for _, parameter in self.named_parameters()]

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of all parameters' arrays by name; tied ones appear once."""
        return {name: parameter.numpy() for name, parameter in self.named_parameters()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Sets every parameter; where names, shapes or kinds differ, changes nothing and raises."""
        own = dict(self.named_parameters())
        problems = [f"missing {name}" for name in own if name not in state]
        problems += [f"unexpected {name}" for name in state if name not in own]
        problems += [
            f"{name} is {np.shape(state[name])}, expected {parameter.shape}"
            for name, parameter in own.items()
            if name in state and np.shape(state[name]) != parameter.shape
        ]
        problems += [
            f"{name} holds {np.asarray(state[name]).dtype}, not numbers"
            for name in own
            if name in state and np.asarray(state[name]).dtype.kind not in "fiub"
        ]
        if problems:
            raise ValueError(f"load_state_dict: {'; '.join(problems)}")
        for name, parameter in own.items():
            parameter.data = as_numbers(state[name], parameter.dtype)

    def train(self, mode: bool = True) -> "Module":
        """Switches dropout on (or, with False, off) here and below."""
        for _, module in self.named_modules():
            module.training = mode
        return self

    def eval(self) -> "Module":
        """Switches dropout off."""
        return self.train(False)

    def zero_grad(self) -> None:
        for parameter in self.parameters():
            parameter.zero_grad()


def walk(value: Any, path: str, above: tuple[int, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every Module and Parameter in `value` with its path, depth first; cycles are cut."""
    if isinstance(value, (Module, Parameter)):
        yield path, value
    if id(value) in above:
        return
    if isinstance(value, Module):
        items = vars(value).items()
    elif isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    else:
        return
    for key, item in items:
        yield from walk(item, f"{path}.{key}" if path else str(key), (*above, id(value)))


class ModuleList(Module):
    """A list of modules; a plain Python list does as well."""

    def __init__(self, modules: Any = ()) -> None:
        for module in modules:
            self.append(module)

    def append(self, module: Module) -> "ModuleList":
        setattr(self, str(len(self)), module)  # the index is the name
        return self

    def __iter__(self) -> Iterator[Module]:
        return (vars(self)[str(i)] for i in range(len(self)))

    def __len__(self) -> int:
        return sum(key.isdigit() for key in vars(self))

    def __getitem__(self, index: int) -> Module:
        return list(self)[index]


class Sequential(ModuleList):
    """Modules (or functions) called one after the other."""

    def __init__(self, *modules: Any) -> None:
        super().__init__(modules)

    def forward(self, x: Any) -> Any:
        for module in self:
            x = module(x)
        return x


def uniform(bound: float) -> Init:
    def init(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return rng.uniform(-bound, bound, shape).astype(np.float32)

    init.by_rows = True  # drawing some rows after others gives the same numbers
    return init


def normal(std: float) -> Init:
    def init(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        values = rng.standard_normal(shape, dtype=np.float32)
        values *= np.float32(std)
        return values

    init.by_rows = True
    return init


class Linear(Module):
    """x (..., in_features) -> (..., out_features); weight is (out_features, in_features).

    `init` draws the weight; without it weight and bias are uniform in +-1/sqrt(in_features), as
    PyTorch's. With it the bias starts at zero.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        rng: np.random.Generator | None = None,
        init: Init | None = None,
    ) -> None:
        rng, default = as_generator(rng, "Linear"), uniform(1 / math.sqrt(max(1, in_features)))
        self.weight = Parameter.drawn(init or default, rng, (out_features, in_features))
        zeros = np.zeros(out_features, np.float32)
        start = zeros if init else default(rng, (out_features,)) if bias else None
        self.bias = Parameter(start) if bias else None

    def forward(self, x: Any, residual: Any = None) -> Tensor:
        """`residual` (..., out_features) is added, if given."""
        return F.linear(x, self.weight, self.bias, residual=residual)


class Embedding(Module):
    """ids (...) -> (..., embedding_dim): rows of a table, normal(0, 1) unless `init` draws them.

    The row `padding_idx` starts at zero and receives no gradient.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        rng: np.random.Generator | None = None,
        init: Init | None = None,
    ) -> None:
        rng = as_generator(rng, "Embedding")
        check_padding_idx("Embedding", padding_idx, num_embeddings)
        self.weight = Parameter.drawn(init or normal(1.0), rng, (num_embeddings, embedding_dim))
        self.padding_idx = padding_idx
        if padding_idx is not None:
            rows = self.weight.numpy()
            rows[padding_idx] = 0
            self.weight.data = rows

    def forward(self, ids: Any) -> Tensor:
        return F.embedding(ids, self.weight, self.padding_idx)


class LayerNorm(Module):
    """Layer norm over the last axes, of `normalized_shape`, with a learned scale and shift."""

    def __init__(self, normalized_shape: Any, eps: float = 1e-5, *, bias: bool = True) -> None:
        shape = as_shape(normalized_shape, "LayerNorm")
        self.normalized_shape, self.eps = shape, eps
        self.weight = Parameter(np.ones(shape, np.float32))
        self.bias = Parameter(np.zeros(shape, np.float32)) if bias else None

    def forward(self, x: Any) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)


class RMSNorm(Module):
    """RMS norm over the last axes, of `normalized_shape`, with a learned scale."""

    def __init__(self, normalized_shape: Any, eps: float | None = None) -> None:
        shape = as_shape(normalized_shape, "RMSNorm")
        self.normalized_shape, self.eps = shape, eps
        self.weight = Parameter(np.ones(shape, np.float32))

    def forward(self, x: Any) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight, self.eps)


class Dropout(Module):
    """Dropout while training; see `functional.dropout`."""

    def __init__(self, p: float = 0.5, rng: np.random.Generator | None = None) -> None:
        self.p, self.rng = as_probability(p, "Dropout: p"), as_generator(rng, "Dropout")

    def forward(self, x: Any) -> Tensor:
        return F.dropout(x, self.p, self.training, self.rng)
