"""Lesson 9, solved: what is used furthest in the future leaves (Belady).

A unit that is never used again is further away than any other, hence infinity. The unit in use
is at order[now], so a search from `now` on finds it at once: it is the nearest of all.
"""

import math


def evict(resident, order, now):
    def next_use(unit):
        uses = (place for place in range(now, len(order)) if order[place] == unit)
        return next(uses, math.inf)

    return max(resident, key=next_use)
