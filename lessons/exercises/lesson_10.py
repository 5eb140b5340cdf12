"""Lesson 10: the best run that a sum of money buys.

The longer a model trains, the better it gets, and the larger it is, the more it can learn. For a
given number of FLOPs the best trade is about 20 tokens per parameter (Hoffmann et al., 2022,
"Training compute-optimal large language models"). A token costs 6 FLOPs per parameter; leave
attention out.

Write `plan_run`. Then: python -m lessons.check 10
"""


def plan_run(dollars, dollars_per_hour, chips, peak, achieved, bandwidth, memory):
    """Spends all the money, and says on what.

    dollars_per_hour: of one chip. peak: its FLOP/s. achieved: the fraction of them that training
    reaches. bandwidth: bytes/s from external memory into one chip. memory: bytes on one chip.

    Gives a dictionary with
        "parameters"   of the model, a float
        "tokens"       to train on, 20 per parameter
        "days"         from start to end, with all chips at work together
        "streams"      True if the model's state (16 bytes per parameter: weight, gradient, and
                       AdamW's two moments in float32) is larger than one chip's memory
        "pass_tokens"  tokens per chip and pass that hide the stream of 2-byte weights in the
                       forward pass; 0 if nothing streams
    """
    raise NotImplementedError("Money buys chip-hours, chip-hours are FLOPs, FLOPs are a model.")
