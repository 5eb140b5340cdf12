"""Lesson 7: the two functions, where they were right and where they were not."""

import ast
import inspect
from types import ModuleType
from typing import Any

import numpy as np

import tinygrad_edu as tg
from lessons.check import NotWritten, Wrong, call, given, said, same

GUILTY = "Hiding NaN is no repair: find the operation that makes the first one"
BROKEN = """length = (x * x).sum(axis=-1, keepdims=True).sqrt()
return x / length
e = scores.exp()
probability = e / e.sum(axis=-1, keepdims=True)
picked = probability[np.arange(len(classes)), classes]
return -picked.log().mean()"""  # the exercise's two functions


def check(answer: ModuleType) -> str:
    normalise = given(answer, "normalise", "x")
    loss_of = given(answer, "loss_of", "scores, classes")
    untouched(answer)
    with np.errstate(all="ignore"):
        check_normalise(normalise)
        check_loss(loss_of)
        losses = training(normalise, loss_of)
    return f"The run is finite now, and its loss falls from {losses[0]:.0f} to {losses[-1]:.0f}."


def untouched(answer: ModuleType) -> None:
    """NotWritten if both functions are still those of the exercise, comments apart."""
    tree = ast.parse(inspect.getsource(answer))
    found = {part.name: part.body for part in tree.body if isinstance(part, ast.FunctionDef)}
    body = found.get("normalise", []) + found.get("loss_of", [])
    lines = [ast.unparse(line) for line in body if not isinstance(line, ast.Expr)]
    if lines == BROKEN.splitlines():
        raise NotWritten(
            "`normalise` and `loss_of` are as they were. Run the file inside "
            "`with tg.detect_nan():` to see which operation makes the first NaN."
        )


def run(function: Any, x: np.ndarray, *more: Any, about: str) -> tuple[np.ndarray, Any, tg.Tensor]:
    """The result as an array, its gradient's function of a cotangent, and the leaf."""
    leaf = tg.Tensor(x, requires_grad=True)
    out = call(function, leaf, *more, about=about)
    if out is None:
        raise Wrong(f"`{function.__name__}` gives None: is a `return` missing?")
    if not isinstance(out, tg.Tensor):
        raise Wrong(
            f"`{function.__name__}` gives {type(out).__name__}, expected a Tensor: NumPy's arrays "
            "leave nothing on the tape, so no gradient passes"
        )
    return out.data, out, leaf


def gradient(function: Any, out: tg.Tensor, leaf: tg.Tensor, cotangent: np.ndarray) -> np.ndarray:
    try:
        out.backward(cotangent)
    except Exception as error:
        raise Wrong(f"backward through `{function.__name__}` stopped: {said(error)}") from None
    if leaf.grad is None:
        raise Wrong(
            f"no gradient passes through `{function.__name__}`: was `.data` or `.detach()` taken "
            "where the tape should go on?"
        )
    return leaf.grad


def unit_rows(x: np.ndarray) -> np.ndarray:
    length = np.sqrt((x * x).sum(-1, keepdims=True))
    return np.divide(x, length, out=np.zeros_like(x), where=length > 0)


def check_normalise(normalise: Any) -> None:
    rng = np.random.default_rng(7)
    for shape in ((3, 4), (1, 1), (5, 2)):
        x = rng.standard_normal(shape)
        got, out, leaf = run(normalise, x, about=f"rows of shape {shape}")
        same(
            got,
            unit_rows(x),
            f"normalise of ordinary rows {shape}, where it was right before,",
            1e-5,
            1e-9,
        )
        gradient(normalise, out, leaf, np.ones(shape))
        if not tg.gradcheck(normalise, x, raise_exception=False):
            raise Wrong(
                "the gradient of `normalise` is wrong for ordinary rows, where it was right: "
                "is a part of it a constant now (`.data`, `.detach()`)?"
            )
    tiny = np.array([[3e-7, 4e-7], [1.0, 1.0]])
    got, _, _ = run(normalise, tiny, about="a tiny row")
    if not np.allclose(got, unit_rows(tiny), rtol=1e-6):
        raise Wrong(
            f"a row (3e-7, 4e-7) has become {np.round(got[0], 6)}, not (0.6, 0.8): a small number "
            "added to the length changes small rows. Only a row of zeros needs another treatment"
        )
    x = rng.standard_normal((4, 3))
    x[1] = 0
    got, out, leaf = run(normalise, x, about="a row of zeros")
    if np.isnan(got[1]).any():
        raise Wrong(f"`normalise` still divides 0 by 0 in a row of zeros. {GUILTY}")
    if got.shape != x.shape:
        raise Wrong(f"`normalise` turns {x.shape} into {got.shape}: every row has to stay")
    same(got, unit_rows(x), "normalise of rows with an empty one")
    grad = gradient(normalise, out, leaf, rng.standard_normal(x.shape))
    if np.isnan(grad).any():
        raise Wrong(
            "forward is finite now, but the gradient is NaN for a row of zeros. Which operation "
            "has an infinite slope at 0? Choosing (`where`) after it comes too late: backward goes "
            "through the branch that was not chosen as well, and 0 times infinity is NaN"
        )
    if grad[1].any():
        raise Wrong(f"the gradient of a row of zeros is {grad[1]}, expected zeros")


def cross_entropy(scores: np.ndarray, classes: np.ndarray) -> tuple[float, np.ndarray]:
    """The mean loss, and its gradient."""
    shifted = scores - scores.max(-1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    rows = np.arange(len(classes))
    grad = np.exp(logs)
    grad[rows, classes] -= 1
    return -logs[rows, classes].mean(), grad / len(classes)


def check_loss(loss_of: Any) -> None:
    rng = np.random.default_rng(8)
    for n, c in ((4, 3), (1, 5), (6, 2)):
        scores, classes = rng.standard_normal((n, c)), rng.integers(c, size=n)
        got, out, leaf = run(loss_of, scores, classes, about=f"scores of shape {(n, c)}")
        loss, grad = cross_entropy(scores, classes)
        if np.shape(got) == () and n > 1 and np.isclose(got, n * loss):
            raise Wrong("`loss_of` is a sum over the rows now; it was a mean")
        if np.shape(got) == (n,) and np.isclose(got.mean(), loss):
            raise Wrong("`loss_of` gives the loss of each row now; it was their mean")
        if np.shape(got) == () and np.isclose(got, -loss):
            raise Wrong("`loss_of` has its sign turned round: the loss is minus the logarithm")
        same(got, loss, "loss_of of ordinary scores, where it was right before,")
        slopes = gradient(loss_of, out, leaf, np.array(1.0))
        same(slopes, grad, "the gradient of loss_of of ordinary scores", 1e-7, 1e-9)
    large = np.array([[0.0, 2000.0, -1000.0], [500.0, 400.0, 0.0], [-3000.0, -3001.0, -3002.0]])
    classes = np.array([2, 1, 0])
    got, out, leaf = run(loss_of, large, classes, about="scores in the thousands")
    loss, grad = cross_entropy(large, classes)
    if np.isnan(got):
        row = np.array([[2000.0, 1999.0, 1998.0]])
        one, _, _ = run(loss_of, row, classes[:1], about="a row of scores in the thousands")
        if not np.isnan(one):
            raise Wrong(
                "`loss_of` is NaN where rows of scores differ by thousands, and each of them alone "
                "is right: what is subtracted has to be of *each row*, or a row of small ones is "
                "all zeros after exp"
            )
        raise Wrong(
            "`loss_of` is NaN for scores in the thousands: the exponential of 800 is infinite. "
            "What can be subtracted from a row of scores without changing its softmax?"
        )
    if np.isinf(got):
        raise Wrong(
            "`loss_of` is infinite for scores in the thousands: some probability became 0 and then "
            "its logarithm was taken. Subtract the largest score of *each row*, and write the "
            "logarithm of the quotient as a difference, which never sees that 0"
        )
    if not np.isclose(got, loss):
        raise Wrong(
            f"`loss_of` is {got:.6g} for scores in the thousands, expected {loss:.6g}: clipping "
            "the scores, or adding a little inside the logarithm, makes it finite by computing "
            "something else"
        )
    slopes = gradient(loss_of, out, leaf, np.array(1.0))
    if not np.isfinite(slopes).all():
        raise Wrong("`loss_of` is finite for large scores, but its gradient is not")
    same(slopes, grad, "the gradient of loss_of for large scores", 1e-7, 1e-9)


def training(normalise: Any, loss_of: Any) -> list[float]:
    """The run of the exercise, on other data, with the learner's two functions."""
    rng = np.random.default_rng(9)
    rows = rng.standard_normal((24, 4))
    rows[[2, 11]] = 0
    classes = rows.argmax(1) % 3
    first = tg.nn.Parameter(rng.standard_normal((4, 8)))
    second = tg.nn.Parameter(300 * rng.standard_normal((8, 3)))
    optimizer = tg.optim.AdamW([first, second], lr=0.05)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = call(loss_of, call(normalise, tg.Tensor(rows) @ first) @ second, classes)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    if not np.isfinite(losses).all():
        raise Wrong(f"a run with empty rows and large scores still goes NaN. {GUILTY}")
    if losses[-1] > 0.8 * losses[0]:
        raise Wrong(f"the run is finite, but learns nothing: {losses[0]:.1f} to {losses[-1]:.1f}")
    return losses
