"""The timeline: interval arithmetic against a naive oracle, threads, bounds, trace and picture."""

import json
import sys
import threading
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinygrad_edu.memory import timeline as timeline_module
from tinygrad_edu.memory.timeline import LANES, Event, Timeline
from tinygrad_edu.memory.timeline_svg import LEFT, RIGHT

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "a\"b'<&>\\ \x00 \ud800 ü 日 ]]>"

# (lane or cause, is a stall, start, duration)
records = st.lists(
    st.tuples(
        st.sampled_from(LANES), st.integers(0, 7).map(lambda k: k == 0),
        st.integers(0, 60), st.integers(0, 25),
    ),
    max_size=40,
)  # fmt: skip


def replay(found, limit=200_000):
    timeline = Timeline(limit)
    for i, (lane, waits, start, took) in enumerate(found):
        if waits:
            timeline.stall(lane, start, start + took)
        else:
            timeline.record(lane, f"op{i}", start, start + took, bytes=i, flops=2 * i)
    return timeline


def instants(found, *lanes):
    """The oracle: the nanoseconds in which any of `lanes` worked, one by one."""
    on = {t for lane, waits, s, d in found if not waits and lane in lanes for t in range(s, s + d)}
    off = {t for _, waits, s, d in found if waits for t in range(s, s + d)}
    return on - off if lanes == ("compute",) else on


@given(records)
def test_busy_and_overlap_are_those_of_single_instants(found):
    timeline = replay(found)
    for lane in LANES:
        assert round(timeline.busy(lane) * 1e9) == len(instants(found, lane))
        assert timeline.totals()[lane].busy == timeline.busy(lane)
    transfers = instants(found, "fetch", "drain")
    hidden = transfers & instants(found, "compute")
    expected = len(hidden) / len(transfers) if transfers else None
    assert timeline.overlap() == pytest.approx(expected)


@given(records, st.integers(1, 12))
def test_totals_survive_dropping(found, limit):
    # In the order of their ends, as a running chip records them, with what comes late starting
    # late enough: an event that reaches back beyond half the record is not of this world.
    found = sorted((r for r in found if not r[1]), key=lambda r: r[2] + r[3])
    found = [(lane, waits, 100 * i + s, 30) for i, (lane, waits, s, _) in enumerate(found)]
    short, long = replay(found, limit), replay(found)
    assert short.totals() == long.totals() and short.wall() == long.wall()
    assert len(short.events) <= limit
    assert len(short.events) + short.dropped == len(found)
    assert short.events == long.events[short.dropped :]


def test_overlap_across_what_is_dropped_counts_once():
    found = [("fetch", False, 10 * i, 35) for i in range(101)]
    assert replay(found, limit=10).totals()["fetch"].busy == 1035e-9
    apart = [("fetch", False, 100 * i, 30) for i in range(20)]
    long = [*apart[:4], ("fetch", False, 0, 5_000), *apart[4:]]  # kept when what it covers is not
    assert replay(long, limit=5).totals()["fetch"].busy == 5000e-9
    waits = [("compute", False, 0, 100), ("fetch", True, 20, 30)]  # an op that waits in its midst
    assert replay([*waits, *found], limit=10).totals()["compute"].busy == 70e-9
    assert replay([*waits, *found], limit=10).stall_seconds() == {"fetch": 30e-9}


def test_steps_keep_their_own_time_bytes_and_stalls():
    timeline = Timeline()
    timeline.record("fetch", "w", 1_000, 3_000, bytes=10)
    timeline.stall("fetch", 1_000, 3_000)
    timeline.record("compute", "matmul", 3_000, 4_000, flops=5)
    timeline.next_step()
    timeline.record("drain", "w", 10_000, 10_500, bytes=7)
    timeline.record("compute", "matmul", 10_250, 11_000)
    timeline.stall("drain", 11_000, 11_500)
    first, second = timeline.steps()
    assert (first.step, first.wall, first.whole) == (0, 3e-6, True)
    assert first.busy == {"fetch": 2e-6, "compute": 1e-6, "drain": 0, "update": 0}
    assert first.stalls == {"fetch": 2e-6}
    assert first.bytes == {"fetch": 10, "compute": 0, "drain": 0, "update": 0}
    assert (second.step, second.wall, second.stalls) == (1, 1.5e-6, {"drain": 5e-7})
    assert (timeline.overlap(0), timeline.overlap(1), timeline.overlap(2)) == (0, 0.5, None)
    assert timeline.busy("compute", step=1) == 7.5e-7
    assert timeline.stall_seconds() == {"fetch": 2e-6, "drain": 5e-7}
    assert timeline.stalls == [("fetch", 1_000, 3_000, 0), ("drain", 11_000, 11_500, 1)]
    assert timeline.events[1] == Event("compute", "matmul", 3_000, 4_000, 0, 5, 0)
    assert timeline.totals()["drain"] == (1, 7, 0, 5e-7)
    assert timeline.wall() == 10.5e-6


def test_a_step_that_lost_events_says_so():
    timeline = Timeline(limit=10)
    for i in range(3):
        for j in range(4):
            timeline.record("compute", "op", 10 * i + j, 10 * i + j + 1)
        timeline.next_step()
    assert [(s.step, s.whole) for s in timeline.steps()] == [(1, False), (2, True)]
    assert "dropped" in timeline.svg(step=1)
    assert "dropped" in timeline.svg(step=0)
    assert "dropped" not in timeline.svg(step=2)


@pytest.mark.parametrize("limit", [200_000, 1_000])
def test_threads_that_record_at_once_lose_nothing(limit):
    timeline, each, barrier = Timeline(limit), 5_000, threading.Barrier(4)
    seen = []

    def work(lane):
        barrier.wait()
        for i in range(each):
            timeline.record(lane, "x", 10 * i, 10 * i + 5, bytes=3, flops=2)
            timeline.stall(lane, 10 * i, 10 * i + 1)
            if i % 100 == 0:
                seen.append((i + 1, timeline.totals()[lane].count))  # once each, wherever they are

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(lane,)) for lane in LANES]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
    finally:
        sys.setswitchinterval(before)
    assert len(seen) == 200 and all(recorded == found for recorded, found in seen)
    assert [t[:3] for t in timeline.totals().values()] == [(each, 3 * each, 2 * each)] * 4
    assert timeline.stall_seconds() == dict.fromkeys(LANES, each / 1e9)
    assert len(timeline.events) + len(timeline.stalls) + timeline.dropped == 8 * each
    assert len(timeline.events) + len(timeline.stalls) <= limit + len(LANES)


def test_recording_never_waits_for_a_reader_of_the_same_thread():
    """The garbage collector may run a finalizer that records while this thread holds the lock."""
    timeline = Timeline(limit=2)
    with timeline._lock:
        thread = threading.Thread(
            target=lambda: [timeline.record("fetch", "w", i, i + 1) for i in range(9)], daemon=True
        )
        thread.start()
        thread.join(timeout=10)
        assert not thread.is_alive()
    timeline.record("fetch", "w", 9, 10)
    assert timeline.totals()["fetch"].count == 10


def test_what_makes_no_sense_is_refused():
    timeline = Timeline()
    with pytest.raises(ValueError, match="no lane 'fetsch'"):
        timeline.record("fetsch", "w", 0, 1)
    with pytest.raises(ValueError, match="before its start"):
        timeline.record("fetch", "w", 2, 1)
    with pytest.raises(ValueError, match="before its start"):
        timeline.stall("fetch", 2, 1)
    with pytest.raises(ValueError, match="no lane"):
        timeline.busy("stall")
    with pytest.raises(ValueError, match="limit=0"):
        Timeline(limit=0)
    assert timeline.events == [] and timeline.stalls == []


def trace_of(timeline):
    events = json.loads(timeline.chrome_trace())["traceEvents"]
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    return names, [e for e in events if e["ph"] == "X"]


def test_trace_names_its_lanes_and_escapes_names():
    timeline = Timeline()
    timeline.record("fetch", HOSTILE, 5_000, 6_500, bytes=3_000)
    timeline.stall(HOSTILE, 5_000, 6_500)
    timeline.next_step()
    timeline.record("compute", "instant", 7_001, 7_001, flops=4)
    names, events = trace_of(timeline)
    assert list(names.values()) == list(LANES)
    order = [e for e in json.loads(timeline.chrome_trace())["traceEvents"] if "sort_i" in e["name"]]
    assert [names[e["tid"]] for e in sorted(order, key=lambda e: e["args"]["sort_index"])] == [
        *LANES
    ]
    fetch, wait, instant = events
    assert (fetch["name"], fetch["ts"], fetch["dur"], fetch["cat"]) == (HOSTILE, 0, 1.5, "fetch")
    assert fetch["args"] == {"step": 0, "bytes": 3_000, "flops": 0, "GB/s": 2.0}
    assert (names[wait["tid"]], wait["cat"]) == ("compute", "stall")
    assert wait["name"] == f"wait for {HOSTILE}"
    assert (instant["ts"], instant["dur"], instant["args"]["step"]) == (2.001, 0, 1)
    assert instant["args"]["GB/s"] is None


@given(records)
def test_trace_rows_nest(found):
    """A viewer shows what is apart or nested in a thread, and drops what overlaps otherwise."""
    names, events = trace_of(replay(found))
    assert len(events) == len(found)
    assert {name.split()[0] for name in names.values()} == set(LANES)
    for thread in names:
        spans = [(e["ts"], e["ts"] + e["dur"]) for e in events if e["tid"] == thread]
        for i, (a, b) in enumerate(spans):
            for c, d in spans[i + 1 :]:
                apart = b <= c + 1e-9 or d <= a + 1e-9
                nested = (c >= a and d <= b + 1e-9) or (a >= c and b <= d + 1e-9)
                assert apart or nested


def test_trace_file_is_whole_or_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "trace.json"
    timeline = replay([("fetch", False, 0, 5)])
    assert timeline.chrome_trace(path) is None
    assert path.read_text() == timeline.chrome_trace()
    before = path.read_text()
    timeline.record("fetch", "more", 5, 6)

    def fail(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(timeline_module.os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        timeline.chrome_trace(path)
    assert path.read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["trace.json"]


def drawn(svg, kind):
    """The bars of a kind."""
    root = ET.fromstring(svg.encode())
    groups = [g for g in root.iter(f"{SVG}g") if g.get("class") == kind]
    return [path for g in groups for path in g.iter(f"{SVG}path")]


def titles(svg, kind):
    return [path.find(f"{SVG}title").text for path in drawn(svg, kind)]


def test_svg_tells_what_happened():
    timeline = Timeline()
    timeline.record("fetch", "blocks.0.weight", 0, 2_000_000, bytes=4_000_000)
    timeline.stall("fetch", 0, 2_000_000)
    timeline.record("compute", "matmul", 2_000_000, 8_000_000, flops=12_000_000)
    timeline.record("drain", "blocks.0.weight", 7_000_000, 9_000_000, bytes=4_000_000)
    timeline.next_step()
    timeline.record("update", "of the step that is not over", 9_000_000, 10_000_000)
    svg = timeline._repr_svg_()
    assert titles(svg, "fetch") == ["blocks.0.weight, 2 ms, 4 MB, 2 GB/s"]
    assert titles(svg, "compute") == ["matmul, 6 ms, 12 MFLOP, 2 GFLOP/s"]
    assert titles(svg, "stall") == ["waited for fetch, 2 ms"]
    assert titles(svg, "update") == []
    text = "\n".join(t for t in ET.fromstring(svg).itertext())
    for part in ("step 0", "9 ms", "waited 22 %", "fetch 22 %", "25 % of transfer time", *LANES):
        assert part in text
    assert titles(timeline.svg(step=1), "update") == ["of the step that is not over, 1 ms"]


def test_svg_escapes_names():
    timeline = Timeline()
    timeline.record("compute", HOSTILE, 0, 10)
    timeline.stall(HOSTILE, 10, 20)
    shown = HOSTILE.replace("\x00", "\ufffd").replace("\ud800", "\ufffd")
    assert titles(timeline.svg(), "compute") == [f"{shown}, 10 ns"]
    assert titles(timeline.svg(), "stall") == [f"waited for {shown}, 10 ns"]


@pytest.mark.parametrize("together", [False, True])
def test_svg_of_50_000_events_is_small_and_leaves_none_out(together):
    timeline = Timeline()
    for i in range(50_000):
        lane, took = LANES[i % 4], 400_000 if together else 900
        timeline.record(lane, f"blocks.{i}.<&>.weight", 1_000 * i, 1_000 * i + took)
        if i % 10 == 0:
            timeline.stall("fetch", 1_000 * i, 1_000 * i + 500)
    svg = timeline.svg()
    assert len(svg.encode()) < 200_000
    for lane in LANES:
        found = titles(svg, lane)
        assert len(found) > 50  # still a picture
        counts = [int(t.split(" events")[0]) if " events, longest" in t else 1 for t in found]
        assert sum(counts) == 12_500


@given(records.filter(lambda found: found))
@settings(deadline=None)
def test_bars_are_disjoint_and_inside(found):
    svg = replay(found).svg(width=700)
    root = ET.fromstring(svg)
    assert (root.get("width"), root.find(f"{SVG}rect").get("width")) == ("700", "699")
    for kind in LANES:
        outlines = [path.get("d") for path in drawn(svg, kind)]  # M{x} 0h{width}v28H{x}z
        lefts = [float(d[1:].split()[0]) for d in outlines]
        widths = [float(d.split("h")[1].split("v")[0]) for d in outlines]
        edges = [0.0, *(e for x, w in zip(lefts, widths) for e in (x, x + w)), 700 - LEFT - RIGHT]
        assert all(b >= a - 0.71 for a, b in pairwise(edges))  # what is tiny is made visible


def test_an_empty_timeline_has_something_to_say():
    timeline = Timeline()
    assert timeline.totals() == dict.fromkeys(LANES, (0, 0, 0, 0.0))
    assert (timeline.stall_seconds(), timeline.steps(), timeline.overlap()) == ({}, [], None)
    assert (timeline.events, timeline.stalls, timeline.dropped) == ([], [], 0)
    assert timeline.busy("fetch") == timeline.wall() == 0
    names, events = trace_of(timeline)
    assert (list(names.values()), events) == (list(LANES), [])
    text = list(ET.fromstring(timeline._repr_svg_()).itertext())
    assert any("no events yet" in part for part in text)
    assert set(LANES) <= set(text)
    assert "no events yet" in replay([("fetch", False, 0, 5)]).svg(step=7)
