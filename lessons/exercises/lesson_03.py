"""Lesson 3: three of the eight gradients in `lessons/suspects.py` are wrong. Convict them.

Write `counterexamples()`, which gives a dictionary with three entries: the name of a function and
inputs on which `tg.gradcheck` of its `apply` fails, as a tuple of float64 arrays. For instance

    {"Gate": (np.array([1.0, -2.0]),), ...}

says that `tg.gradcheck(suspects.Gate.apply, np.array([1.0, -2.0]))` fails. (It does not.) Mind that
an honest function fails too where it has a kink, or is infinite, and so has no derivative: those
inputs prove nothing. Read what the GradcheckError says.

Then: python -m lessons.check 3
"""

import numpy as np  # noqa: F401

import tinygrad_edu as tg  # noqa: F401
from lessons import suspects  # noqa: F401


def counterexamples():
    raise NotImplementedError("Point gradcheck at each of the eight, with inputs of your choice.")
