"""Lesson 10: golden runs, the laws that any answer has to obey, and the usual slips of units."""

import math
import numbers
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

from lessons.check import Wrong, call, given


class Case(NamedTuple):
    """Arguments of `plan_run`, in its order."""

    dollars: float
    dollars_per_hour: float
    chips: int
    peak: float
    achieved: float
    bandwidth: float
    memory: float

    @property
    def about(self) -> str:
        return ", ".join(f"{name}={value:g}" for name, value in self._asdict().items())


KEYS = ("parameters", "tokens", "days", "streams", "pass_tokens")
CASES = [
    Case(1e4, 1.9, 8, 3e14, 0.42, 25e9, 80e9),
    Case(5e6, 2.5, 512, 1e15, 0.45, 5e10, 80e9),
    Case(3.0, 0.5, 1, 5e11, 0.7, 1e10, 16e9),
    Case(1e5, 40.0, 16, 7.5e15, 0.25, 1.5e11, 5e10),
    Case(123.0, 7.0, 3, 1e13, 0.9, 1e9, 1e9),
]
AS_THEY_ARE = [False, True, False, True, True]  # does it stream, case by case?
STREAMS = {  # what it would be if something else were compared
    "weights": [False, True, False, False, False],
    "no gradient": [False, True, False, True, False],
    "all chips": [False, False, False, False, False],
    "fits": [True, False, True, False, False],
}


def right(case: Case) -> dict[str, Any]:
    hours = case.dollars / case.dollars_per_hour
    n = math.sqrt(hours * 3600 * case.peak * case.achieved / 120)
    streams = 16 * n > case.memory
    return {
        "parameters": n,
        "tokens": 20 * n,
        "days": hours / case.chips / 24,
        "streams": streams,
        "pass_tokens": case.peak * case.achieved / case.bandwidth if streams else 0,
    }


def check(answer: ModuleType) -> str:
    function = given(answer, "plan_run", ", ".join(Case._fields))
    found = [answered(function, case) for case in CASES]
    for got, case in zip(found, CASES):
        for key in ("parameters", "tokens", "days"):
            compare(key, got, case, function)
    compare_streams([got["streams"] for got in found])
    for got, case in zip(found, CASES):
        compare("pass_tokens", got, case, function)
    biggest = right(CASES[1])
    return (
        f"So {CASES[1].dollars:,.0f} dollars buy {biggest['parameters'] / 1e9:.0f} billion "
        "parameters, and four times the money only twice the model."
    )


def answered(function: Callable, case: Case) -> dict[str, Any]:
    """What `plan_run` says, if it has the form that was asked for."""
    got = call(function, *case, about=case.about)
    if not isinstance(got, dict):
        raise Wrong(f"`plan_run` gives {type(got).__name__}, expected a dictionary")
    for key in KEYS:
        if key not in got:
            raise Wrong(
                f"there is no {key!r} in the dictionary, which has {', '.join(map(str, got))}"
            )
        if key != "streams" and not isinstance(got[key], numbers.Real):
            raise Wrong(f"{key!r} is {got[key]!r}, expected a number")
    if str(got["streams"]) not in ("True", "False"):
        raise Wrong(f"'streams' is {got['streams']!r}, expected True or False")
    return got


def compare(key: str, got: dict, case: Case, function: Callable) -> None:
    value, wanted = float(got[key]), right(case)[key]
    if math.isclose(value, wanted, rel_tol=1e-6):
        return
    what = f"{key} is {value:.6g}, expected {wanted:.6g} ({case.about})"
    if value.is_integer() and abs(value - wanted) <= 1:
        raise Wrong(f"{what}: do not round, or plans for little money are far off")
    ratio = value / wanted if wanted else math.inf
    raise Wrong(f"{what}: {WHY[key](ratio, got, case, function)}")


def is_one_of(ratio: float, *values: float) -> bool:
    return any(math.isclose(ratio, value, rel_tol=1e-6) for value in values)


def why_parameters(ratio: float, got: dict, case: Case, function: Callable) -> str:
    square = ratio * ratio  # parameters go with the root of the FLOPs
    if is_one_of(float(got["tokens"]), float(got["parameters"])):
        return "that is one token for each parameter: it should be 20, in the FLOPs as well"
    if is_one_of(ratio, right(case)["parameters"], *(right(case)["parameters"] * k for k in K)):
        return "FLOPs grow with the square of the model, as its tokens grow too: take the root"
    if is_one_of(square, 1 / case.achieved):
        return "chips do not reach their peak: `achieved` is missing"
    if is_one_of(square, case.achieved):
        return "`achieved` went in twice"
    if is_one_of(square, 1 / 3600):
        return "FLOP/s want seconds, the money buys hours: 3600 is missing"
    if is_one_of(square, case.dollars_per_hour, case.dollars_per_hour**2):
        return "hours are dollars divided by the dollars that one costs"
    if any(math.isclose(ratio, 1 / unit, rel_tol=0.2) for unit in (1e6, 1e9)):
        return "give parameters one by one, not in millions or billions"
    if is_one_of(square, 1 / 60, 24):
        return "an hour has 3600 seconds"
    if is_one_of(square, case.chips):
        return (
            "dollars buy chip-hours, and they are the same however many chips share them: "
            "the chips were counted twice"
        )
    if is_one_of(square, 1 / case.chips):
        return (
            "all chips work for as long as the money lasts: sharing the hours out among them and "
            "then counting one chip alone loses the others"
        )
    if is_one_of(square, 3):
        return "2 FLOPs per parameter and token are the way forward alone: the way back takes 4"
    if is_one_of(square, 6 / 8):
        return "8 FLOPs count a second way forward, for a recompute: here it is 6"
    if is_one_of(square, 20, 6, 120):
        return "6 FLOPs per parameter and token, 20 tokens per parameter: a factor is missing"
    more = call(function, case.dollars * 4, *case[1:], about="four times the money")
    growth = float(more["parameters"]) / float(got["parameters"]) if got["parameters"] else 0
    if not math.isclose(growth, 2, rel_tol=1e-6):
        return f"four times the money should buy twice the model, and buys {growth:.3g} times"
    return "FLOPs = 6 x parameters x tokens, and tokens = 20 x parameters: solve for parameters"


K = (120, 20, 6)  # no root was taken, and some of 6 x 20 not divided by


def why_tokens(ratio: float, got: dict, case: Case, function: Callable) -> str:
    if is_one_of(ratio, 1 / 20):
        return "that is as many tokens as parameters: it should be 20 for each"
    spent = 6 * float(got["parameters"]) * float(got["tokens"])
    there = 120 * right(case)["parameters"] ** 2
    return f"20 for each parameter; this run takes {spent / there:.3g} of the FLOPs that are paid"


def why_days(ratio: float, got: dict, case: Case, function: Callable) -> str:
    if is_one_of(ratio, 24 * 3600):
        return "those are seconds"
    if is_one_of(ratio, case.chips) and case.chips > 1:
        return "those are days of a single chip: all of them work at the same time"
    if is_one_of(ratio, 24):
        return "those are hours: a day has 24"
    if is_one_of(ratio, 24 * case.chips):
        return "those are chip-hours: all chips work at the same time, and a day has 24 hours"
    if is_one_of(ratio, 1 / case.chips):
        return "the chips were counted twice: dividing by them once shares the hours out"
    if is_one_of(ratio, case.achieved, 1 / case.achieved):
        return "`achieved` has no place here: time is paid for, whatever is done with it"
    bill = float(got["days"]) * 24 * case.chips * case.dollars_per_hour
    return (
        f"so long on all chips costs {bill:,.4g} dollars, and there are {case.dollars:,.4g}: "
        "chip-hours, shared out among the chips, 24 to a day"
    )


def why_pass(ratio: float, got: dict, case: Case, function: Callable) -> str:
    if ratio in (0.0, math.inf):
        return "it is 0 exactly where nothing streams"
    if is_one_of(ratio, 1 / case.achieved):
        return "compute takes as long as it takes at the rate achieved, not at the peak"
    if is_one_of(ratio, 1 / 3):
        return "6 FLOPs are those of both ways; the stream has to hide behind the way forward"
    if is_one_of(ratio, 2):
        return (
            "that is twice too many: a token does two operations per weight (a multiplication and "
            "an addition), and a weight is 2 bytes here, not 4"
        )
    if is_one_of(ratio, 0.5):
        return (
            "2 bytes have to arrive, not 1, and 2 FLOPs per token have to hide them, those of the "
            "way forward; 4 are those of the way back"
        )
    if is_one_of(ratio, 8):
        return (
            "that is 8 times too many: 16 bytes are the state's, and only the weights' 2 stream in "
            "the forward pass; or was bandwidth, which is in bytes, divided by 8 as if in bits?"
        )
    if is_one_of(ratio, 1 / 8):
        return "bandwidth is in bytes, not in bits"
    if is_one_of(ratio, case.chips, 1 / case.chips):
        return "it is per chip: each has a link of its own"
    if is_one_of(ratio, *(k * right(case)["parameters"] for k in (0.5, 1, 2))):
        return "the model's size cancels: each weight takes as long to arrive as any other"
    return "as long as a weight of 2 bytes takes to arrive, tokens do 2 FLOPs each on it"


def compare_streams(found: list) -> None:
    found = [bool(streams) for streams in found]
    if found == AS_THEY_ARE:
        return
    i = next(i for i, streams in enumerate(found) if streams != AS_THEY_ARE[i])
    case = CASES[i]
    why = {
        "weights": "16 bytes per parameter count, not the weights alone",
        "no gradient": "16 bytes per parameter count, the gradient's and both moments' among them",
        "all chips": "a chip holds all of the state or streams it, so what counts is the memory of "
        "one chip, not of all",
        "fits": "that is the other way round: True where it does not fit",
    }
    known = next((why[name] for name, pattern in STREAMS.items() if pattern == found), None)
    raise Wrong(
        f"streams is {found[i]}, but the state is {16 * right(case)['parameters']:.3g} bytes and "
        f"the chip has {case.memory:.3g} ({case.about}): "
        f"{known or '16 bytes per parameter against the memory of one chip'}"
    )


WHY = {
    "parameters": why_parameters,
    "tokens": why_tokens,
    "days": why_days,
    "pass_tokens": why_pass,
}
