"""Optimizers, gradient clipping and the learning-rate schedule.

An optimizer decides who is updated with which numbers; the arithmetic on arrays is a pure
function in `kernels/update.py`, and runs wherever the parameter's storage keeps its arrays. All
state is allocated at construction: a run that fits at its first step fits at its last.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from .kernels import update
from .nn import Parameter
from .storage import ArrayStorage, Storage


def positive(name: str, value: float) -> float:
    """`value` as a float that is finite and not negative."""
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{name} must be a finite number at least 0, got {value}")
    return float(value)


def whole(name: str, value: float) -> int:
    """`value` as an int; what is negative or has a fraction is refused."""
    if positive(name, value) % 1:
        raise ValueError(f"{name} must be a whole number, got {value}")
    return int(value)


def fraction(name: str, value: float) -> float:
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be at least 0 and below 1, got {value}")
    return float(value)


def parameters_of(params: Iterable[Parameter], what: str) -> list[Parameter]:
    """A list, of one parameter or of some; `what` updates or scales them, for the error."""
    params = [params] if isinstance(params, Parameter) else list(params)
    for parameter in params:
        if not isinstance(parameter, Parameter):
            raise TypeError(f"{what} nn.Parameters, got {type(parameter).__name__}")
    return params


class Optimizer:
    """What all optimizers share: parameters in order, their state, saving and loading.

    State has the parameter's dtype; that of float16 parameters is float32.
    """

    state_names: tuple[str, ...] = ()

    def __init__(self, params: Iterable[Parameter], lr: float) -> None:
        self.lr = positive("lr", lr)
        params = parameters_of(params, "an optimizer updates")
        if not params:
            raise ValueError("an optimizer needs at least one parameter, got none")
        self.params: list[Parameter] = list({p.storage: p for p in params}.values())
        self._mark = object()  # on every parameter whose state is ours
        for parameter in self.params:
            parameter.storage.make_state(self.state_names)
            parameter.storage.state_of = self._mark
        self.steps = 0

    def _check_state(self) -> None:
        for parameter in self.params:
            if parameter.storage.state_of is not self._mark:
                raise RuntimeError(
                    f"{type(self).__name__}: another optimizer was made for a parameter of shape "
                    f"{parameter.shape} and keeps its own state there: use that one from now on, "
                    "or give each optimizer parameters of its own"
                )

    def zero_grad(self) -> None:
        for parameter in self.params:
            parameter.zero_grad()

    def step(self) -> None:
        """Updates every parameter that has a gradient.

        Arrays in memory are updated together, all that decay and all that do not; what a parameter
        keeps elsewhere is updated by itself, in parameter order.
        """
        self._check_state()
        self.steps += 1
        together: dict[bool, list[Storage]] = {True: [], False: []}
        for parameter in self.params:
            storage = parameter.storage
            if not storage.has_grad:
                continue
            parameter._version[0] += 1
            decays = len(storage.shape) >= 2
            if type(storage) is ArrayStorage:
                together[decays].append(storage)
            else:
                function, numbers = self.rule(decays)
                storage.update(function, self.state_names, **numbers)
        for decays, storages in together.items():
            function, numbers = self.rule(decays)
            if storages:
                ArrayStorage.update_all(storages, function, self.state_names, **numbers)

    def rule(self, decays: bool) -> tuple[Callable[..., None], dict[str, Any]]:
        """A function as `Storage.update` takes it, and its numbers; `decays`: with weight decay."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """{"steps", "lr", and per state name a list of array copies in parameter order}"""
        self._check_state()
        arrays = {
            name: [p.storage.state_array(name) for p in self.params] for name in self.state_names
        }
        return {"steps": self.steps, "lr": self.lr, **arrays}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what `state_dict` gave; raises, changing nothing, if it does not fit."""
        names = {"steps", "lr", *self.state_names}
        if set(state) != names:
            raise ValueError(f"optimizer state holds {sorted(state)}, expected {sorted(names)}")
        for name in self.state_names:
            shapes = [np.shape(array) for array in state[name]]
            expected = [p.shape for p in self.params]
            if shapes != expected:
                raise ValueError(f"optimizer state {name!r} has shapes {shapes}, not {expected}")
            for array in map(np.asarray, state[name]):
                if array.dtype.kind not in "fiub":
                    raise ValueError(f"optimizer state {name!r} holds {array.dtype}, not numbers")
        self.steps, self.lr = whole("steps", state["steps"]), positive("lr", state["lr"])
        for name in self.state_names:
            for parameter, array in zip(self.params, state[name], strict=True):
                parameter.storage.fill(name, [np.asarray(array)])


class SGD(Optimizer):
    """w -= lr * u, u = momentum * u + grad + weight_decay * w (PyTorch's order).

    Only matrices decay: biases and norms do not.
    """

    def __init__(
        self,
        params: Iterable[Parameter],
        lr: float = 1e-3,
        momentum: float = 0.0,
        *,  # PyTorch has others here
        weight_decay: float = 0.0,
    ) -> None:
        self.momentum = fraction("momentum", momentum)
        self.weight_decay = positive("weight_decay", weight_decay)
        self.state_names = ("velocity",) if momentum else ()
        super().__init__(params, lr)

    def rule(self, decays: bool) -> tuple[Callable[..., None], dict[str, Any]]:
        return update.sgd, dict(
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay if decays else 0.0,
        )


class AdamW(Optimizer):
    """Adam with decoupled weight decay, on matrices only: biases and norms do not decay.

    The bias correction counts the calls of `step`; PyTorch's counts, for each parameter by itself,
    those in which it had a gradient. Source: Loshchilov and Hutter, arXiv 1711.05101.
    """

    state_names = ("m", "v")

    def __init__(
        self,
        params: Iterable[Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        self.betas = fraction("betas[0]", betas[0]), fraction("betas[1]", betas[1])
        self.eps = positive("eps", eps)
        self.weight_decay = positive("weight_decay", weight_decay)
        super().__init__(params, lr)

    def rule(self, decays: bool) -> tuple[Callable[..., None], dict[str, Any]]:
        return update.adamw, dict(
            lr=self.lr,
            beta1=self.betas[0],
            beta2=self.betas[1],
            eps=self.eps,
            weight_decay=self.weight_decay if decays else 0.0,
            step=self.steps,
        )


def clip_grad_norm_(params: Iterable[Parameter], max_norm: float) -> float:
    """Scales all gradients so that their global 2-norm is at most `max_norm`; gives the old norm.

    Squares are added up in parameter order. A norm that is NaN or infinite changes nothing.
    """
    params = parameters_of(params, "clipping scales")
    if not max_norm >= 0:  # infinity is allowed: it measures and clips nothing
        raise ValueError(f"max_norm must be at least 0, got {max_norm}")
    storages = list(dict.fromkeys(p.storage for p in params if p.storage.has_grad))
    arrays = [storage for storage in storages if type(storage) is ArrayStorage]
    squares = dict(zip(arrays, ArrayStorage.all_grad_squares(arrays), strict=True))
    others = [storage for storage in storages if storage not in squares]
    squares |= {storage: storage.grad_squares() for storage in others}
    norm = math.sqrt(sum(squares[storage] for storage in storages))
    if math.isfinite(norm) and norm > max_norm:
        factor = max_norm / (norm + 1e-6)
        ArrayStorage.scale_all_grads(arrays, factor)
        for storage in others:
            storage.scale_grad(factor)
    return norm


class WarmupCosine:
    """A schedule: `lr = schedule(step)` for step 0, 1, ...

    Rises linearly to `lr` over `warmup_steps`, falls along half a cosine to `min_lr` at
    `total_steps`, and stays there. Source: Loshchilov and Hutter, arXiv 1608.03983.
    """

    def __init__(self, lr: float, warmup_steps: int, total_steps: int, min_lr: float = 0.0) -> None:
        self.lr, self.min_lr = positive("lr", lr), positive("min_lr", min_lr)
        self.warmup_steps = whole("warmup_steps", warmup_steps)
        self.total_steps = whole("total_steps", total_steps)
        if self.warmup_steps > self.total_steps:
            raise ValueError(
                f"warmup_steps must be at most total_steps, {total_steps}, got {warmup_steps}"
            )

    def __call__(self, step: int) -> float:
        step = whole("step", step)
        if step < self.warmup_steps:
            return self.lr * (step + 1) / (self.warmup_steps + 1)
        if step >= self.total_steps:
            return self.min_lr
        done = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        return self.min_lr + 0.5 * (1 + math.cos(math.pi * done)) * (self.lr - self.min_lr)
