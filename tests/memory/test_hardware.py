"""Hardware records: sources, dense peaks, overrides, errors, and what is measured and kept."""

import dataclasses
import json
import os

import pytest

from tinygrad_edu.memory import Rehearsal, calibrate
from tinygrad_edu.memory.hardware import (
    GIVEN,
    MAY_BE_NONE,
    PRESETS,
    Hardware,
    Source,
    hardware,
)

NAMES = ["cs1", "cs2", "cs3", "a100", "h100", "h200", "laptop"]
MEASURED = {
    "peak": 2e11, "achieved": 0.8, "memory_bandwidth": 2e10, "bandwidth": 1e10,
    "optimizer_bandwidth": 1.5e10, "overhead": 1e-5, "transfer_overhead": 4e-5,
    "mapping_bandwidth": 3e9,
}  # fmt: skip


def numbers_of(chip):
    """field -> value of every number in the record."""
    fields = {f.name: getattr(chip, f.name) for f in dataclasses.fields(chip)}
    peaks = {f"peak.{precision}": rate for precision, rate in fields.pop("peak").items()}
    return peaks | {
        k: v for k, v in fields.items() if isinstance(v, (int, float)) and v is not False
    }


def test_the_presets_are_there():
    assert list(PRESETS) == NAMES
    for name in NAMES:
        assert hardware(name).name == name


@pytest.mark.parametrize("chip", [*PRESETS.values(), calibrate.as_hardware(MEASURED)], ids=str)
def test_every_number_has_a_source(chip):
    assert numbers_of(chip).keys() == chip.sources.keys()
    for source in chip.sources.values():
        assert isinstance(source, Source) and len(source.text) > 3
        assert source.confirmed in (True, False)
        words = source.text.lower()
        if any(word in words for word in ("assumed", "derived", "commonly quoted", "taken as")):
            assert not source.confirmed, source


@pytest.mark.parametrize(
    ("name", "field", "value", "confirmed"),
    [
        ("cs1", "memory", 18e9, True), ("cs2", "memory", 40e9, True), ("cs3", "memory", 44e9, True),
        ("cs2", "peak.fp16", 7.5e15, True), ("cs1", "peak.fp16", 3.5e15, False),
        ("cs3", "peak.fp16", 15e15, False), ("cs2", "bandwidth", 150e9, True),
        ("cs1", "watts", 20e3, True), ("cs2", "watts", 31e3, False),
        ("a100", "peak.bf16", 312e12, True), ("h100", "peak.bf16", 989.5e12, True),
        ("h200", "memory", 141e9, False), ("a100", "bandwidth", 25e9, False),
        ("h100", "bandwidth", 50e9, False), ("a100", "memory_bandwidth", 2.04e12, False),
    ],
)  # fmt: skip
def test_numbers_of_the_presets(name, field, value, confirmed):
    chip = hardware(name)
    assert numbers_of(chip)[field] == value
    assert chip.sources[field].confirmed is confirmed


def test_no_peak_is_a_sparse_figure():
    most = {
        "cs1": 4e15,
        "cs2": 7.5e15,
        "cs3": 15e15,
        "a100": 312e12,
        "h100": 990e12,
        "h200": 990e12,
    }
    for name, limit in most.items():
        assert max(hardware(name).peak.values()) <= limit
    for chip in PRESETS.values():
        for precision in ("bf16", "fp16"):
            assert not {62.5e15, 125e15, 624e12, 1979e12} & {chip.peak.get(precision)}


def test_peak_of_a_precision():
    assert hardware("a100").peak_of("bf16") == hardware("a100").peak_of("fp16") == 312e12
    with pytest.raises(ValueError, match=r"cs2 has no peak .*'fp32'.*fp16") as caught:
        hardware("cs2").peak_of("fp32")
    assert "\n" not in str(caught.value)


def test_several_chips_by_name():
    assert hardware("a100x16").chips == 16
    assert hardware("a100x16").name == "a100x16"
    assert hardware("a100x16").bandwidth == hardware("a100").bandwidth
    assert hardware("a100").chips == 1
    with pytest.raises(ValueError, match="chips must be a whole number >= 1, got 0"):
        hardware("a100x0")
    with pytest.raises(ValueError, match="chips"):
        hardware("a100x-4")


def test_overrides_are_taken_and_say_who_gave_them():
    chip = hardware("cs2").but(bandwidth="150.5GB", chips="64", memory="1GiB", latency="1e-4")
    assert (chip.bandwidth, chip.chips, chip.memory) == (150.5e9, 64, 2**30)
    assert (type(chip.chips), type(chip.memory), chip.latency) == (int, int, 1e-4)
    for name in ("bandwidth", "chips", "memory", "latency"):
        assert chip.sources[name] == GIVEN
    assert chip.sources["watts"] == hardware("cs2").sources["watts"] != GIVEN
    assert hardware("cs2").bandwidth == 150e9  # the preset is as it was
    assert chip.but(bandwidth="2e11").bandwidth == 2e11
    assert chip.but(bandwidth="10GB/s").bandwidth == 10e9
    assert chip.but(memory_bandwidth=None).memory_bandwidth is None
    assert chip.but(dollars_per_hour="12.5").dollars_per_hour == 12.5
    assert hash(chip) == hash(chip.but())


def test_peaks_are_overridden_by_precision_or_all_at_once():
    chip = hardware("a100").but(peak={"bf16": 1e15})
    assert (chip.peak_of("bf16"), chip.peak_of("fp16")) == (1e15, 312e12)
    assert chip.sources["peak.bf16"] == GIVEN != chip.sources["peak.fp16"]
    assert set(hardware("a100").but(peak="5e14").peak.values()) == {5e14}
    assert hardware("cs2").but(peak={"fp32": 1e15}).peak_of("fp32") == 1e15
    assert hardware("a100").peak_of("bf16") == 312e12
    with pytest.raises(ValueError, match="no precision 'fp8'"):
        hardware("a100").but(peak={"fp8": 1e15})


BAD = [
    ("bandwidth", 0), ("bandwidth", -1), ("bandwidth", float("nan")), ("bandwidth", "fast"),
    ("bandwidth", None), ("bandwidth", "0GB"), ("memory_bandwidth", 0), ("optimizer_bandwidth", 0),
    ("optimizer_bandwidth", float("inf")), ("chips", 0), ("chips", -3), ("chips", 1.5),
    ("chips", True), ("chips", "many"), ("achieved", 0), ("achieved", 1.01), ("achieved", -0.1),
    ("achieved", float("nan")), ("memory", 0), ("memory", 0.5), ("latency", -1e-9), ("watts", -1),
    ("dollars_per_hour", float("nan")), ("overhead", -1), ("transfer_overhead", -1e-9),
    ("mapping_bandwidth", 0), ("peak", 0), ("peak", {"bf16": -1}),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), BAD, ids=str)
def test_impossible_numbers_are_one_clear_line(field, value):
    with pytest.raises(ValueError) as caught:
        hardware("a100").but(**{field: value})
    message = str(caught.value)
    assert field in message and "\n" not in message
    given = next(iter(value.values())) if isinstance(value, dict) else value
    assert str(given) in message
    assert ": give " in message


@pytest.mark.parametrize(("field", "value"), [b for b in BAD if not isinstance(b[1], (str, dict))])
def test_they_are_impossible_from_the_start_too(field, value):
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(
            hardware("a100"), **{field: {"bf16": value} if field == "peak" else value}
        )


def test_counts_may_be_given_as_floats():
    chip = dataclasses.replace(hardware("a100"), chips=2.0, memory=40e9)
    assert (chip.chips, chip.memory) == (2, 40 * 10**9)
    assert {type(chip.chips), type(chip.memory)} == {int}


def test_boundaries_that_are_possible():
    chip = hardware("a100").but(achieved=1, chips=1, latency=0, overhead=0, watts=0, memory=1)
    assert (chip.achieved, chip.latency, chip.memory) == (1, 0, 1)
    for name in MAY_BE_NONE:
        assert getattr(chip.but(**{name: None}), name) is None
    with pytest.raises(ValueError, match="peak is empty"):
        dataclasses.replace(chip, peak={})


@pytest.mark.parametrize(
    ("name", "near"),
    [("cs4", "cs"), ("a10", "a100"), ("labtop", "laptop"), ("h10x8", "h100"),
     ("this-machin", "this-machine")],
)  # fmt: skip
def test_unknown_hardware_names_the_known_and_the_near(name, near):
    with pytest.raises(ValueError) as caught:
        hardware(name)
    message = str(caught.value)
    assert f"did you mean {near}" in message and "\n" not in message
    assert all(known in message for known in [*NAMES, "this-machine"])
    with pytest.raises(ValueError) as caught:
        hardware("zzz")
    assert "did you mean" not in str(caught.value)


def test_unknown_fields_name_the_known_and_the_near():
    with pytest.raises(ValueError, match=r"no field 'bandwith' \(did you mean bandwidth\?\)"):
        hardware("cs2").but(bandwith=1)
    with pytest.raises(ValueError, match="no field 'sources'"):
        hardware("cs2").but(sources={})


# This machine.


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Counts measurements, and keeps their results apart from the user's."""
    calls = []

    def measure():
        calls.append(1)
        return MEASURED | {"overhead": [0, 1e-5, 2e-5, 3e-5][len(calls)]}

    monkeypatch.setattr(calibrate, "measure", measure)
    monkeypatch.setenv("TINYGRAD_EDU_CACHE", str(tmp_path / "cache"))
    return calls


def kept(tmp_path):
    (file,) = (tmp_path / "cache").iterdir()  # one file, and nothing half-written beside it
    return file


def test_this_machine_is_measured_once(measured, tmp_path):
    first = hardware("this-machine")
    assert isinstance(first, Hardware) and first.name == "this-machine"
    assert hardware("this-machine") == first and len(measured) == 1
    assert hardware("this-machinex2").chips == 2
    assert first.peak == {"fp32": 2e11}
    assert (first.achieved, first.bandwidth, first.overhead) == (0.8, 1e10, 1e-5)
    assert first.shared_cores and first.memory > 1e8
    assert calibrate.this_machine(again=True).overhead == 2e-5
    assert hardware("this-machine").overhead == 2e-5 and len(measured) == 2
    kept(tmp_path)


def test_another_machine_or_number_of_threads_is_measured_on_its_own(measured, monkeypatch):
    hardware("this-machine")
    monkeypatch.setattr(calibrate, "cpu_name", lambda: "another")
    assert hardware("this-machine").overhead == 2e-5
    monkeypatch.setattr(calibrate.launch, "threads", lambda: 77)
    assert hardware("this-machine").overhead == 3e-5
    monkeypatch.undo()


def changed(text):
    return text.replace("0.8", "0.9")  # still JSON, still a possible number


DAMAGE = {
    "empty": lambda text: "",
    "torn": lambda text: text[: len(text) // 2],
    "not an object": lambda text: "[]",
    "a number less": lambda text: text.replace('"achieved"', '"archived"'),
    "a digit changed": changed,
    "no number": lambda text: text.replace("0.8", '"?"'),
    "not text": None,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_cache_is_measured_anew(measured, tmp_path, damage):
    hardware("this-machine")
    file = kept(tmp_path)
    if damage is None:
        file.write_bytes(b"\xff\xfe\x00")
    else:
        before = file.read_text()
        file.write_text(damage(before))
        assert file.read_text() != before
    assert hardware("this-machine").overhead == 2e-5
    assert hardware("this-machine").overhead == 2e-5 and len(measured) == 2
    assert json.loads(kept(tmp_path).read_text())["measured"]["overhead"] == 2e-5


def test_a_crash_while_writing_leaves_the_old_file(measured, tmp_path, monkeypatch):
    hardware("this-machine")

    def fail(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        calibrate.this_machine(again=True)
    monkeypatch.undo()
    content = json.loads(kept(tmp_path).read_text())
    assert content["measured"]["overhead"] == 1e-5


def test_without_a_folder_to_write_to_it_is_measured_every_time(measured, tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("TINYGRAD_EDU_CACHE", str(blocked / "below"))
    assert hardware("this-machine").overhead == 1e-5
    assert hardware("this-machine").overhead == 2e-5


def test_what_is_measured_makes_sense(monkeypatch):
    monkeypatch.setattr(calibrate, "PRODUCTS", ((256, 256, 256), (64, 512, 128)))
    monkeypatch.setattr(calibrate, "PRODUCT_FLOPS", 1e8)
    monkeypatch.setattr(calibrate, "ELEMENTS", 1 << 20)
    monkeypatch.setattr(calibrate, "TURNS", 1)
    found = calibrate.measure()
    assert found.keys() == MEASURED.keys() == set(calibrate.MEASURED)
    assert 0 < found["achieved"] <= 1
    assert 1e8 < found["peak"] < 1e14
    for name in ("memory_bandwidth", "bandwidth", "optimizer_bandwidth", "mapping_bandwidth"):
        assert 1e7 < found[name] < 1e13, name
    assert 0 <= found["overhead"] < 1e-2  # a remainder: a busy machine may leave nothing of it
    assert 0 <= found["transfer_overhead"] < 1e-2
    assert calibrate.as_hardware(found).peak_of("fp32") == found["peak"]


def test_numbers_follow_from_the_seconds(monkeypatch):
    """On a machine whose clocks are known: 100 GFLOP/s, 10 GB/s, 20 us per op, 30 per transfer."""
    with Rehearsal() as chip:
        calibrate.small_step()()
    flops, touched, ops, transfers = (
        sum(getattr(work, what) for work in chip.works)
        for what in ("flops", "touched", "ops", "transfers")
    )
    in_ram = flops / 1e11 + touched / 1e10 + ops * 20e-6
    seconds = {
        "elementwise": 8 * calibrate.ELEMENTS / 1e10,
        "copy": calibrate.COPIES * calibrate.BLOCK / 2e10,
        "update": 28 * calibrate.ELEMENTS / 3e10,
        "mapping": calibrate.FRESH / 4e9,
        "in RAM": in_ram,
        "on a chip": in_ram + transfers * 30e-6,
    }
    for m, n, k in calibrate.PRODUCTS:
        seconds[m, n, k] = 2 * m * n * k / 1e11 + 4 * (m * k + k * n + m * n) / 1e10
    monkeypatch.setattr(calibrate, "taken_in_turns", lambda: seconds)
    wanted = {
        "peak": 1e11, "achieved": 1.0, "memory_bandwidth": 1e10, "bandwidth": 2e10,
        "optimizer_bandwidth": 3e10, "overhead": 20e-6, "transfer_overhead": 30e-6,
        "mapping_bandwidth": 4e9,
    }  # fmt: skip
    assert calibrate.measure() == pytest.approx(wanted)
