"""The virtual clock: its bounds, its monotony, and a plain oracle that agrees exactly."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygrad_edu.memory.clock import LANES, Work, play
from tinygrad_edu.memory.hardware import Hardware, hardware
from tinygrad_edu.memory.retime import measured_rates, retime
from tinygrad_edu.memory.timeline import Timeline

NAMES = "abcd"
amounts = st.integers(0, 40)


def unit(latency=0, **changes):
    """A chip that takes a nanosecond per FLOP, per byte touched, fetched, drained, or updated."""
    fields = dict(
        name="unit", peak={"fp32": 1e9}, achieved=1, memory=1, memory_bandwidth=1e9, bandwidth=1e9,
        latency=latency / 1e9, optimizer_bandwidth=1e9,
    )  # fmt: skip
    return Hardware(**(fields | changes))


ops = st.tuples(
    st.sampled_from([*NAMES, "other"]), st.sampled_from(["forward", "backward"]), amounts,
    amounts, st.one_of(st.just(0), amounts), st.one_of(st.just(0), amounts),
).map(lambda drawn: Work(*drawn))  # fmt: skip
updates = st.tuples(st.sampled_from(NAMES), amounts).map(
    lambda drawn: Work(drawn[0], "update", touched=drawn[1])
)
anything = st.tuples(
    st.lists(ops, min_size=1, max_size=8),
    st.lists(updates, max_size=4, unique_by=lambda work: work.name),
).map(lambda parts: [*parts[0], *parts[1]])


@st.composite
def zigzags(draw):
    """A training step: layers forward, then backward, then updated."""
    n = draw(st.integers(1, 5))
    size = [draw(st.integers(1, 40)) for _ in range(n)]
    forward = [Work(str(i), "forward", draw(amounts), fetch=size[i]) for i in range(n)]
    backward = [
        Work(str(i), "backward", draw(amounts), fetch=draw(st.sampled_from([0, size[i]])),
             drain=size[i])
        for i in reversed(range(n))
    ]  # fmt: skip
    return [*forward, *backward, *(Work(str(i), "update", touched=draw(amounts)) for i in range(n))]


def times(works, kind):
    return [getattr(work, kind) for work in works if work.phase != "update"]


def compute_sum(works):
    return sum(times(works, "flops")) + sum(times(works, "touched"))


# The oracle: every time is asked for by its definition, and nothing is carried along.


def oracle(works, slots, clip, latency=0, shared=False, steps=2, norm=None, order=None):
    """Nanoseconds of the last step on a `unit` chip."""
    items = [w for w in works if w.phase != "update"]
    todo = order or [w for w in works if w.phase == "update"]
    norm = sum(w.drain for w in items) if norm is None else norm
    fetching = [i for i, w in enumerate(items) if w.fetch]
    draining = [i for i, w in enumerate(items) if w.drain]
    begin, done, all_done, length = 0, {}, 0, None
    for _ in range(steps):
        there, c, g = {}, {}, {}
        link = begin
        for i, w in enumerate(items):
            if w.name in [u.name for u in todo]:
                updated = max(begin, done.get(w.name, 0))
            else:
                updated = max(begin, all_done) if w.fetch else begin
            if w.fetch:
                k = fetching.index(i)
                buffer = c[fetching[k - slots]] if k >= slots else begin
                link = max(link, buffer, updated) + w.fetch
                there[i] = link + latency
            else:
                there[i] = updated
            room = begin
            if w.drain and draining.index(i) >= slots:
                room = g[draining[draining.index(i) - slots]]
            before = c[i - 1] if i else begin
            c[i] = max(before, there[i], room) + w.flops + w.touched
            if w.drain:
                g[i] = max([c[i], *g.values()]) + w.drain
        last = max([c[len(items) - 1], *(x + latency for x in g.values())])
        next_begin = max(all_done, last) + norm if clip else last
        free = next_begin if clip else all_done
        for u in todo:
            if clip:
                ready = next_begin
            else:
                mine = [g[i] + latency for i in draining if items[i].name == u.name]
                ready = max(mine) if mine else last
            if shared:
                ready = max(ready, c[len(items) - 1])
            free = max(free, ready) + u.touched
            done[u.name] = free
        all_done = free
        if shared:
            next_begin = max(next_begin, free)
        length, begin = next_begin - begin, next_begin
    return length


@given(anything, st.integers(1, 4), st.integers(0, 9), st.booleans(), st.integers(1, 3))
def test_a_plain_oracle_agrees(works, slots, latency, shared, steps):
    chip = unit(latency, shared_cores=shared)
    found = play(works, chip, slots=slots, steps=steps)
    assert found.step_ns == oracle(works, slots, True, latency, shared, steps)
    todo = [w for w in works if w.phase == "update"]
    items = [w for w in works if w.phase != "update"]
    last = {w.name: i for i, w in enumerate(items) if w.drain}
    as_they_leave = sorted(todo, key=lambda u: last.get(u.name, 99))
    free = play(works, chip, slots=slots, steps=steps, clip=False)
    assert free.step_ns == min(
        oracle(works, slots, False, latency, shared, steps, order=order)
        for order in (todo, as_they_leave)
    )


@given(anything, st.integers(1, 4), st.integers(0, 9), st.booleans(), st.integers(1, 3))
def test_no_step_beats_its_bounds(works, slots, latency, clip, steps):
    # Without clipping the update of one step may delay another: a single step is the sure case.
    found = play(works, unit(latency), slots=slots, clip=clip, steps=steps if clip else 1)
    fetches, took = times(works, "fetch"), compute_sum(works)
    # What comes before the first fetch may hide it, and what comes after the last is compute.
    fetching = [i for i, fetch in enumerate(fetches) if fetch]
    if fetching:
        ops_ns = [w.flops + w.touched for w in works if w.phase != "update"]
        after_first = sum(ops_ns[fetching[0] :])
        assert found.step_ns >= fetches[fetching[0]] + latency + after_first
        assert found.step_ns >= sum(fetches) + latency + sum(ops_ns[fetching[-1] :])
    assert found.step_ns >= took
    drains = times(works, "drain")
    if any(drains):
        first = next(i for i, drain in enumerate(drains) if drain)
        ops_ns = [w.flops + w.touched for w in works if w.phase != "update"]
        assert found.step_ns >= sum(ops_ns[: first + 1]) + sum(drains) + latency


@given(zigzags(), st.integers(1, 4), st.integers(0, 9))
def test_compute_and_the_first_fetch_are_a_lower_bound(works, slots, latency):
    for clip in (True, False):
        found = play(works, unit(latency), slots=slots, clip=clip)
        assert found.step_ns >= compute_sum(works) + works[0].fetch + latency
        last = [w for w in works if w.phase != "update"][-1]
        assert found.step_ns >= sum(times(works, "fetch")) + last.flops


@given(zigzags(), st.integers(1, 4), st.sampled_from([2, 3, 10]), st.booleans(), st.booleans())
def test_faster_links_and_more_slots_never_make_a_step_longer(works, slots, factor, clip, shared):
    chip = unit(7, shared_cores=shared)
    before = play(works, chip, slots=slots, clip=clip).step_ns
    assert play(works, chip, slots=slots + 1, clip=clip).step_ns <= before
    for changes in (
        {"bandwidth": factor * 1e9},
        {"optimizer_bandwidth": factor * 1e9},
        {"peak": {"fp32": factor * 1e9}},
        {"latency": 7e-9 / factor},
    ):
        assert play(works, chip.but(**changes), slots=slots, clip=clip).step_ns <= before, changes


@given(anything, st.integers(1, 4), st.integers(1, 4))
def test_with_clipping_that_holds_for_any_program(works, slots, factor):
    before = play(works, unit(), slots=slots).step_ns
    assert play(works, unit(), slots=slots + 1).step_ns <= before
    assert play(works, unit(bandwidth=factor * 1e9), slots=slots).step_ns <= before


@given(anything, st.integers(1, 4), st.integers(0, 9), st.booleans())
def test_clipping_is_never_faster(works, slots, latency, shared):
    chip = unit(latency, shared_cores=shared)
    with_norm, without = (play(works, chip, slots=slots, clip=clip) for clip in (True, False))
    assert with_norm.step_ns >= without.step_ns


@given(st.lists(st.tuples(amounts, st.integers(1, 40)), min_size=1, max_size=8), st.integers(0, 9))
def test_one_slot_is_serial(layers, latency):
    works = [Work(str(i), "forward", flops, fetch=fetch) for i, (flops, fetch) in enumerate(layers)]
    serial = sum(flops + fetch + latency for flops, fetch in layers)
    assert play(works, unit(latency), slots=1).step_ns == serial
    hidden = sum(flops for flops, _ in layers)
    if len(layers) > 1 and min(flops for flops, _ in layers) > 0:
        assert play(works, unit(latency), slots=2).step_ns < serial
    assert play(works, unit(latency), slots=2).step_ns >= hidden


@given(st.lists(st.tuples(amounts, amounts), min_size=1, max_size=8), st.booleans())
def test_without_transfers_a_step_is_its_ops(layers, clip):
    works = [Work("w", "forward", flops, touched) for flops, touched in layers]
    found = play(works, unit(5), clip=clip)
    assert found.step_ns == found.compute_ns == compute_sum(works)
    assert found.bubble_ns == 0 and not any(found.stall_ns.values())
    assert found.limited_by == "compute"


@given(anything, st.integers(1, 4), st.integers(0, 9), st.booleans(), st.booleans())
def test_the_account_adds_up_and_lanes_never_overlap(works, slots, latency, clip, shared):
    found = play(works, unit(latency, shared_cores=shared), slots=slots, clip=clip)
    assert found.step_ns == found.compute_ns + sum(found.stall_ns.values()) + found.bubble_ns
    assert min(found.bubble_ns, *found.stall_ns.values()) >= 0
    for lane in LANES:
        spans = [(e.start, e.end) for e in found.events if e.lane == lane]
        assert all(type(t) is int for span in spans for t in span)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
    computing = [(e.start, e.end) for e in found.events if e.lane == "compute"]
    waiting = [(start, end) for _, start, end, _ in found.stalls]
    assert all(type(t) is int and s < e for s, e in waiting for t in (s, e))
    both = sorted(span for span in computing + waiting if span[0] < span[1])
    assert all(a[1] == b[0] for a, b in itertools.pairwise(both))  # nothing unexplained
    for kind, lane in (("fetch", "fetch"), ("drain", "drain")):
        moved = sum(e.bytes for e in found.events if e.lane == lane)
        assert moved == 2 * sum(times(works, kind))


@given(zigzags(), st.integers(1, 4), st.booleans(), st.booleans())
def test_the_second_step_is_the_steady_one(works, slots, clip, shared):
    chip = unit(3, shared_cores=shared)
    second, fifth = (play(works, chip, slots=slots, clip=clip, steps=n) for n in (2, 5))
    assert (second.step_ns, second.stall_ns) == (fifth.step_ns, fifth.stall_ns)


def test_the_bubble_is_tail_norm_first_update_and_first_fetch():
    works = [
        Work("a", "forward", 100, fetch=5), Work("b", "forward", 100, fetch=5),
        Work("b", "backward", 100, drain=7), Work("a", "backward", 100, drain=7),
        Work("a", "update", touched=30), Work("b", "update", touched=30),
    ]  # fmt: skip
    found = play(works, unit(2), norm_bytes=11)
    assert found.bubble_ns == (7 + 2) + 11 + 30 + (5 + 2)
    assert found.step_ns == 400 + found.bubble_ns
    # The update of `a` alone is waited for; that of `b` is over before `a` has been used.
    assert play(works, unit(2), norm_bytes=11, steps=1).bubble_ns == (5 + 2) + (7 + 2) + 11
    assert play(works, unit(2, shared_cores=True), norm_bytes=11).bubble_ns == found.bubble_ns + 30
    # Without clipping the update of `b` hides behind the backward pass of `a`.
    assert play(works, unit(2), clip=False).bubble_ns == (7 + 2) + 30 + (5 + 2)


def test_stalls_have_their_causes():
    def layers(*each):
        return [
            Work(str(i), "forward", flops, fetch=fetch) for i, (flops, fetch) in enumerate(each)
        ]

    slow_link = play(layers((10, 50), (10, 50)), unit())
    assert slow_link.stall_ns == {"fetch": 40, "slots": 0, "drain": 0, "update": 0}
    one_slot = play(layers((50, 10), (50, 10)), unit(), slots=1)
    assert one_slot.stall_ns == {"fetch": 0, "slots": 10, "drain": 0, "update": 0}
    way_out = [Work(str(i), "backward", 10, drain=50) for i in range(3)]
    assert play(way_out, unit(), slots=1).stall_ns["drain"] == 2 * 50
    assert play(way_out, unit(), slots=3).stall_ns["drain"] == 0
    # The second layer's update ends 90 after the first's, whose fetch and op take 5 + 10. Without
    # it the fetch would have been over in time, so the fetch is no cause.
    works = [*layers((10, 5), (10, 5)), *(Work(n, "update", touched=90) for n in "01")]
    assert play(works, unit()).stall_ns == {"fetch": 0, "slots": 0, "drain": 0, "update": 80}


@pytest.mark.parametrize("lane", LANES)
def test_what_limits_a_step_is_what_shortens_it(lane):
    big = {name: 1000 if name == lane else 10 for name in LANES}
    works = [
        Work("a", "forward", big["compute"], fetch=big["fetch"]),
        Work("a", "backward", big["compute"], drain=big["drain"]),
        Work("a", "update", touched=big["update"]),
    ]
    assert play(works, unit(), norm_bytes=0).limited_by == lane


def test_where_several_lanes_hold_a_step_back_the_busiest_is_named():
    layers = [Work(str(i), "forward", 100, fetch=101) for i in range(50)]
    assert play(layers, unit()).limited_by == "fetch"
    layers = [work._replace(flops=102) for work in layers]
    assert play(layers, unit()).limited_by == "compute"


def test_more_chips_are_more_hops():
    works = [Work("a", "forward", 10, fetch=10)]
    for chips, hops in ((1, 1), (2, 2), (3, 3), (4, 3), (5, 4), (64, 7), (65, 8)):
        assert play(works, unit(100, chips=chips)).step_ns == 20 + hops * 100


def test_rates_divide_what_they_should():
    chip = Hardware(
        name="x", peak={"bf16": 4e9}, achieved=0.5, memory=1, memory_bandwidth=8e9, bandwidth=1e9,
        latency=0.0, optimizer_bandwidth=1e9, overhead=3e-9,
    )  # fmt: skip
    work = [Work("a", "forward", flops=2000, touched=160)]
    assert play(work, chip, "bf16").step_ns == 2000 // 2 + 160 // 8 + 3
    assert play(work, chip.but(memory_bandwidth=None), "bf16").step_ns == 1000 + 3
    with pytest.raises(ValueError, match="fp32"):
        play(work, chip)


def test_every_op_every_transfer_and_fresh_memory_cost_their_share():
    chip = unit().but(overhead=3e-9, transfer_overhead=20e-9, mapping_bandwidth=1e9)
    plain = Work("a", "forward", flops=1000)
    alone = play([plain], chip).step_ns
    assert play([plain._replace(ops=5)], chip).step_ns == alone + 4 * 3
    assert play([plain._replace(transfers=2)], chip).step_ns == alone + 2 * 20
    assert play([plain._replace(fresh=500)], chip).step_ns == alone + 500
    assert play([plain._replace(fresh=500)], chip.but(mapping_bandwidth=None)).step_ns == alone
    update = Work("a", "update", touched=100, transfers=1)
    cores = chip.but(shared_cores=True)
    extra = play([plain, update], cores, clip=False).step_ns - alone
    assert extra == 100 + 3 + 20


@pytest.mark.parametrize(
    ("works", "more", "message"),
    [
        ([], {}, "at least one op"),
        ([Work("a", "update")], {}, "at least one op"),
        ([Work("a", "sideways")], {}, "sideways"),
        ([Work("a", "forward", flops=-1)], {}, "negative"),
        ([Work("a", "forward"), Work("a", "update", drain=1)], {}, "update of 'a'"),
        ([Work("a", "forward")], {"slots": 0}, "slots"),
        ([Work("a", "forward")], {"steps": 1.5}, "steps"),
    ],
)
def test_mistakes_are_named(works, more, message):
    with pytest.raises(ValueError, match=message) as caught:
        play(works, unit(), **more)
    assert "\n" not in str(caught.value)


@given(zigzags(), st.booleans())
def test_as_a_timeline(works, clip):
    found = play(works, unit(2), clip=clip)
    timeline = found.timeline()
    assert sorted(timeline.events) == sorted(found.events)
    assert sorted(timeline.stalls) == sorted(found.stalls)
    assert "step 1" in timeline.svg()
    names = {e["name"] for e in json.loads(timeline.chrome_trace())["traceEvents"] if "ts" in e}
    assert {work.name for work in works} <= names


# A run that was recorded.


@given(anything, st.integers(1, 3), st.integers(0, 9))
def test_a_run_at_its_own_rates_takes_its_own_time(works, slots, latency):
    works = [w._replace(flops=w.flops + (w.phase != "update")) for w in works]  # ops take time
    timeline = play(works, unit(latency, shared_cores=True), slots=slots, steps=3).timeline()
    found = retime(timeline)
    assert len(found.recorded) == 3
    assert sum(found.retimed) == pytest.approx(sum(found.recorded), abs=1e-15)


@given(zigzags(), st.integers(1, 3), st.sampled_from([2, 4]))
def test_slower_links_take_longer_by_what_they_move_at_most(works, slots, factor):
    chip = unit(shared_cores=True)
    timeline = play(works, chip, slots=slots, steps=3).timeline()
    rates = measured_rates(timeline)
    assert [rates["fetch"], rates["drain"]] == pytest.approx([1e9, 1e9])
    base = sum(retime(timeline).retimed)
    slower = sum(retime(timeline, fetch=1e9 / factor, drain=1e9 / factor).retimed)
    moved = 3 * (sum(times(works, "fetch")) + sum(times(works, "drain")))
    assert base <= slower <= base + (factor - 1) * moved * 1e-9 + 1e-15
    assert sum(retime(timeline, fetch=factor * 1e9).retimed) <= base
    assert sum(retime(timeline, compute=factor).retimed) <= base


def test_a_serial_run_is_re_timed_exactly():
    works = [Work(str(i), "forward", 100, fetch=40) for i in range(5)]
    timeline = play(works, unit(), slots=1, steps=2).timeline()
    assert play(works, unit(), slots=1).step_ns == 700
    for bandwidth in (5e8, 1e9, 4e9):
        expected = play(works, unit(bandwidth=bandwidth), slots=1).step_ns
        first, second = retime(timeline, fetch=bandwidth).retimed
        # The first step is recorded from its first op on, without the fetch before it.
        assert first * 1e9 == pytest.approx(expected)
        assert second * 1e9 == pytest.approx(expected - 40 * 1e9 / bandwidth)
    assert sum(retime(timeline, compute=2).retimed) * 1e9 == pytest.approx(2 * 450 - 40)


def test_what_no_transfer_explains_is_kept():
    timeline = Timeline()
    timeline.record("compute", "op", 0, 100)
    timeline.stall("fetch", 100, 150)  # its fetch was lost
    timeline.record("compute", "op", 150, 200)
    timeline.record("update", "w", 260, 300, bytes=80)
    assert retime(timeline, compute=2.0).retimed == [pytest.approx((50 + 50 + 25 + 60 + 40) / 1e9)]
    assert retime(timeline, update=4e9).retimed == [pytest.approx((100 + 50 + 50 + 60 + 20) / 1e9)]
    with pytest.raises(ValueError, match="compute"):
        retime(timeline, compute=0)
    with pytest.raises(ValueError, match="no op"):
        retime(Timeline())


def test_what_takes_no_time_has_no_rate():
    """A plan rounds to nanoseconds, and a wafer updates a few bytes in less."""
    works = [Work("a", "forward", 10**15, fetch=10), Work("a", "update", touched=10)]
    timeline = play(works, hardware("cs2"), "bf16").timeline()
    assert measured_rates(timeline) == {}
    assert retime(timeline, update=1e9).retimed == retime(timeline).retimed


def test_a_real_chip_re_timed_with_its_measured_rates():
    import numpy as np

    import tinygrad_edu as tg
    from tinygrad_edu.memory import Chip, ExternalMemory

    rng = np.random.default_rng(0)
    x = tg.Tensor(rng.standard_normal((64, 256)).astype(np.float32))
    with Chip("2MB", ExternalMemory(bandwidth="50MB")) as chip:
        layers = [tg.nn.Linear(256, 256) for _ in range(6)]
        model = tg.nn.Sequential(*layers)
        optimizer = tg.optim.AdamW(model.parameters(), lr=1e-3)
        for _ in range(4):
            optimizer.zero_grad()
            (model(x) ** 2).mean().backward()
            optimizer.step()
    timeline = chip.timeline
    recorded = sum(retime(timeline).recorded)
    assert recorded >= 0.8 * sum(step.wall for step in timeline.steps())
    assert sum(retime(timeline).retimed) == pytest.approx(recorded, rel=0.1)
    assert sum(retime(timeline, **measured_rates(timeline)).retimed) == pytest.approx(
        recorded, rel=0.1
    )
    assert sum(retime(timeline, fetch=25e6).retimed) > recorded


def test_a_preset_answers_for_175_billion_parameters():
    layer = 12 * 12288**2
    tokens, size = 50_000, 2 * layer
    works = [
        *(Work(str(i), "forward", 2 * layer * tokens, fetch=size) for i in range(96)),
        *(Work(str(i), "backward", 4 * layer * tokens, fetch=size, drain=size)
          for i in reversed(range(96))),
        *(Work(str(i), "update", touched=28 * layer) for i in range(96)),
    ]  # fmt: skip
    found = play(works, hardware("cs2x64"), "bf16")
    assert found.compute_seconds == pytest.approx(
        6 * 96 * layer * tokens / (0.3 * 7.5e15), rel=1e-6
    )
    assert found.limited_by == "compute"
    assert play(works, hardware("cs2").but(bandwidth="1GB"), "bf16").limited_by in (
        "fetch",
        "drain",
    )
