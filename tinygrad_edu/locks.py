"""Saved arrays are read-only until the graph that saved them has been walked.

An array that backward will need must not change before: a gradient made from other numbers than
forward used is wrong without a sign of it. So saving an array locks it, and NumPy itself refuses
whoever writes into it, at the line that does. One way around is left: NumPy lets a view that was
taken before write on.
"""

from typing import Any

import numpy as np


class Locks:
    """Arrays that a graph has saved are read-only until it is walked or dropped.

    A view is locked together with the array it looks into. Counted, as several ops may save one.
    """

    def __init__(self) -> None:
        # id -> [array, count, views to open together with it]; kept alive so ids stay true
        self.held: dict[int, list] = {}

    def lock(self, array: Any) -> None:
        while isinstance(array, np.ndarray):
            entry = self.held.get(id(array))
            if entry is not None:
                entry[1] += 1
            elif array.flags.writeable:
                self.held[id(array)] = [array, 1, []]
                array.flags.writeable = False
            array = below(array)

    def unlock(self, array: Any) -> None:
        if not isinstance(array, np.ndarray):
            return
        base = below(array)
        self.unlock(base)  # the owner first: a view cannot be opened before it
        entry = self.held.get(id(array))
        if entry is None:
            return
        entry[1] -= 1
        if entry[1]:
            return
        del self.held[id(array)]
        owner = self.held.get(id(base))
        if owner is not None:  # saved elsewhere too: this view opens when its owner does
            owner[2] += [array, *entry[2]]
            return
        array.flags.writeable = True
        for view in entry[2]:
            view.flags.writeable = True

    def __contains__(self, array: np.ndarray) -> bool:
        return id(array) in self.held


def below(array: np.ndarray) -> np.ndarray | None:
    """The array that a view looks into, also where NumPy's as_strided stands between them."""
    base = array.base
    while base is not None and not isinstance(base, np.ndarray):
        base = getattr(base, "base", None)
    return base


locks = Locks()


def read_only_view(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view
