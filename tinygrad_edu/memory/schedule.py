"""Which weights will be wanted next: a recording of what was borrowed, replayed.

Training asks for weights in the same order step after step, and evaluation in another order of its
own. So the best guess of what comes next is what came next the last time. The recording is one
long list of what was borrowed; `self.place` points to where in it the present repeats the past.
While every loan is the one expected, the pointer moves along. When one is not (the first
evaluation, a model that branches), the pair of the last two loans is looked up, and the pointer
jumps to behind its latest earlier occurrence; a pair never seen means that nothing is known, and
weights are fetched when they are asked for. A wrong guess costs time, never correctness.

Between two loans the model computes, and needs memory for it. The most it needed is kept with
the loan, so that one can see how much room the future leaves.
"""

import bisect
from collections import defaultdict
from collections.abc import Hashable, Iterator

LONGEST = 1 << 17  # loans kept: more than two steps of a model of ten thousand layers
NEVER = 1 << 62  # the next use of what will not be used


class Schedule:
    """The recording. Keys are anything hashable that names what is borrowed."""

    def __init__(self, longest: int = LONGEST) -> None:
        self.longest = longest
        self._start_over([], [])

    def _start_over(self, keys: list[Hashable], needs: list[int]) -> None:
        self.keys: list[Hashable] = []
        self.needs: list[int] = []  # bytes: the most needed from this loan to the next
        self.places: dict[Hashable, list[int]] = defaultdict(list)  # where each key stands
        self.pairs: dict[tuple, int] = {}  # where a key stands that follows another, at last
        self.place: int | None = None  # what is expected next stands here
        self.streak = 0  # expectations that came true, one after the other
        for key, need in zip(keys, needs, strict=True):
            self.saw(key, need)

    def saw(self, key: Hashable, need: int = 0) -> None:
        """`key` is borrowed now; since the loan before, `need` bytes were needed at most."""
        if len(self.keys) >= self.longest:
            half = self.longest // 2
            self._start_over(self.keys[-half:], [0, *self.needs[-half:-1]])
        before = self.keys[-1] if self.keys else None
        if self.keys:
            self.needs[-1] = need
        if self.place is not None and self.keys[self.place] == key:
            self.place += 1
            self.streak += 1
        else:
            self.streak = 0
            known = self.pairs.get((before, key))
            self.place = None if known is None else known + 1
        here = len(self.keys)
        self.keys.append(key)
        self.needs.append(need)
        self.places[key].append(here)
        self.pairs[before, key] = here
        if self.place is not None and self.place > here:
            self.place = None

    def ahead(self) -> Iterator[tuple[int, Hashable]]:
        """(position, key) of what is expected, next first. Nothing, if nothing is known."""
        if self.place is not None:
            for position in range(self.place, len(self.keys)):
                yield position, self.keys[position]

    def need_before(self, position: int) -> int:
        """Bytes needed, last time, just before the loan at `position`."""
        return self.needs[position - 1] if position else 0

    def next_use(self, key: Hashable) -> int:
        """The position at which `key` is expected next, or NEVER."""
        if self.place is None:
            return NEVER
        places = self.places.get(key, ())
        i = bisect.bisect_left(places, self.place)
        return places[i] if i < len(places) else NEVER
