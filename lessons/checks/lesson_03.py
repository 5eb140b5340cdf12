"""Lesson 3: each accused is tried on the learner's inputs, and on inputs of our own."""

import difflib
from types import ModuleType

import numpy as np

import tinygrad_edu as tg
from lessons.check import Wrong, call, given, said
from lessons.suspects import ALL


def fair_inputs(name: str) -> list[tuple]:
    """Inputs away from kinks that leave no excuse."""
    rng = np.random.default_rng(3)
    a = rng.uniform(0.2, 1.5, (3, 4)) * rng.choice([-1, 1], (3, 4))
    b = a + rng.uniform(0.2, 1, (3, 4)) * rng.choice([-1, 1], (3, 4))
    return [(a, b)] if name in ("Hypot", "Larger") else [(a,), (a[0],), (a[:, :1],)]


def is_wrong(name: str) -> bool:
    tried = (
        tg.gradcheck(ALL[name].apply, *inputs, raise_exception=False)
        for inputs in fair_inputs(name)
    )
    return not all(tried)


def check(answer: ModuleType) -> str:
    found = call(given(answer, "counterexamples", ""))
    if not isinstance(found, dict):
        raise Wrong(
            f"`counterexamples` gives {type(found).__name__}, expected a dictionary from the name "
            "of a function to a tuple of inputs: a name alone is an accusation without evidence"
        )
    guilty = {name for name in ALL if is_wrong(name)}
    for name, inputs in found.items():
        if name not in ALL:
            near = difflib.get_close_matches(str(name), ALL, 1)
            hint = f": did you mean {near[0]!r}?" if near else f": they are {', '.join(ALL)}"
            raise Wrong(f"there is no function {name!r} in lessons/suspects.py{hint}")
        try_on(name, inputs if isinstance(inputs, tuple) else (inputs,), name in guilty)
    if len(found) < len(guilty):
        raise Wrong(
            f"right so far, but {len(guilty) - len(found)} of {len(guilty)} wrong gradients are "
            "still at large. Try other signs, more rows, unequal numbers"
        )
    return "Each was caught where its mistake shows, which is not everywhere."


def try_on(name: str, inputs: tuple, guilty: bool) -> None:
    """Raises Wrong unless the function is guilty and these inputs prove it."""
    try:
        arrays = [np.asarray(x, np.float64) for x in inputs if np.size(x)]
    except (TypeError, ValueError):
        raise Wrong(f"{name}: the inputs are not arrays of numbers: {inputs!r}") from None
    if any(not np.isfinite(x).all() for x in arrays):
        raise Wrong(f"{name}: NaN and infinity in the inputs prove nothing: no slope exists there")
    if not arrays:
        raise Wrong(f"{name}: there are no numbers in the inputs, so nothing can be wrong")
    try:
        passes = tg.gradcheck(ALL[name].apply, *inputs, raise_exception=False)
    except Exception as error:
        raise Wrong(f"{name}: gradcheck cannot run on these inputs: {said(error)}") from None
    if guilty and not passes:
        return
    if guilty:
        why = "its gradient is wrong elsewhere. "
        if name == "Center" and all(x.ndim < 2 or x.shape[0] == 1 for x in arrays):
            why += "With a single row, the mean over everything is the mean over the row"
        elif name == "LeakyRelu" and all((x > 0).all() for x in arrays):
            why += "With positive numbers only, half of the function is never used"
        elif name == "Softmax" and all(np.ptp(x, axis=-1).max() == 0 for x in arrays if x.ndim):
            why += "With equal numbers in a row, y is the same everywhere"
        else:
            why += "Try other signs, more rows, unequal numbers"
        raise Wrong(f"{name} passes gradcheck on these inputs: {why}")
    if passes:
        raise Wrong(
            f"{name} is innocent: it passes gradcheck on these very inputs. Did you run it?"
        )
    if any(not np.isfinite(x).all() for x in arrays):
        raise Wrong(f"{name} is innocent: the inputs are not finite, and nothing has a slope there")
    raise Wrong(
        f"{name} is innocent: on these inputs it has a kink, or they are so large or small that "
        "numbers run out of digits. Finite differences say nothing there; move them a little"
    )
