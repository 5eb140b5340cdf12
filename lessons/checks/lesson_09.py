"""Lesson 9: an eviction rule, on orders with known optima, held against rules of other kinds."""

import random
from collections.abc import Callable, Hashable
from types import ModuleType
from typing import NamedTuple

from lessons.check import Wrong, call, given

NEVER = 10**9
LAYERS = [f"h{i}" for i in range(8)]
CYCLE = LAYERS * 5


class Decision(NamedTuple):
    """What the rule was asked, and what it chose."""

    resident: list[Hashable]
    order: list[Hashable]
    now: int
    victim: Hashable


def orders() -> list[tuple[str, list[Hashable], int]]:
    """(what it is, the order, units that fit)."""
    there_and_back = LAYERS + LAYERS[::-1]
    draw = random.Random(9)
    draws = [[draw.choice(LAYERS) for _ in range(60)] for _ in range(4)]
    once = ["wte", "h0", "h1", "h2", "h0", "h1", "h2", "h0", "h1", "h2"]
    tuples = [("h", i % 5, part) for i in range(15) for part in ("attn", "mlp")]
    return [
        ("two units, and room for one", ["a", "b", "a", "b"], 1),
        ("a unit that is used once", once, 3),
        ("a cycle", CYCLE, 4),
        ("a cycle that nearly fits", CYCLE, 7),
        ("there and back", there_and_back * 3, 4),
        ("a random order", draws[0], 3),
        ("another random order", draws[1], 5),
        ("a random order with room for one", draws[2], 1),
        ("an order whose units are numbers, 0 among them", [int(u[1]) for u in draws[3]], 4),
        ("an order whose units are tuples", tuples, 4),
        ("one unit, used over and over", ["a"] * 5, 1),
        ("an order of which everything fits", LAYERS * 2, 8),
    ]


def check(answer: ModuleType) -> str:
    evict = given(answer, "evict", "resident, order, now")
    decisions: list[Decision] = []
    too_many = []
    counts = {}
    for what, order, room in orders():
        counts[what] = fetches(evict, order, room, decisions)
        least = fetches(furthest, order, room, [])
        if counts[what] > least:
            too_many.append(
                f"on {what} ({len(order)} uses, room for {room}) it fetches {counts[what]} times, "
                f"where {least} are enough"
            )
    in_use = next((d for d in decisions if d.victim == d.order[d.now]), None)
    if in_use is not None:
        rules = [(newest, NEWEST), (searched_behind, BEHIND), *MISTAKES]
        why = explanation(decisions, rules, in_use_too=True)
        raise Wrong(
            f"with {about(*in_use[:3])}, `evict` lets {in_use.victim!r} go, which is order[now]: "
            f"it is being computed with, so it cannot leave{'. As it seems, ' * bool(why)}{why}"
        )
    if too_many:
        why = explanation(decisions, MISTAKES) or first_loss(decisions)
        raise Wrong(f"{too_many[0]}: {why}")
    lru = fetches(lambda *asked: most(oldest_use, Decision(*asked, None))[0], CYCLE, 4, [])
    return (
        f"On a cycle of {len(LAYERS)} layers with room for 4 it fetches {counts['a cycle']} times, "
        f"the least recently used rule {lru} times, and nobody can do better: to know the order is "
        "worth more than to remember it."
    )


def fetches(evict: Callable, order: list, room: int, decisions: list[Decision]) -> int:
    """How often a chip with `room` fetches if `evict` decides what leaves."""
    resident: list[Hashable] = []
    count = 0
    for now, unit in enumerate(order):
        if unit in resident:
            continue
        count += 1
        resident.append(unit)
        if len(resident) > room:
            victim = ask(evict, resident, order, now)
            decisions.append(Decision(list(resident), order, now, victim))
            resident.remove(victim)
    return count


def ask(evict: Callable, resident: list, order: list, now: int) -> Hashable:
    """What `evict` lets go, which must be something that can go."""
    asked = about(resident, order, now)
    shown, past = list(resident), list(order)
    try:
        victim = call(evict, shown, past, now, about=asked)
    except Wrong as wrong:
        if any(unit not in order[now + 1 :] for unit in resident) and any(
            kind in str(wrong) for kind in ("ValueError", "StopIteration", "IndexError", "KeyError")
        ):
            raise type(wrong)(
                f"{wrong}. One of these units is never used again: is it looked for all the same?"
            ) from None
        raise
    if shown != resident or past != order:
        changed = "resident" if shown != resident else "order"
        raise Wrong(
            f"`evict` changed `{changed}`: it only says what leaves, and whoever asked removes it"
        )
    if victim is None:
        raise Wrong(f"with {asked}, `evict` gives None: is a `return` missing, or was none chosen?")
    if not isinstance(victim, Hashable):
        raise Wrong(
            f"`evict` gives a {type(victim).__name__}, {victim!r}: one unit leaves, and it is "
            "named as in `resident` (NumPy makes arrays of units that are tuples)"
        )
    if victim not in resident:
        raise Wrong(not_there(victim, resident, order, now, asked))
    again = call(evict, list(resident), list(order), now)
    if again != victim:
        raise Wrong(
            f"asked twice with {asked}, `evict` first lets {victim!r} go and then {again!r}: the "
            "order should decide, not chance, and not something remembered between calls"
        )
    return victim


def about(resident: list, order: list, now: int) -> str:
    rest = order[now + 1 :]
    coming = (
        f"{rest[:6]}{' and so on' if len(rest) > 6 else ''} to come" if rest else "no more to come"
    )
    return f"resident {resident}, order[now] {order[now]!r}, and {coming}"


def not_there(victim: Hashable, resident: list, order: list, now: int, asked: str) -> str:
    found = f"with {asked}, `evict` gives {victim!r}, which is not on the chip"
    if isinstance(victim, int) and 0 <= victim < max(len(resident), len(order)):
        return f"{found}: that looks like a place in a list, where the unit itself is asked for"
    if victim in order:
        return f"{found}: choose among the units of `resident`, not of `order`"
    return found


# What a rule may look at: of each unit a number; the unit with the highest number leaves.


def next_use(unit: Hashable, d: Decision) -> int:
    return next((p for p in range(d.now, len(d.order)) if d.order[p] == unit), NEVER)


def last_use(unit: Hashable, d: Decision) -> int:
    return max(p for p in range(d.now + 1) if d.order[p] == unit)


def oldest_use(unit: Hashable, d: Decision) -> int:
    return -last_use(unit, d)


def most(score: Callable, d: Decision, in_use_too: bool = False) -> list[Hashable]:
    """Units with the highest score among those that can leave."""
    choice = [unit for unit in d.resident if in_use_too or unit != d.order[d.now]]
    scores = [score(unit, d) for unit in choice]
    return [unit for unit, found in zip(choice, scores) if found == max(scores)]


def furthest(resident: list, order: list, now: int) -> Hashable:
    return most(next_use, Decision(resident, order, now, None))[0]


def known(score: Callable, instead: int) -> Callable:
    """`score`, but with another number for what is never used again."""
    return lambda unit, d: instead if next_use(unit, d) == NEVER else score(unit, d)


def newest(unit: Hashable, d: Decision) -> bool:
    return unit == d.order[d.now]


NEWEST = (
    "it always is that one: is it what came last that leaves, or what is used soonest? Or are uses "
    "looked for from the beginning of the order, where they are over? The search begins at `now`"
)


def searched_behind(unit: Hashable, d: Decision) -> int:
    return next_use(unit, d._replace(now=d.now + 1))


BEHIND = (
    "the search begins behind `now`, where the unit in use looks like any other: it is needed at "
    "`now` itself"
)
MISTAKES = [
    (
        oldest_use,
        "it decides as the least recently used rule does: it looks at the past, where a unit was "
        "used last, and on a cycle the unit used longest ago is the very one that comes next",
    ),
    (
        lambda unit, d: -d.resident.index(unit),
        "it decides by who came first (FIFO): how long a unit has been on the chip says nothing "
        "about when it is used again",
    ),
    (
        last_use,
        "it lets the most recently used unit go: that is good on a cycle, but only because such a "
        "unit comes again last there; look for the next use itself",
    ),
    (
        lambda unit, d: d.resident.index(unit),
        "it lets the unit go that came last before this one, whatever is used next: look at the "
        "order from `now` on",
    ),
    (
        lambda unit, d: -next_use(unit, d),
        "it is turned round: the unit that is used soonest leaves, and has to be fetched again at "
        "once",
    ),
    (
        known(next_use, -1),
        "a unit that is never used again is kept, as if it were used soonest: it is the "
        "one that nobody will miss",
    ),
    (
        known(lambda unit, d: -next_use(unit, d), NEVER),
        "what is never used again leaves, which is right, but among the others it is turned round: "
        "the unit that is used soonest leaves",
    ),
    (
        lambda unit, d: d.order.index(unit),
        "it looks for the first use in the whole order, and finds one that is over: the search has "
        "to begin at `now`",
    ),
    (
        lambda unit, d: max(p for p, other in enumerate(d.order) if other == unit),
        "it looks at the last use of each unit in the whole order, where the next use counts",
    ),
    (
        known(lambda unit, d: max(p for p, other in enumerate(d.order) if other == unit), NEVER),
        "it looks at the last of the uses to come, where the next one counts",
    ),
    (
        lambda unit, d: -d.order[d.now :].count(unit),
        "it counts how often a unit is still used: when it is used next is what matters, however "
        "often it comes after that",
    ),
    (
        lambda unit, d: -d.order.count(unit),
        "it counts how often a unit is used in the whole order: when it is used next is what "
        "matters, however often it comes after that",
    ),
    (
        lambda unit, d: -d.order[: d.now].count(unit),
        "it counts how often a unit was used in the past: what matters is when it is used next",
    ),
]  # fmt: skip


def explanation(decisions: list[Decision], rules: list, in_use_too: bool = False) -> str:
    """What is to be said of the rule that explains every decision; "" if none does."""
    for score, why in rules:
        if all(d.victim in most(score, d, in_use_too) for d in decisions):
            return why
    return ""


def first_loss(decisions: list[Decision]) -> str:
    """The first decision for a unit that comes again sooner than another one."""
    d = next(d for d in decisions if d.victim not in most(next_use, d))
    better = furthest(*d[:3])
    soon, late = next_use(d.victim, d) - d.now, next_use(better, d) - d.now
    when = "is never used again" if late > len(d.order) else f"comes again after {late}"
    return (
        f"for example, with {about(*d[:3])}, it lets {d.victim!r} go, which comes again after "
        f"{soon} use{'s' * (soon != 1)}, and keeps {better!r}, which {when}"
    )
