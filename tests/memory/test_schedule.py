"""The recording of loans: what it predicts, and that it stays small."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinygrad_edu.memory.residency import UPDATE
from tinygrad_edu.memory.schedule import NEVER, Schedule

keys = st.lists(st.integers(0, 5), max_size=60)


def expected(schedule):
    return next((key for _, key in schedule.ahead()), None)


def surprises(schedule, sequence):
    """The places of `sequence` at which something else, or nothing, was expected."""
    wrong = []
    for i, key in enumerate(sequence):
        if expected(schedule) != key:
            wrong.append(i)
        schedule.saw(key)
    return wrong


@given(st.permutations(range(9)), st.integers(2, 9))
def test_a_repeating_order_is_known_from_its_second_period_on(order, length):
    order = order[:length]
    schedule = Schedule()
    surprises(schedule, order)
    # its first loan follows the last for the first time, its second tells which period this is
    assert set(surprises(schedule, order)) <= {0, 1}
    for _ in range(3):
        assert surprises(schedule, order) == []
        ahead = [key for _, key in schedule.ahead()]
        assert ahead[:length] == order


def passes(layers, micro_batches=1, backward=True):
    """What training borrows: every layer forward, the output table in chunks, and back again."""
    forward = ["rows", *(f"h{i}" for i in range(layers)), "c0", "c1", "c2"]
    back = ["c0", "c1", "c2", *(f"h{i}" for i in reversed(range(layers)))]
    if not backward:
        return forward
    return [*(forward + back) * micro_batches, UPDATE]


@given(st.integers(1, 5), st.integers(1, 4))
def test_training_is_known_after_two_steps_with_micro_batches_too(layers, micro_batches):
    schedule, step = Schedule(), passes(layers, micro_batches)
    surprises(schedule, step * 2)
    assert surprises(schedule, step * 3) == []


def test_between_training_and_evaluation_only_the_changes_surprise():
    schedule, training, evaluation = Schedule(), passes(4), passes(4, backward=False)
    for _ in range(3):
        surprises(schedule, training * 3 + evaluation * 3)
    assert len(surprises(schedule, training * 3 + evaluation * 3)) <= 4
    assert len(training) * 3 + len(evaluation) * 3 > 60


@given(keys, st.integers(4, 8))
def test_a_departure_surprises_at_its_ends_only(detour, length):
    order = list(range(10, 10 + length))
    schedule = Schedule()
    surprises(schedule, order * 3)
    surprises(schedule, detour)
    # where the old recording goes on with the detour, its end surprises once more
    assert set(surprises(schedule, order * 3)) <= {0, 1, length, 2 * length}
    assert surprises(schedule, order * 2) == []


@given(keys, st.integers(0, 6))
def test_next_use_is_that_of_a_search_in_the_recording(sequence, key):
    schedule = Schedule()
    for seen in sequence:
        schedule.saw(seen)
    assert schedule.keys == sequence
    if schedule.place is None:
        found = NEVER
    else:
        places = range(schedule.place, len(sequence))
        found = next((i for i in places if sequence[i] == key), NEVER)
    assert schedule.next_use(key) == found
    assert list(schedule.ahead()) == (
        [] if schedule.place is None else list(enumerate(sequence))[schedule.place :]
    )


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 99)), min_size=1, max_size=80),
       st.integers(4, 12))  # fmt: skip
def test_a_short_memory_keeps_the_latest_loans_and_their_needs(seen, longest):
    short, long = Schedule(longest), Schedule()
    for key, need in seen:
        short.saw(key, need)
        long.saw(key, need)
        assert len(short.keys) <= longest
        kept = len(short.keys)
        assert kept >= min(len(long.keys), longest // 2)
        assert short.keys == long.keys[-kept:]
        # the need after the last loan is not known yet
        assert short.needs[:-1] == long.needs[-kept:-1]
        assert sum(len(places) for places in short.places.values()) == kept
        assert len(short.pairs) <= kept
        assert short.place is None or 0 <= short.place < kept
        if short.place is not None:
            assert short.need_before(short.place) == ([0, *short.needs])[short.place]


@settings(max_examples=30)
@given(st.integers(2, 6))
def test_a_memory_of_two_periods_is_enough_to_predict(length):
    order = list(range(length))
    schedule = Schedule(longest=4 * length)
    surprises(schedule, order * 4)
    assert surprises(schedule, order * 20) == []


@pytest.mark.parametrize("known", [1, 2, 3])
def test_nothing_is_expected_of_what_was_never_seen(known):
    schedule = Schedule()
    for key in range(known):
        schedule.saw(key)
    assert schedule.place is None and list(schedule.ahead()) == []
    assert all(schedule.next_use(key) == NEVER for key in range(known))
    assert list(itertools.islice(schedule.ahead(), 3)) == []
