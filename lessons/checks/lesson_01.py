"""Lesson 1: `Value.tanh`, its value, its slope, and its place on the tape."""

import math
from types import ModuleType

from lessons.check import Wrong, call, given, same

POINTS = (0.0, 0.5, -1.2, 2.0, -3.0)


def check(answer: ModuleType) -> str:
    if not hasattr(answer, "Value"):
        raise Wrong("there is no `Value` in the file: `git checkout` brings the class back")
    value_type = given(answer, "Value", "data")
    if not hasattr(value_type, "tanh"):
        raise Wrong("`Value` has no method `tanh`: write `def tanh(self):` inside the class")

    def tanh_of(number: float):
        x = call(value_type, number, about=f"{number}")
        y = call(value_type.tanh, x, about=f"Value({number})")
        if y is None:
            raise Wrong("`tanh` gives None: is a `return` missing?")
        if not isinstance(y, value_type):
            raise Wrong(
                f"`tanh` gives {type(y).__name__}, expected a Value: a bare number has forgotten "
                "how it was made, so no gradient can pass"
            )
        if x.data != number:
            raise Wrong("`tanh` changes the value it is called on, which others use as well")
        return x, y

    for number in POINTS:
        same(tanh_of(number)[1].data, math.tanh(number), f"the value of tanh({number})")
    for number in POINTS:
        x, y = tanh_of(number)
        if not all(isinstance(x, (tuple, list)) for x in (y.inputs, getattr(y, "slopes", ()))):
            raise Wrong("inputs and slopes are tuples, even of one: `(self,)` and `(slope,)`")
        call(backward, y, about="the result of tanh")
        if not y.inputs or (x.grad == 0 and x not in tuple(y.inputs)):
            raise Wrong(
                "the result does not name its input: pass `(self,)` as `inputs`, or `backward` "
                "ends there"
            )
        check_slope(x, number)

    # behind another operation, and used twice
    x = value_type(0.7)
    y = call(value_type.tanh, x)
    call(use_twice, x, y, about="tanh(x)^2 + x tanh(x)")
    t = math.tanh(0.7)
    same(x.grad, (2 * t + 0.7) * (1 - t * t) + t, "the gradient of tanh(x)^2 + x tanh(x) at 0.7")

    for number in (800.0, -800.0):
        try:
            x, y = tanh_of(number)
            same(y.data, math.copysign(1, number), f"the value of tanh({number})")
        except Wrong as wrong:
            raise Wrong(
                f"{wrong}. e^800 is more than a float can hold, and tanh is no more than 1: is it "
                "all in Python's `math`, or in powers of e that are never large?"
            ) from None
        call(backward, y, about="the result of tanh")
        check_slope(x, number)
    return "Values, slopes, and the far ends, where e^x has no number of its own."


def backward(value) -> None:
    value.backward()


def use_twice(x, y) -> None:
    (y * y + y * x).backward()


def check_slope(x, number: float) -> None:
    """The gradient of tanh(number), with a guess at what went wrong."""
    t = math.tanh(number)
    right = 1 - t * t
    found = f"the gradient of tanh({number}) is {x.grad:.6g}, expected {right:.6g}"
    if math.isclose(x.grad, right, rel_tol=1e-6, abs_tol=1e-12):
        return
    for wrong, why in (
        (0.0, "no gradient passed: was the slope forgotten, or is it 0?"),
        (1.0, "that is the slope of the identity: tanh flattens what is far from 0"),
        (1 - t, "the slope is 1 - tanh(x)^2: the square is missing"),
        (1 - number * number, "the square is of tanh(x), the result, not of x, the input"),
        (1 - math.tanh(t) ** 2, "tanh was applied twice: the slope needs the square of the result"),
        (t * t - 1, "the sign is turned round"),
        (t, "that is the value, where the slope belongs"),
    ):
        if math.isclose(x.grad, wrong, rel_tol=1e-6, abs_tol=1e-12):
            raise Wrong(f"{found}: {why}")
    raise Wrong(f"{found}, which a nudge confirms")
