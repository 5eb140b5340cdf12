"""Lesson 2: the gradient of `where` over hidden shapes, held against a sum over every element."""

import ast
import inspect
from types import ModuleType

import numpy as np

from lessons.check import Wrong, call, given, said, same

CASES = [  # shapes of condition, a, b
    ((2, 3), (2, 3), (2, 3)),
    ((2, 3), (2, 3), ()),
    ((2, 3), (3,), (2, 3)),
    ((2, 3), (2, 1), (1, 3)),
    ((3,), (2, 1), (2, 3)),
    ((), (2, 3), (3,)),
    ((2, 1), (4, 1, 3), (1, 1, 1)),
    ((5,), (1,), (5,)),
    ((3, 1), (1, 4), (3, 1)),
    ((4, 2, 3), (2, 3), (1, 1)),
    ((1, 3), (3,), (1, 1)),  # as many numbers as the result, and another shape
    ((0, 3), (3,), (0, 3)),
    ((2, 0), (2, 1), ()),
    ((), (), ()),
]


def element_by_element(grad: np.ndarray, mask: np.ndarray, shape: tuple) -> np.ndarray:
    """Each element of the result gives its gradient to the one element it was taken from."""
    out = np.zeros(shape)
    places = np.broadcast_to(np.arange(out.size).reshape(shape), grad.shape)
    np.add.at(out.reshape(-1), places[mask], grad[mask])
    return out


def check(answer: ModuleType) -> str:
    function = given(answer, "where_backward", "grad, condition, a_shape, b_shape")
    alone(answer)
    rng = np.random.default_rng(2)
    for condition_shape, a_shape, b_shape in CASES:
        shape = np.broadcast_shapes(condition_shape, a_shape, b_shape)
        condition = np.asarray(rng.random(condition_shape) < 0.5)
        grad = rng.standard_normal(shape)
        kept = condition.copy(), grad.copy()
        about = f"condition {condition_shape}, a {a_shape}, b {b_shape}"
        got = call(function, grad, condition, a_shape, b_shape, about=about)
        if not (np.array_equal(kept[0], condition) and np.array_equal(kept[1], grad)):
            raise Wrong(
                "the function writes into its arguments: others still need that gradient, so work "
                "on a copy"
            )
        if not isinstance(got, (tuple, list)) or len(got) != 2:
            raise Wrong(f"for {about}: expected two gradients, of a and of b, got {describe(got)}")
        mask = np.broadcast_to(condition, shape)
        rights = [
            element_by_element(grad, mask, a_shape), element_by_element(grad, ~mask, b_shape)
        ]  # fmt: skip
        for i, (name, size) in enumerate((("a", a_shape), ("b", b_shape))):
            compare(name, got[i], rights, i, grad, size, about)
    infinite_gradients(function)
    return "Every copy gives back what it received, also where there is nothing at all."


def infinite_gradients(function) -> None:
    """A gradient that was not passed on must not leave a trace, however large it was."""
    grad, condition = np.array([np.inf, 2.0, -np.inf]), np.array([True, False, False])
    with np.errstate(invalid="ignore"):
        got = call(function, grad, condition, (3,), (3,), about="an infinite gradient")
    if np.isnan(got[0]).any() or np.isnan(got[1]).any():
        raise Wrong(
            "an infinite gradient, which one input should receive, makes the other one's NaN: 0 "
            "times infinity is not 0, so choose between numbers instead of multiplying by a mask"
        )
    for name, found, expected in zip("ab", got, ([np.inf, 0.0, 0.0], [0.0, 2.0, -np.inf])):
        same(found, expected, f"the gradient of {name}, for a gradient of [inf, 2, -inf],")


def alone(answer: ModuleType) -> None:
    """The exercise is to undo the stretching, not to import who does it."""
    try:
        tree = ast.parse(inspect.getsource(answer))
    except (OSError, TypeError):
        return
    names = {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    names |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    if any(name.split(".")[0] in ("tinygrad_edu", "gpt", "torch") for name in names):
        raise Wrong("this one is without the package: undo the stretching with NumPy alone")


def describe(got) -> str:
    if isinstance(got, np.ndarray):
        return f"an array of shape {got.shape}"
    return f"{len(got)} of them" if isinstance(got, (tuple, list)) else repr(got)


def compare(name, got, rights, i, grad, shape, about) -> None:
    right, other = rights[i], rights[1 - i]
    where = f"the gradient of {name} (for {about})"
    if got is None:
        raise Wrong(f"{where} is None: both inputs want one")
    try:
        got = np.asarray(got, float)
    except (TypeError, ValueError) as error:
        raise Wrong(f"{where} is not an array: {said(error)}") from None
    if got.shape != right.shape:
        if got.shape == grad.shape:
            why = "it still has the shape of the result: what was stretched has to be summed"
        elif got.size == right.size:
            why = (
                "the numbers are as many as they should be, the axes are not: an axis of size one "
                "stays when it is summed (keepdims), an axis that was missing goes"
            )
        else:
            why = (
                "which axes are missing in it, and which have size one? Those are summed, no others"
            )
        raise Wrong(f"{where} has shape {got.shape}, expected {right.shape}: {why}")
    if np.allclose(got, right, rtol=1e-12, atol=1e-12):
        return
    if np.allclose(got, right):
        raise Wrong(
            f"{where} is right to a few digits only: stay in the dtype of `grad`, float64 here"
        )
    if got.shape == other.shape and np.allclose(got, other) and not np.allclose(other, right):
        raise Wrong(
            f"{where} is the one of the other input: where the condition holds, a was chosen"
        )
    everything = element_by_element(grad, np.ones(grad.shape, bool), shape)
    if np.allclose(got, -right):
        raise Wrong(f"{where} has its sign turned round, and nothing in `where` subtracts")
    if got.size > 1 and not got.any():
        raise Wrong(f"{where} is 0 everywhere: whoever was chosen receives the gradient")
    if got.size > 1 and np.allclose(got, right.sum()):
        raise Wrong(
            f"{where} has one sum for all its elements: each one adds up its own copies, no others"
        )
    if np.allclose(got, right - 2 * everything):
        raise Wrong(
            f"{where} looks like ~ of integers, which gives -1 and -2: keep the condition boolean"
        )
    if np.allclose(got, everything):
        raise Wrong(
            f"{where} counts elements that were not chosen: they were not used, so they get 0"
        )
    count = max(1, grad.size // max(1, right.size))
    if np.allclose(got * count, right):
        raise Wrong(f"{where} is a mean over its copies. Their uses add up: it is a sum")
    worst = np.unravel_index(np.argmax(np.abs(got - right)), right.shape)
    at = f" at {tuple(map(int, worst))}" if worst else ""
    raise Wrong(f"{where} is {got[worst]:.6g}{at}, expected {right[worst]:.6g}")
