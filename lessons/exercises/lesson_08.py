"""Lesson 8: how much memory does a training step need at once? Within five percent.

Write `peak_bytes`. Then: python -m lessons.check 8
"""


def peak_bytes(vocabulary, context, layers, width, batch, recompute):
    """Bytes of weights, gradients and AdamW's averages, plus activations at their peak, in float32.

    The model is this package's GPT: a token table (vocabulary, width), which is the output layer,
    too, a position table (context, width), and `layers` layers without biases. Leave out what is
    small: norms, log-sum-exps, the workspace of kernels.
    vocabulary: not so wide that the peak is in the loss.
    batch: sequences of `context` tokens. recompute: whether layers run again instead of keeping
    what is inside them.
    """
    raise NotImplementedError("16 bytes per parameter, and then the arrays that the tape keeps.")
