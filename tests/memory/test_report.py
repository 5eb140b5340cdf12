"""What a chip tells, of a run that is over and of what does not fit."""

import re

import numpy as np
import pytest

import tinygrad_edu as tg
from gpt import GPT, GPTConfig
from tinygrad_edu.kernels import elementwise, jit, update
from tinygrad_edu.memory import Chip, ChipMemoryError, ExternalMemory, Timeline, show_size
from tinygrad_edu.memory.report import measure_ceiling

CONFIG = GPTConfig(64, 16, 2, 2, 64)


def train(chip, steps=3, batch=2):
    with chip:
        model = GPT(CONFIG)
        optimizer = tg.optim.AdamW(model.parameters())
        ids = np.arange(batch * 16).reshape(batch, 16)
        for _ in range(steps):
            optimizer.zero_grad()
            model(ids, ids)[1].backward()
            optimizer.step()
    return chip


def test_a_report_holds_the_figures_of_the_run(tmp_path):
    chip = train(Chip("5MB", ExternalMemory(tmp_path / "weights.bin")))
    text = chip.report()
    moved = chip.bytes_moved
    for figure in (
        "chip of 5.00 MB", str(tmp_path / "weights.bin"), show_size(chip.external.nbytes),
        f"{show_size(chip.peak_bytes)} needed at once", f"{chip.peak_bytes / 5e6:.0%}",
        *(show_size(moved[lane]) for lane in ("fetch", "drain", "update")),
        *(f"{show_size(moved[lane] / 3)} per step" for lane in ("fetch", "drain", "update")),
        "break-even", "this run had 32", "the medium gives",
    ):  # fmt: skip
        assert figure in text, figure
    for kind, name in (("activations", "activations"), ("workspace", "kernel workspace")):
        nbytes = chip.budget.at_peak[kind]
        assert not nbytes or f"{show_size(nbytes)}  {name}" in text
    assert sum(chip.budget.at_peak.values()) == chip.peak_bytes
    assert all(len(line) <= 110 for line in text.splitlines()[1:])


def test_a_long_run_was_not_busy_for_longer_than_it_took():
    """Although the events of its first steps are dropped."""
    chip = Chip("5MB")
    chip.timeline.limit = 100
    text = train(chip, steps=5).report()
    assert chip.timeline.dropped
    busy, wall = re.search(r"busy ([\d.]+) s of ([\d.]+) s", text).groups()
    assert float(busy) <= float(wall)


def test_a_chip_that_did_nothing_has_a_report():
    never = Chip("1GB")
    assert "chip of 1.00 GB" in never.report() and "0 B" in never.report()
    with Chip("1MB") as idle:
        assert "waited for nothing" in idle.report()
    assert "chip of 1.00 MB, external memory in RAM" in idle.report()
    with Chip("1MB") as empty:
        tg.nn.Parameter(np.zeros((0, 3), np.float32))
    assert "break-even" not in empty.report()


def test_a_report_in_the_middle_of_a_run():
    with Chip("5MB") as chip:
        model = GPT(CONFIG)
        model([[1, 2]], [[3, 4]])[1].backward()
        assert "weights to the chip" in chip.report()


def test_compiling_a_kernel_is_a_wait_and_no_work(monkeypatch):
    for task in (elementwise.gelu_task, update.adamw_task):
        monkeypatch.setattr(task, "compiled", {})
    chip = train(Chip("5MB"), steps=1)
    assert jit.watchers == []
    waits = [wait[1:3] for wait in chip.timeline.stalls if wait[0] == "compiler"]
    for what in (("compute", "Gelu forward"), ("update", "transformer.wte.weight")):
        event = next(event for event in chip.timeline.events if event[:2] == what)
        assert any(event.start <= start < end <= event.end for start, end in waits), what
    chip.timeline.stall("compiler", event.end, event.end + 10**9)
    assert "waited for compiler 1." in chip.report()
    timeline = Timeline()
    for lane in ("fetch", "compute", "drain", "update"):
        timeline.record(lane, "at work", 0, 100)
    timeline.stall("compiler", 20, 50)
    assert [total.busy for total in timeline.totals().values()] == [1e-7, 7e-8, 1e-7, 7e-8]
    assert timeline.overlap() == 0.7


def test_below_break_even_it_warns():
    slow = train(Chip("5MB", ExternalMemory(bandwidth="2MB")), steps=2).report()
    assert "warning     below it" in slow and "larger batch" in slow
    wall = float(re.search(r"busy .* of ([\d.]+) s", slow)[1])
    waits = re.findall(r"(?:fetch|drain) ([\d.]+) s", slow)
    waited = int(re.search(r"for transfers (\d+)%", slow)[1]) / 100
    assert waited == pytest.approx(sum(map(float, waits)) / wall, abs=0.02)


def test_a_slow_link_has_a_speed():
    text = train(Chip("5MB", ExternalMemory(bandwidth="2MB")), steps=1).report()
    speed, medium = re.search(
        r"([\d.]+) GB/s while busy \(the medium gives ([\d.]+)\)", text
    ).groups()
    assert 0 < float(speed) <= float(medium) == 0.002


def test_above_break_even_it_does_not(monkeypatch):
    chip = train(Chip("5MB"))
    fetch = chip.timeline.totals()
    shorter = fetch | {
        "fetch": fetch["fetch"]._replace(busy=1e-6),
        "drain": fetch["drain"]._replace(busy=1e-6),
    }
    monkeypatch.setattr(chip.timeline, "totals", lambda: shorter)
    assert "break-even" in chip.report() and "warning" not in chip.report()


@pytest.mark.parametrize("bandwidth", [None, "3MB"])
def test_the_ceiling_is_that_of_the_medium_or_of_the_emulated_link(bandwidth):
    with Chip("1MB", ExternalMemory(bandwidth=bandwidth)) as chip:
        assert measure_ceiling(chip.external) is None
        tg.nn.Parameter(np.zeros(100_000, np.float32))
        ceiling = measure_ceiling(chip.external)
    assert ceiling == 3e6 if bandwidth else ceiling > 1e7


def test_what_does_not_fit_is_told_with_who_holds_what_and_what_would_fit():
    with pytest.raises(ChipMemoryError) as error:
        train(Chip("100kB"), batch=4)
    lines = str(error.value).splitlines()
    assert lines[0].startswith("a chip of 100 kB has no room for another ")
    assert "array of float32" in lines[0]
    assert any("activations (" in line for line in lines[1:])
    assert "give the chip at least" in lines[-1] and "recompute" in lines[-1]


def test_a_weight_that_does_not_fit_is_called_by_its_name():
    with Chip("100kB") as chip:
        layer = tg.nn.Linear(200, 200)
        layer.named_parameters()
        with pytest.raises(ChipMemoryError, match="weight of weight, 160 kB"):
            layer(np.ones((1, 200), np.float32))
        held = [chip.budget.empty((20_000,), np.dtype(np.float32))]
        with pytest.raises(ChipMemoryError, match=r"80\.0 kB  activations"):
            held.append(chip.budget.empty((20_000,), np.dtype(np.float32)))
