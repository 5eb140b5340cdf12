"""Typical wrong answers to lesson 9: what, the solution's text, what stands there, the verdict."""

USES = "uses = (place for place in range(now, len(order)) if order[place] == unit)"
NEXT = "return next(uses, math.inf)"
RETURN = "return max(resident, key=next_use)"
LAST = "max(p for p in range(now + 1) if order[p] == unit)"

WRONG = [
    ("least recently used", RETURN, f"return min(resident, key=lambda unit: {LAST})", "least rec"),
    ("the one that came first", RETURN, "return resident[0]", r"FIFO"),
    (
        "most recently used",
        RETURN,
        f"return max(resident, key=lambda unit: -1 if unit == order[now] else {LAST})",
        "most recently used unit go",
    ),
    (
        "the soonest, order[now] among them",
        RETURN,
        "return min(resident, key=next_use)",
        "which is order.now.",
    ),
    (
        "the soonest of the others",
        RETURN,
        "return min((u for u in resident if u != order[now]), key=next_use)",
        "turned round",
    ),
    ("never means at once", NEXT, "return next(uses, -1)", "as if it were used soonest"),
    ("never is an error", NEXT, "return next(uses)", "StopIteration.*never used again"),
    (
        "never is an error of index",
        NEXT,
        "return order.index(unit, now)",
        "ValueError.*never used again",
    ),
    ("from the beginning", USES, USES.replace("range(now, ", "range("), "search begins at `now`"),
    ("from the next use on", USES, USES.replace("(now,", "(now + 1,"), "is being computed with"),
    (
        "the uses that are left",
        RETURN,
        "return min(resident, key=order[now:].count)",
        "how often a unit is still used",
    ),
    (
        "by chance",
        RETURN,
        "import random; return random.choice([u for u in resident if u != order[now]])",
        "chance",
    ),
    ("a place, not a unit", RETURN, f"return resident.index({RETURN[7:]})", "a place in a list"),
    ("removed as well", RETURN, f"u = {RETURN[7:]}; resident.remove(u); return u", "changed `res"),
    (
        "none is far enough",
        RETURN,
        "return next((u for u in resident if next_use(u) > now + 2), None)",
        "or was none chosen",
    ),
    (
        "an array of what were tuples",
        RETURN,
        f"import numpy as np; return np.array(resident)[resident.index({RETURN[7:]})]",
        "ndarray.*named as in `resident`",
    ),
    ("all the others", RETURN, "return set(resident) - {order[now]}", "a set, .*one unit leaves"),
    ("no return", RETURN, RETURN[7:], "is a `return` missing"),
    ("of the whole order", RETURN, "return max(order, key=next_use)", "is not on the chip"),
]
