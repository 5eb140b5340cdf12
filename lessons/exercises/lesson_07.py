"""Lesson 7: repair a run that goes NaN.

`train` fits a small classifier. It goes NaN, for more than one reason: some rows are empty (all
zeros), and scores get large. Run this file to see it happen; `tg.detect_nan()` tells where.

Repair `normalise` and `loss_of`. They must go on computing the same mathematics, with the right
gradients, wherever they did: hiding NaN, leaving rows out, or clipping numbers is no repair. A row
of zeros, whose direction nobody knows, becomes zeros, and its gradient is zeros.

Then: python -m lessons.check 7
"""

import numpy as np

import tinygrad_edu as tg


def normalise(x):
    """Rows (n, k) -> rows of length 1: each divided by the root of its sum of squares."""
    length = (x * x).sum(axis=-1, keepdims=True).sqrt()
    return x / length


def loss_of(scores, classes):
    """Mean of -log(softmax(scores)) at the right classes: (n, c), integers (n,) -> scalar."""
    e = scores.exp()
    probability = e / e.sum(axis=-1, keepdims=True)
    picked = probability[np.arange(len(classes)), classes]
    return -picked.log().mean()


def train(rows, classes, steps=30):
    """The losses of some steps. This part is right."""
    rng = np.random.default_rng(0)
    first = tg.nn.Parameter(rng.standard_normal((rows.shape[1], 8)))
    second = tg.nn.Parameter(300 * rng.standard_normal((8, 3)))
    optimizer = tg.optim.AdamW([first, second], lr=0.05)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(normalise(tg.Tensor(rows) @ first) @ second, classes)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((20, 4))
    rows[3] = 0
    print(train(rows, rows.argmax(axis=1) % 3))
