"""Lesson 3: each accused is tried on the learner's inputs, and on inputs of our own."""

import difflib
from types import ModuleType

import numpy as np

import tinygrad_edu as tg
from lessons.check import Wrong, call, given
from lessons.suspects import ALL
from tinygrad_edu.gradcheck import GradcheckError

COUNT = 3


def fair_inputs(name: str) -> list[tuple]:
    """Inputs away from kinks that leave no excuse."""
    rng = np.random.default_rng(3)
    a = rng.permutation(np.r_[-5.5:6:1]).reshape(3, 4) + rng.uniform(-0.2, 0.2, (3, 4))
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
    if len(guilty) != COUNT:
        raise Wrong(
            f"lessons/suspects.py has {len(guilty)} wrong gradients, not {COUNT}: it has been "
            "changed. The exercise is to convict them, not to mend them: `git checkout` brings it "
            "back"
        )
    for name, inputs in found.items():
        if name not in ALL:
            near = difflib.get_close_matches(str(name), ALL, 1)
            hint = f": did you mean {near[0]!r}?" if near else f": they are {', '.join(ALL)}"
            raise Wrong(f"there is no function {name!r} in lessons/suspects.py{hint}")
        try_on(name, inputs if isinstance(inputs, tuple) else (inputs,), name in guilty)
    if len(found) < len(guilty):
        raise Wrong(
            f"right so far, but {len(guilty) - len(found)} of {len(guilty)} wrong gradients are "
            "still at large. Try other signs and sizes, more rows, unequal numbers"
        )
    return "Each was caught where its mistake shows, which is not everywhere."


def try_on(name: str, inputs: tuple, guilty: bool) -> None:
    """Raises Wrong unless the function is guilty and these inputs prove it."""
    arrays = numbers_in(name, inputs)
    failure = judged(name, inputs)
    if failure is None and guilty:
        raise Wrong(f"{name} passes gradcheck on these inputs: {where_to_look(name, arrays)}")
    if failure is None:
        raise Wrong(
            f"{name} is innocent: it passes gradcheck on these very inputs. Did you run it?"
        )
    excuse = excuse_of(name, arrays, failure)
    if not guilty:
        raise Wrong(f"{name} is innocent: {excuse or 'it fails on these inputs only'}")
    if excuse:
        raise Wrong(f"this proves nothing against {name}: {excuse}")


def numbers_in(name: str, inputs: tuple) -> list[np.ndarray]:
    """The inputs as arrays; Wrong if they are no floating-point numbers, or none."""
    arrays = []
    for x in inputs:
        x = x.data if isinstance(x, tg.Tensor) else x
        if not isinstance(x, (float, np.ndarray, np.generic)):
            raise Wrong(
                f"{name}: an input is {type(x).__name__}, expected a NumPy array of floats; "
                "several inputs stand in a tuple, and a single one in (array,)"
            )
        x = np.asarray(x)
        if x.dtype != np.float64:
            raise Wrong(
                f"{name}: an input has dtype {x.dtype}, expected float64: only those can be nudged "
                "finely enough (write 1.0 rather than 1)"
            )
        arrays.append(x)
    wanted = 2 if name in ("Hypot", "Larger") else 1
    if len(arrays) != wanted:
        raise Wrong(f"{name} takes {wanted} input{'s' * (wanted > 1)}, here are {len(arrays)}")
    if not all(x.size for x in arrays):
        raise Wrong(f"{name}: there are no numbers in the inputs, so nothing can be wrong")
    return arrays


def judged(name: str, inputs: tuple) -> str | None:
    """What gradcheck has to say against `name` on these inputs; None if it passes."""
    try:
        with np.errstate(all="ignore"):
            tg.gradcheck(ALL[name].apply, *inputs)
    except GradcheckError as error:
        return str(error)
    except Exception as error:
        raise Wrong(
            f"{name}: gradcheck cannot run on these inputs: {type(error).__name__}: {error}"
        ) from None
    return None


def excuse_of(name: str, arrays: list[np.ndarray], failure: str) -> str:
    """Why a failure is no proof: "" if it is one."""
    if not all(np.isfinite(x).all() for x in arrays):
        return "the inputs are not finite, and nothing has a slope there"
    if "backward raised" in failure:
        return f"on these inputs {failure.splitlines()[0]}. Rows have at least one axis"
    if "not differentiable" in failure or (name == "Hypot" and not np.hypot(*arrays).all()):
        return (
            "on these inputs it has a kink, and so no derivative that a gradient could be compared "
            "with; move them a little"
        )
    if "is wrong" not in failure or max(np.abs(x).max() for x in arrays) > 1e6:
        return (
            "these inputs are so large, or so near the edge of where it is defined, that numbers "
            "run out of digits, and finite differences say nothing; take tamer ones"
        )
    return ""


def where_to_look(name: str, arrays: list[np.ndarray]) -> str:
    x = arrays[0]
    if name == "Center" and x.size == x.shape[-1]:
        return "its gradient is wrong elsewhere. A single row cannot tell its mean from another's"
    if name == "Huber" and (np.abs(x) < 3).all():
        return "its gradient is wrong elsewhere. Here, all of them lie on the parabola"
    if name == "Huber":
        return "its gradient is wrong elsewhere. A function like this has two ends"
    if name == "Softmax" and (np.ptp(x, axis=-1) == 0).all():
        return "its gradient is wrong elsewhere. With equal numbers in a row, y is the same in all"
    return "its gradient is wrong elsewhere. Try other signs, sizes, more rows, unequal numbers"
