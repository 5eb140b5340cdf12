"""What is fetched and what leaves, on a chip whose reader and medium are made up.

All units are of one size, and the limit is a whole number of them, so that a brute force can say
how few fetches would do.
"""

import functools
import random
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinygrad_edu.memory import residency as residency_module
from tinygrad_edu.memory.budget import Budget
from tinygrad_edu.memory.residency import UPDATE, Residency
from tinygrad_edu.memory.timeline import Timeline
from tinygrad_edu.memory.transfer import Job, Mover

SIZE = 1024
BYTE = np.dtype(np.uint8)


class Reader:
    """Does every job at once."""

    alive, failure = True, None

    def submit(self, move, what):
        job = Job(move, what, self)
        job.run()
        return job


class Link:
    def __init__(self, seed=None):
        self.random = None if seed is None else random.Random(seed)

    def carry(self, nbytes, move):
        if self.random is not None:
            time.sleep(self.random.choice((0, 0, 0.002)))
        move()
        return 0.0


class Blob:
    """A weight whose bytes all are its number; also its own owner."""

    name, shape, written, updated = "w", (SIZE,), None, True

    def __init__(self, number, log):
        self.number, self.log, self.what, self.owner = number, log, f"weight {number}", self

    def read(self, offset, buffer):
        self.log.append(self.number)
        buffer.fill(self.number)


class Machine:
    """A chip with room for `room` units, and nothing else on it."""

    def __init__(self, room, reader=None, seed=None):
        self.fetches, self.blobs, self.units = [], {}, {}
        self.budget = Budget(room * SIZE, poison=True)
        self.budget.make_room = self.make_room
        self.residency = Residency(self.budget, reader or Reader(), Link(seed), Timeline())

    def make_room(self, nbytes, what):
        while self.budget.taken + nbytes > self.budget.limit:
            assert self.residency.evict_one(), "no room for what is in use"

    def unit(self, number):
        if number not in self.units:
            self.blobs[number] = Blob(number, self.fetches)
            self.units[number] = self.residency.add((number,), self.blobs[number], 0, SIZE)
        return self.residency.units[number,]

    def use(self, number):
        if number == UPDATE:
            self.residency.saw(UPDATE)
            return
        array = self.residency.borrow(self.unit(number), (SIZE,), BYTE)
        assert not array.flags.writeable
        assert (array == number).all()
        assert self.budget.taken + self.budget.free <= self.budget.limit

    def run(self, trace):
        """How many units are fetched during `trace`."""
        before = len(self.fetches)
        for number in trace:
            self.use(number)
        return len(self.fetches) - before


def least(trace, room, counted):
    """The fewest fetches that any policy can do with, in the last `counted` loans of `trace`."""
    start = len(trace) - counted

    @functools.cache
    def rest(i, here):
        if i == len(trace):
            return 0
        if trace[i] in here:
            return rest(i + 1, here)
        price = int(i >= start)
        if len(here) < room:
            return price + rest(i + 1, here | {trace[i]})
        return price + min(rest(i + 1, here - {out} | {trace[i]}) for out in here)

    return rest(0, frozenset())


@pytest.mark.parametrize("update", [[], [UPDATE]], ids=["", "update"])
@pytest.mark.parametrize("count", [3, 5, 7])
def test_there_and_back_again_fetches_as_little_as_possible(count, update):
    """Training: every weight on the way forward, and in the other order on the way back."""
    step = [*range(count), *reversed(range(count))]
    for room in range(2, count + 1):
        machine = Machine(room)
        machine.run(step + update)
        best = least(tuple(step * 3), room, len(step))
        assert [machine.run(step + update) for _ in range(3)] == [best] * 3
        assert best == 2 * (count - room)


@pytest.mark.parametrize("count", [5, 8])
def test_round_and_round_fetches_little_more_than_the_least(monkeypatch, count):
    """Evaluation. What is fetched ahead takes room that the best policy would still use: that of
    one unit that is on its way and of one that is in use."""
    monkeypatch.setattr(residency_module, "AHEAD", SIZE)
    monkeypatch.setattr(Residency, "idle_room", 1 << 40)
    step, times = list(range(count)), 6
    for room in range(3, count + 1):
        machine = Machine(room)
        machine.run(step * 2)
        best = least(tuple(step * (2 + times)), max(1, room - 2), times * count)
        assert machine.run(step * times) <= best
    assert machine.run(step * times) == 0  # all of it fits


def test_what_is_used_furthest_in_the_future_leaves_first():
    machine = Machine(3)
    machine.run([1, 2, 3, 4, UPDATE] * 3)  # 1 and 2 stay, then, and 3 or 4 makes way
    assert machine.residency.schedule.place is not None
    machine.run([1, 2, 3])
    idle = {unit.key[0]: machine.residency.schedule.next_use(unit.key)
            for unit in machine.residency.resident.values()}  # fmt: skip
    furthest = max(idle, key=idle.get)
    assert machine.residency.evict_one()
    assert (furthest,) not in machine.residency.resident
    assert len(machine.residency.resident) == len(idle) - 1


def test_of_what_nothing_is_known_the_one_used_longest_ago_leaves():
    machine = Machine(3)
    machine.run([1, 2, 3, 1])
    machine.use(4)
    assert set(machine.residency.resident) == {(3,), (1,), (4,)}


@pytest.mark.parametrize("room", [2, 3, 5])
def test_nothing_is_fetched_past_an_update(room):
    machine = Machine(room)
    step = [*range(10), UPDATE]
    machine.run(step * 4)
    for number in range(10):
        machine.use(number)
        ahead = machine.fetches[-1]
        assert set(machine.residency.resident) <= {(n,) for n in range(10)}
    # the last loans of a step: nothing of the next one is on its way
    assert ahead == 9


def test_during_an_update_only_what_has_its_numbers_is_fetched():
    machine = Machine(8)
    machine.run([*range(8), UPDATE] * 4)
    for blob in machine.blobs.values():
        blob.updated = False
    for number in range(8):
        machine.residency.drop((number,))
    before = len(machine.fetches)
    machine.residency.look_ahead()
    assert machine.fetches[before:] == []
    for number in (0, 1, 3):
        machine.blobs[number].updated = True
    machine.residency.look_ahead()
    assert machine.fetches[before:] == [0, 1]


@pytest.mark.parametrize("need", range(5))
def test_nothing_is_fetched_ahead_that_would_not_fit_beside_the_work(need):
    """Between loans the work takes `need` units' room, so there are `4 - need` for weights."""
    machine = Machine(5)

    def step():
        for number in range(12):
            machine.use(number)
            work = machine.budget.empty((need * SIZE,), BYTE) if need else None
            del work
        machine.use(UPDATE)

    for _ in range(4):
        step()
    evictions = []
    real = machine.residency._evict
    machine.residency._evict = lambda unit: (evictions.append(unit.last_use), real(unit))
    waits = len(machine.fetches)
    step()
    assert len(machine.fetches) - waits <= 12  # nothing comes twice
    assert machine.budget.peak <= 5 * SIZE


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.integers(1, 6))
def test_every_loan_has_its_numbers_whatever_the_order(trace, room):
    machine = Machine(room)
    machine.run(trace * 3 + [UPDATE] + trace[::-1] * 2 + trace)
    assert len(machine.residency.resident) <= room
    assert machine.budget.needed == 0
    assert machine.budget.held["idle"] == len(machine.residency.resident) * SIZE


def test_fetches_do_not_depend_on_how_slow_the_reader_is():
    step = [*range(9), *reversed(range(9)), UPDATE]
    detour = [3, 1, 4, 1, 5]
    trace = step * 3 + detour + step * 2
    quick = Machine(4)
    quick.run(trace)
    for seed in range(3):
        reader = Mover("reader")
        slow = Machine(4, reader, seed)
        slow.run(trace)
        reader.close()
        assert slow.fetches == quick.fetches


def test_a_unit_that_is_lent_stays_and_one_that_changed_is_fetched_anew():
    machine = Machine(3)
    held = machine.residency.borrow(machine.unit(1), (SIZE,), BYTE)
    view = held[10:].reshape(2, -1)
    del held
    machine.run([2, 3, 4, 5])
    assert (1,) in machine.residency.resident and (view == 1).all()
    machine.residency.drop((1,))
    assert (view == 1).all() and machine.budget.held["weights"] == SIZE
    machine.use(1)
    assert machine.fetches.count(1) == 2
    del view
    assert machine.budget.held["weights"] == 0
    machine.residency.drop((1,))
    machine.use(1)
    assert machine.fetches.count(1) == 3


def test_two_loans_of_one_unit_are_one_copy():
    machine = Machine(1)
    a = machine.residency.borrow(machine.unit(7), (SIZE,), BYTE)
    b = machine.residency.borrow(machine.unit(7), (SIZE // 4,), np.dtype(np.float32))
    assert np.shares_memory(a, b) and machine.budget.needed == SIZE
    del a
    assert machine.budget.needed == SIZE
    del b
    assert machine.budget.needed == 0 and machine.fetches == [7]


def test_an_interrupted_wait_is_no_arrival(monkeypatch):
    """Ctrl-C in the middle of a fetch: the next loan waits for the same bytes."""
    machine = Machine(2)
    real, calls = residency_module.wait_for, []

    def interrupted(job, *rest):
        calls.append(job)
        if len(calls) == 1:
            raise KeyboardInterrupt
        real(job, *rest)

    monkeypatch.setattr(residency_module, "wait_for", interrupted)
    with pytest.raises(KeyboardInterrupt):
        machine.use(1)
    assert machine.budget.needed == 0
    machine.use(1)
    assert calls[1] is calls[0] and machine.fetches == [1]
