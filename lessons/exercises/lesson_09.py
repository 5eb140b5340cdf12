"""Lesson 9: what leaves the chip?

A chip with room for a few units has just fetched one more than it has room for. One must leave.

    evict(resident, order, now) -> the unit of `resident` that leaves

    resident   a list of the units on the chip, the one that came longest ago first; at least two
    order      a list of all uses, from the first to the last, past and future
    now        a place in `order`: the chip is at order[now], which has just come (so it is in
               `resident`), is being computed with, and cannot leave

Units are names (strings, numbers, tuples). `evict` is called at each fetch that finds the chip
full. Fetch as rarely as possible over the whole order; `resident` and `order` stay as they are.

Write `evict`. Then: python -m lessons.check 9
"""


def evict(resident, order, now):
    raise NotImplementedError("For each unit on the chip: when is it used next?")
