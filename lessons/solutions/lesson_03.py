"""Lesson 3, solved: each wrong gradient, and the smallest inputs that give it away."""

import numpy as np


def counterexamples():
    return {
        # the slope stays at 3 far to the right, but not at -3 far to the left
        "Huber": (np.array([-5.0, 1.0, 5.0]),),
        # the mean should be weighted by y: a cotangent of ones hides it, and so do equal x
        "Softmax": (np.array([0.5, -0.3, 1.0]),),
        # the mean is over everything, not over each row: a single row hides it
        "Center": (np.array([[1.0, 2.0], [3.0, 5.0]]),),
    }
