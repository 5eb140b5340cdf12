"""The chip's account: every byte charged to one kind, and never more in all than the limit."""

import gc
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinygrad_edu.memory import budget as budget_module
from tinygrad_edu.memory.budget import KINDS, LARGE, MAPPED, NEEDED, PAGE, Budget, block_size

F32 = np.dtype(np.float32)
several = settings(max_examples=80, deadline=None)
sizes = st.sampled_from([0, 1, 16, 17, 100, 1000, MAPPED // 4 - 1, MAPPED // 4, 50_000])
actions = st.lists(
    st.tuples(
        st.sampled_from(["empty", "empty", "free", "view", "outgoing", "gone", "idle"]),
        sizes,
        st.sampled_from(["activations", "workspace"]),
        st.integers(0, 99),
    ),
    max_size=40,
)


class Watched(Budget):
    """Checks the invariant wherever memory changes hands."""

    def block(self, nbytes, kind, what):
        block = super().block(nbytes, kind, what)
        self.check()
        return block

    def release(self, block):
        super().release(block)
        self.check()

    def check(self):
        assert self.taken + self.free <= self.limit
        assert min(self.held.values()) >= 0 and self.free >= 0
        assert self.needed == sum(self.held[kind] for kind in NEEDED)
        assert self.taken == sum(self.held.values())
        waiting = [block for blocks in self._free.values() for block in blocks]
        assert self.free == sum(block.nbytes for block in waiting)
        assert set(self._freed) == {id(block) for block in waiting}


class Full(Exception):
    pass


def refusing(limit, poison=False):
    budget = Watched(limit, poison)

    def make_room(nbytes, what):
        raise Full(what)

    budget.make_room = make_room
    return budget


@several
@given(actions, st.sampled_from([64, 5000, 400_000, 10_000_000]), st.booleans())
def test_the_account_is_that_of_a_list_of_arrays(found, limit, poison):
    budget = refusing(limit, poison)
    held, peak, idle = [], 0, []  # [array, kind, bytes, array on its way out]
    most = dict.fromkeys(NEEDED, 0)
    for action, size, kind, choice in found:
        if action == "empty":
            nbytes = block_size(4 * size)
            before = sum(entry[2] for entry in held) + sum(block.nbytes for block in idle)
            try:
                array = budget.empty((size,), F32, kind)
            except Full:
                assert before + nbytes > limit
                continue
            assert before + nbytes <= limit
            assert array.shape == (size,) and array.dtype == F32 and array.flags.writeable
            assert array.ctypes.data % 64 == 0
            array.fill(choice)
            held.append([array, kind, nbytes, None])
        elif action == "idle" and 64 * (1 + len(idle)) + budget.taken <= limit:
            idle.append(budget.block(1, "idle", "a copy"))
        elif action == "free" and held:
            entry = held[choice % len(held)]
            entry[0] = None
            entry[1] = "leaving"
        elif action == "view" and held:  # the block lives as long as anything looks into it
            entry = held[choice % len(held)]
            entry[0] = None if entry[0] is None else entry[0][1:].view(np.uint8)[:]
        elif action == "outgoing" and held:
            entry = held[choice % len(held)]
            if entry[0] is not None:
                entry[3] = budget.outgoing(entry[0])
                np.testing.assert_array_equal(entry[3], entry[0])
        elif action == "gone" and held:
            held[choice % len(held)][3] = None
        array = entry = None
        held = [entry for entry in held if entry[0] is not None or entry[3] is not None]
        budget.check()
        for name in NEEDED:
            total = sum(entry[2] for entry in held if entry[1] == name)
            assert budget.held[name] == total
            most[name] = max(most[name], total)
        assert budget.held["idle"] == 64 * len(idle)
        assert budget.held["leaving"] == sum(e[2] for e in held if e[1] == "leaving")
        peak = max(peak, sum(entry[2] for entry in held if entry[1] in NEEDED))
        assert budget.peak == peak and sum(budget.at_peak.values()) == peak
    assert {name: budget.peak_by_kind[name] for name in NEEDED} == most
    held.clear()
    assert budget.needed == 0 and budget.leases == {}


def test_no_array_shares_bytes_with_another_that_lives():
    budget = refusing(10**6)
    arrays = [budget.empty((n,), F32) for n in (1, 17, 300, 17, 5000)]
    for i, array in enumerate(arrays):
        array.fill(i)
    assert all((array == i).all() for i, array in enumerate(arrays))


def test_a_block_is_used_again_and_is_poisoned_in_between():
    budget = refusing(10**6, poison=True)
    for count in (100, 50_000):
        array = budget.empty((count,), F32)
        array.fill(1.0)
        place, mapped = array.ctypes.data, budget.mapped
        del array
        again = budget.empty((count,), F32)
        assert again.ctypes.data == place and budget.mapped == mapped
        assert np.isnan(again).all()


def test_a_view_keeps_the_block_and_its_charge():
    budget = refusing(10**6)
    array = budget.empty((100, 10), F32)
    view = array.T[3:5].reshape(-1)[::2]
    column = array[:, 1]
    nbytes = budget.needed
    del array, view
    assert budget.needed == nbytes > 0
    del column
    assert budget.needed == 0


def test_what_is_outgoing_is_needed_until_nobody_else_holds_it():
    budget = refusing(10**6)
    array = budget.empty((100,), F32)
    array[:] = range(100)
    first, second = budget.outgoing(array[5:60:2]), budget.outgoing(array)
    np.testing.assert_array_equal(first, range(5, 60, 2))
    assert budget.needed == 448 and budget.held["leaving"] == 0
    del array
    assert budget.needed == 0 and budget.held["leaving"] == 448
    del first
    assert budget.held["leaving"] == 448 and budget.free == 0
    del second
    assert budget.held == dict.fromkeys(KINDS, 0) and budget.free == 448
    assert budget.peak == 448
    foreign = np.zeros(100, np.float32)
    assert budget.outgoing(foreign) is foreign


def test_what_is_idle_or_leaving_counts_against_the_limit_but_not_as_needed():
    budget = refusing(1024)
    idle = budget.block(512, "idle", "a copy")
    leaving = budget.outgoing(budget.empty((64,), F32))
    assert (
        leaving.nbytes == 256 and budget.needed == 0 and budget.peak == 256 and budget.taken == 768
    )
    with pytest.raises(Full):
        budget.empty((128,), F32)
    other = budget.empty((64,), F32)
    assert budget.peak == 256 and other.nbytes == 256
    budget.charge("idle", -idle.nbytes)
    budget.release(idle)
    assert budget.empty((128,), F32).shape == (128,)


def test_freed_blocks_go_back_to_the_system_when_others_need_the_room(monkeypatch):
    mappings = []

    def mapped(nbytes):
        block = original(nbytes)
        mappings.append(weakref.ref(block))
        return block

    original = budget_module.mapped_block
    budget = refusing(4 * LARGE)
    budget.new_mapping = mapped
    first = [budget.empty((LARGE // 4,), F32) for _ in range(4)]  # 4 x 1 MiB: all there is
    assert len(mappings) == 4 and all(ref() is not None for ref in mappings)
    while first:
        del first[0]
    assert budget.free == 4 * LARGE
    large = budget.empty((LARGE // 2,), F32)  # 2 MiB: the two freed longest ago leave
    gc.collect()
    assert [ref() is None for ref in mappings] == [True, True, False, False, False]
    assert budget.free == 2 * LARGE and large.nbytes == 2 * LARGE


@given(st.integers(0, 1 << 30))
def test_a_block_has_room_and_wastes_little(nbytes):
    size = block_size(nbytes)
    assert size >= max(64, nbytes) and size % 64 == 0
    assert size - nbytes < max(65, PAGE if nbytes < LARGE else nbytes / 16 + 1)
    assert block_size(size) == size
    assert size < MAPPED or size % PAGE == 0


def test_the_high_water_between_two_looks():
    budget = refusing(10**6)
    a = budget.empty((16,), F32)
    b = budget.empty((16,), F32)
    del b
    assert budget.take_high() == 128
    assert budget.take_high() == 64
    del a
    assert budget.take_high() == 64
    assert budget.take_high() == 0
