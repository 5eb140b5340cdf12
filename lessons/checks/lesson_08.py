"""Lesson 8: predictions against rehearsed steps, and what is missing in those that are off."""

import functools
from collections.abc import Callable
from types import ModuleType

import numpy as np

from lessons.check import Wrong, call, given

CASES = [  # vocabulary, context, layers, width, batch
    (256, 256, 6, 384, 8),
    (256, 64, 4, 128, 12),
    (1000, 128, 24, 256, 8),
    (512, 512, 8, 512, 2),
    (256, 128, 12, 192, 32),
]
TABLES = (2048, 1024, 3, 256, 1)  # whose tables are a sixth of it all, when layers run again
WITHIN = 0.05


@functools.cache
def rehearsed(vocabulary: int, context: int, layers: int, width: int, batch: int, recompute: bool):
    """(16 bytes per parameter, activations at their peak)"""
    import tinygrad_edu as tg
    from gpt import GPT, GPTConfig, scaling

    config = GPTConfig(vocabulary, context, layers, width // 64, width)
    ids = np.zeros((batch, context), int)
    with tg.memory.Rehearsal() as chip:
        GPT(config, recompute=recompute)(ids, ids)[1].backward()
    return 16 * scaling.count_parameters(config), chip.budget.peak_by_kind["activations"]


def check(answer: ModuleType) -> str:
    names = "vocabulary, context, layers, width, batch, recompute"
    function = given(answer, "peak_bytes", names)
    worst = 0.0
    for recompute in (False, True):
        cases = [*CASES, TABLES] if recompute else CASES
        found = [answered(function, case, recompute) for case in cases]
        for case, got in zip(cases, found):
            right = sum(rehearsed(*case, recompute))
            off = got / right - 1
            if not abs(off) <= WITHIN:
                raise Wrong(
                    f"peak_bytes{(*case, recompute)} is {got / 1e6:,.1f} MB, a rehearsed step "
                    f"needs {right / 1e6:,.1f} MB ({off:+.0%}): {why(found, cases, recompute, off)}"
                )
            worst = max(worst, abs(off))
    return f"At worst {worst:.1%} off, from nothing but a list of arrays."


def answered(function: Callable, case: tuple, recompute: bool) -> float:
    about = f"peak_bytes{(*case, recompute)}"
    got = call(function, *case, recompute, about=about)
    try:
        number = float(got)
    except (TypeError, ValueError):
        number = np.nan
    if not np.isfinite(number):
        raise Wrong(f"{about} gives {got!r}, expected a number of bytes")
    return number


def why(found: list[float], cases: list[tuple], recompute: bool, off: float) -> str:
    """The mistake that explains all answers, if one does, and best."""
    distance = {}
    for got, case in zip(found, cases):
        for text, wrong in mistakes(*case, recompute).items():
            distance[text] = max(distance.get(text, 0), abs(got / wrong - 1))
    nearest = min(distance, key=distance.get)
    if distance[nearest] < 0.02:
        return nearest
    return (
        f"too {'much' if off > 0 else 'little'}. Go through the lesson's list: what is kept, how "
        "wide is it, for how many tokens?"
    )


def mistakes(
    vocabulary: int, context: int, layers: int, width: int, batch: int, recompute: bool
) -> dict[str, float]:
    """What is to be said of an answer, and the answer of which it is to be said."""
    array = 4 * batch * context * width
    scores = 4 * batch * (width // 64) * context**2
    matrix = 16 * layers * width**2  # bytes of one width x width matrix in each layer
    state = 12 * matrix + 16 * (vocabulary + context) * width
    n = state / 16
    stored = (16 * layers + 5) * array
    activations = (layers + 16 + 5) * array if recompute else stored  # as the list has them
    right = state + activations
    found = {
        "that is weights, gradients and averages: activations are missing": state,
        "that is activations alone: each weight takes 16 bytes, too": activations,
        "gradients and averages are missing: 16 bytes per parameter, not 4": 4 * n + activations,
        "AdamW keeps two averages for each weight: 16 bytes, not 8": 8 * n + activations,
        "weights, gradients and *two* averages make 16 bytes, not 12": 12 * n + activations,
        "16 bytes are a weight's: an activation takes 4": state + 4 * activations,
        "both tables are missing: token and position table are weights, too":
            12 * matrix + activations,
        "the position table is missing, (context, width)": right - 16 * context * width,
        "the token table is missing, (vocabulary, width)": right - 16 * vocabulary * width,
        "the token table is the output layer as well, so it counts once":
            right + 16 * vocabulary * width,
        "the loss makes its logits in pieces: none are kept": right
            + 4 * batch * context * vocabulary,
        "a float32 has 4 bytes; 8 are those of a float64": 2 * right,
        "those are numbers, not bytes: a float32 has 4": right / 4,
        "those are megabytes: bytes are asked for": right / 1e6,
        "activations are kept for every sequence of the batch": state + activations / batch,
        "activations are kept for every token of the context": state + activations / context,
        "no matrix of scores (context x context) is kept: attention works in tiles":
            right + scores * (1 if recompute else layers),
        "16 arrays per layer, not 16 for each pair of them": state + 16 * array * layers * layers,
    }  # fmt: skip
    for count in range(1, 12):
        missing = right - (12 - count) * matrix
        text = f"a layer has 12 width x width matrices, not {count}: 4 in attention, 8 in the MLP"
        found[text if count != 4 else "the MLP's weights are missing: 8 of a layer's 12"] = missing
    if recompute:
        return found | {
            "with recompute a layer keeps its input only, one array of the width": state + stored,
            "the layer that is being run again needs its own arrays while it is: 16 and some":
                state + layers * array,
            "inside the layer at hand gradients live, too: its own input's, and the wide one in "
            "the MLP": state + (layers + 16) * array,
            "each of the other layers keeps its input": state + (16 + 5) * array,
        }  # fmt: skip
    for count in range(6, 30):
        if count != 16:
            text = f"that is {count} arrays per layer: count again, 16 are kept"
            found[text] = state + (count * layers + 5) * array
    return found | {
        "that is one array per layer: without recompute all 16 stay": state + layers * array,
        "that is a single layer: all of them keep their arrays": state + 16 * array,
        "what the layers keep is all there; at the peak there are gradients inside the last one, "
        "too: its own input's, and the wide one in the MLP": state + 16 * layers * array,
    }  # fmt: skip
