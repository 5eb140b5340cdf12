"""Lesson 5: how fast can three kernels be? Predict it, then let the check measure.

Each function gets sizes, the machine's `peak` (FLOP/s) and its `bandwidth` (bytes/s), and gives
three numbers: the FLOPs, the bytes that have to cross memory, and the seconds it takes at best.
Everything is float32. Every array is read from memory once and every result is written once; what
stays in registers or caches costs nothing.

Then: python -m lessons.check 5
"""


def linear(rows, inputs, outputs, peak, bandwidth):
    """y = x @ w: x (rows, inputs), w (inputs, outputs), y (rows, outputs)."""
    raise NotImplementedError("Count FLOPs and bytes, then ask which of the two takes longer.")


def layer_norm(rows, width, peak, bandwidth):
    """y like x (rows, width), with 8 FLOPs per element; gain and bias (width,) are read, too."""
    raise NotImplementedError("Count FLOPs and bytes, then ask which of the two takes longer.")


def adamw(parameters, peak, bandwidth):
    """Updates w, m and v in place, given g: arrays of one size; 14 FLOPs per parameter."""
    raise NotImplementedError("Count FLOPs and bytes, then ask which of the two takes longer.")
