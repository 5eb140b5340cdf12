"""Lesson 8: predictions against rehearsed steps, and what is missing in those that are off."""

import functools
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
        for case in CASES:
            about = f"peak_bytes{(*case, recompute)}"
            got = call(function, *case, recompute, about=about)
            try:
                got = float(got)
            except (TypeError, ValueError):
                raise Wrong(f"{about} gives {got!r}, expected a number of bytes") from None
            state, activations = rehearsed(*case, recompute)
            off = got / (state + activations) - 1
            if not abs(off) <= WITHIN:
                raise Wrong(
                    f"{about} is {got / 1e6:,.1f} MB, a rehearsed step needs "
                    f"{(state + activations) / 1e6:,.1f} MB ({off:+.0%}): "
                    f"{why(got, case, recompute, state)}"
                )
            worst = max(worst, abs(off))
    return f"At worst {worst:.1%} off, from nothing but a list of arrays."


def why(got: float, case: tuple, recompute: bool, state: int) -> str:
    """The mistake whose answer comes closest, if one comes close."""
    _, context, layers, width, batch = case
    array = 4 * batch * context * width
    n = state // 16
    heads = width // 64
    stored = (16 * layers + 5) * array
    activations = (layers + 16 + 5) * array if recompute else stored  # as the list has them
    mistakes = [
        (state, "that is weights, gradients and averages: activations are missing"),
        (activations, "that is activations alone: each weight takes 16 bytes, too"),
        (4 * n + activations, "gradients and averages are missing: 16 bytes per parameter, not 4"),
        (8 * n + activations, "AdamW keeps two averages for each weight: 16 bytes, not 8"),
        (12 * n + activations, "weights, gradients and *two* averages make 16 bytes, not 12"),
        (state - 128 * layers * width**2 + activations,
         "the MLP's weights are missing: 8 of the 12 width x width matrices of a layer"),
        (2 * (state + activations), "a float32 has 4 bytes; 8 are those of a float64"),
        ((state + activations) / 4, "those are numbers, not bytes: a float32 has 4"),
        (state + activations / batch, "activations are kept for every sequence of the batch"),
        (state + activations / context, "activations are kept for every token of the context"),
        (state + activations + 4 * batch * heads * context**2 * (1 if recompute else layers),
         "no matrix of scores (context x context) is kept: attention works in tiles"),
        (state + 16 * array * layers * layers, "16 arrays per layer, not 16 for each pair of them"),
    ]  # fmt: skip
    if recompute:
        mistakes += [
            (state + stored, "with recompute a layer keeps its input only, one array of the width"),
            (state + layers * array,
             "the layer that is being run again needs its own arrays while it is: 16 and some"),
            (state + (layers + 16) * array,
             "inside the layer at hand gradients live, too: its own input's, and the wide one in "
             "the MLP"),
        ]  # fmt: skip
    else:
        mistakes += [
            (state + layers * array, "that is one array per layer: without recompute all 16 stay"),
            (state + 16 * array, "that is a single layer: all of them keep their arrays"),
            (state + 16 * layers * array,
             "what the layers keep is all there; at the peak there are gradients inside the last "
             "one, too: its own input's, and the wide one in the MLP"),
        ]  # fmt: skip
        mistakes += [
            (state + (count * layers + 5) * array,
             f"that is {count} arrays per layer: count again, 16 are kept")
            for count in range(6, 30) if count != 16
        ]  # fmt: skip
    nearest, text = min(mistakes, key=lambda mistake: abs(np.log(max(got, 1) / mistake[0])))
    if abs(got / nearest - 1) < 0.01:
        return text
    more = "too much" if got > state + activations else "too little"
    return (
        f"{more}. Go through the lesson's list: what is kept, how wide is it, for how many tokens?"
    )
