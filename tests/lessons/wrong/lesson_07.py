"""Typical wrong answers to lesson 7: what, the solution's text, what stands there, the verdict."""

LENGTH = "    length = tg.where(empty, 1.0, squares).sqrt()\n"
RETURN = "    return tg.where(empty, 0.0, x / length)\n"
NORM = LENGTH + RETURN
SHIFT = "    shifted = scores - scores.data.max(axis=-1, keepdims=True)\n"
LOGS = "    logs = shifted - shifted.exp().sum(axis=-1, keepdims=True).log()\n"
LOSS = SHIFT + LOGS

WRONG = [
    ("not repaired", NORM, "    return x / squares.sqrt()\n", "still divides 0 by 0"),
    ("a little added to the length", NORM, "    return x / (squares.sqrt() + 1e-30)\n",
     "infinite slope at 0"),
    ("a little added inside", NORM, "    return x / (squares + 1e-8).sqrt()\n",
     "changes small rows"),
    ("chosen too late", NORM, "    return tg.where(empty, 0.0, x / squares.sqrt())\n",
     "comes too late"),
    ("gradient of zeros", RETURN, "    return x / length\n", "expected zeros"),
    ("a constant length", NORM, "    return x / np.where(empty, 1.0, squares.data) ** 0.5\n",
     "is a part of it a constant"),
    ("nan to num", NORM, "    return np.nan_to_num((x / squares.sqrt()).data)\n",
     "expected a Tensor"),
    ("nothing on the tape", RETURN, "    return tg.Tensor(np.where(empty, 0, (x / length).data))\n",
     "backward through `normalise` stopped: .*without a graph"),
    ("a backward that stops", "    return -logs[", "    class Same(tg.Function):\n"
     "        forward = staticmethod(lambda ctx, x: x.copy())\n"
     "        backward = staticmethod(lambda ctx, grad: grad / 'a')\n\n"
     "    return -Same.apply(logs)[", "backward through `loss_of` stopped: .*Error"),
    ("loss not repaired", LOSS,
     "    e = scores.exp()\n    logs = (e / e.sum(axis=-1, keepdims=True)).log()\n",
     "exponential of 800"),
    ("shifted but divided", LOSS, SHIFT
     + "    e = shifted.exp()\n    logs = (e / e.sum(axis=-1, keepdims=True)).log()\n",
     "as a difference"),
    ("one maximum for all rows", "scores.data.max(axis=-1, keepdims=True)", "scores.data.max()",
     "each row"),
    ("clipped", SHIFT, "    shifted = scores.clip(-50, 50)\n", "something else"),
    ("a little inside the logarithm", LOSS, SHIFT
     + "    e = shifted.exp()\n    logs = (e / e.sum(axis=-1, keepdims=True) + 1e-12).log()\n",
     "loss_of|something else"),
    ("one maximum, and divided", LOSS,
     "    e = (scores - scores.data.max()).exp()\n"
     "    logs = (e / e.sum(axis=-1, keepdims=True)).log()\n", "scores differ by thousands"),
    ("no mean", "classes].mean()", "classes]", "of each row now"),
    ("no minus", "return -logs", "return logs", "sign turned round"),
    ("a sum", "classes].mean()", "classes].sum()", "it was a mean"),
]  # fmt: skip
