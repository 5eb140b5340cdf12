"""Lesson 10: golden runs, the laws that any answer has to obey, and the usual slips of units."""

import math
from types import ModuleType
from typing import Any

from lessons.check import Wrong, call, given

ARGUMENTS = ("dollars", "dollars_per_hour", "chips", "peak", "achieved", "bandwidth", "memory")
KEYS = ("parameters", "tokens", "days", "streams", "pass_tokens")
CASES = [
    (1e4, 2.0, 8, 3e14, 0.4, 25e9, 80e9),
    (5e6, 2.5, 512, 1e15, 0.45, 5e10, 80e9),
    (3.0, 0.5, 1, 5e11, 0.7, 1e10, 16e9),
    (1e5, 40.0, 16, 7.5e15, 0.25, 1.5e11, 4e10),
    (123.0, 7.0, 3, 1e13, 1.0, 1e9, 1e9),
]


def right(dollars, dollars_per_hour, chips, peak, achieved, bandwidth, memory) -> dict[str, Any]:
    hours = dollars / dollars_per_hour
    n = math.sqrt(hours * 3600 * peak * achieved / 120)
    streams = 16 * n > memory
    return {
        "parameters": n,
        "tokens": 20 * n,
        "days": hours / chips / 24,
        "streams": streams,
        "pass_tokens": peak * achieved / bandwidth if streams else 0,
    }


def check(answer: ModuleType) -> str:
    function = given(answer, "plan_run", ", ".join(ARGUMENTS))
    for case in CASES:
        about = ", ".join(f"{name}={value:g}" for name, value in zip(ARGUMENTS, case))
        got = call(function, *case, about=about)
        if not isinstance(got, dict):
            raise Wrong(f"`plan_run` gives {type(got).__name__}, expected a dictionary")
        for key in KEYS:
            if key not in got:
                raise Wrong(f"there is no {key!r} in the dictionary, which has {', '.join(got)}")
        compare(got, right(*case), case, about)
    biggest = right(*CASES[1])
    return (
        f"So {CASES[1][0]:,.0f} dollars buy {biggest['parameters'] / 1e9:.0f} billion parameters, "
        "and four times the money only twice the model."
    )


def compare(got: dict, wanted: dict, case: tuple, about: str) -> None:
    for key in ("parameters", "tokens", "days", "pass_tokens"):
        try:
            value = float(got[key])
        except (TypeError, ValueError):
            raise Wrong(f"{key!r} is {got[key]!r}, expected a number") from None
        if key == "pass_tokens" and bool(got["streams"]) != wanted["streams"]:
            state = 16 * wanted["parameters"]
            raise Wrong(
                f"streams is {got['streams']}, but the state is {state:.3g} bytes and the chip has "
                f"{case[6]:.3g} ({about}): it is 16 bytes per parameter, not the weights alone, "
                "and what counts is the memory of one chip"
            )
        if not math.isclose(value, wanted[key], rel_tol=1e-6):
            ratio = value / wanted[key] if wanted[key] else math.inf
            raise Wrong(
                f"{key} is {value:.4g}, expected {wanted[key]:.4g} ({about}): "
                f"{WHY[key](ratio, got, case)}"
            )


def is_one_of(ratio: float, *values: float) -> bool:
    return any(math.isclose(ratio, value, rel_tol=1e-6) for value in values)


def why_parameters(ratio: float, got: dict, case: tuple) -> str:
    _, _, chips, _, achieved, _, _ = case
    square = ratio * ratio  # parameters go with the root of the FLOPs
    if is_one_of(square, 1 / achieved):
        return "chips do not reach their peak: `achieved` is missing"
    if is_one_of(square, 1 / 3600):
        return "FLOP/s want seconds, the money buys hours: 3600 is missing"
    if is_one_of(square, 1 / 60):
        return "an hour has 3600 seconds, not 60"
    if is_one_of(square, chips):
        return (
            "dollars buy chip-hours, and they are the same however many chips share them: "
            "the chips were counted twice"
        )
    if is_one_of(square, 20, 3, 3 * 20) or is_one_of(square, 6):
        return "6 FLOPs per parameter and token, 20 tokens per parameter: a factor is missing"
    if is_one_of(ratio, right(*case)["parameters"]):
        return "FLOPs grow with the square of the model, as its tokens grow too: take the root"
    return "FLOPs = 6 x parameters x tokens, and tokens = 20 x parameters: solve for parameters"


def why_tokens(ratio: float, got: dict, case: tuple) -> str:
    if is_one_of(ratio, 1 / 20):
        return "that is as many tokens as parameters: it should be 20 for each"
    return "tokens are 20 for each parameter"


def why_days(ratio: float, got: dict, case: tuple) -> str:
    chips = case[2]
    if is_one_of(ratio, 24):
        return "those are hours: a day has 24"
    if is_one_of(ratio, 24 * 3600):
        return "those are seconds"
    if is_one_of(ratio, chips):
        return "those are days of a single chip: all of them work at the same time"
    if is_one_of(ratio, 24 * chips):
        return "those are chip-hours: all chips work at the same time, and a day has 24 hours"
    return "chip-hours, shared out among the chips, 24 to a day"


def why_pass(ratio: float, got: dict, case: tuple) -> str:
    achieved = case[4]
    if ratio in (0.0, math.inf):
        return "it is 0 exactly where nothing streams"
    if is_one_of(ratio, 1 / achieved):
        return "compute takes as long as it takes at the rate achieved, not at the peak"
    if is_one_of(ratio, 2):
        return "a token does two operations per weight, a multiplication and an addition"
    if is_one_of(ratio, 0.5):
        return "a weight has 2 bytes, so that many have to arrive"
    if is_one_of(ratio, 8):
        return "16 bytes are the state's; only the weights' 2 bytes stream in the forward pass"
    if is_one_of(ratio, 8, 1 / 8):
        return "bandwidth is in bytes, not in bits"
    if is_one_of(ratio, case[2], 1 / case[2]):
        return "it is per chip: each has a link of its own"
    return "as long as a weight of 2 bytes takes to arrive, tokens do 2 FLOPs each on it"


WHY = {
    "parameters": why_parameters, "tokens": why_tokens, "days": why_days, "pass_tokens": why_pass
}  # fmt: skip
