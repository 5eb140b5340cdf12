"""`python -m gpt.plan`: what it answers, how fast, and what it says to nonsense."""

import json
import subprocess
import sys

import pytest

from gpt import plan as command
from gpt import plan_verify, plan_works, planner, scaling
from gpt.config import load_preset
from gpt.errors import UserError
from gpt.model import GPTConfig
from gpt.planner import Job, plan
from tinygrad_edu.memory.hardware import hardware

KEYS = """parameters flops_per_token step_seconds tokens_per_second mfu days cost_dollars
peak_chip_bytes external_bytes break_even_tokens fits limited_by""".split()
CS2 = hardware("cs2")
SMALL = GPTConfig(50, 16, 2, 2, 32)


def job(model=SMALL, sequences=4, **more):
    return Job(model, sequences, 1e6, "bf16", **more)


def answer(capsys, *argv):
    assert command.main([*argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_json_has_what_machines_ask_for(capsys):
    found = answer(capsys, "111m", "--hardware", "cs2")
    assert set(KEYS) <= set(found)
    assert found["fits"] and found["parameters"] > 111e6 and 0 < found["mfu"] < 1


def test_the_largest_model_is_answered_by_the_command_itself():
    argv = "175b --hardware cs2 --chips 64 --tokens 300e9"
    run = subprocess.run(
        [sys.executable, "-m", "gpt.plan", *argv.split()], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    for line in ("parameters         175 billion", "fits", "limited by", "MFU", "whole run"):
        assert line in run.stdout


def test_a_deep_model_is_put_together_from_three_of_its_layers(monkeypatch):
    config, unit = GPTConfig(500, 32, 7, 2, 64), 1 << 16
    whole = plan_works.needed(config, 2, True, unit)
    works = plan_works.rehearsed(config, 2, True, unit, whole.nbytes)
    monkeypatch.setattr(plan_works, "DEEP", 3)
    plan_works.needed.cache_clear()
    plan_works.rehearsed.cache_clear()
    assert plan_works.needed(config, 2, True, unit) == whole
    deep = plan_works.rehearsed(config, 2, True, unit, whole.nbytes)
    for what in ("flops", "touched", "drain"):
        assert sum(getattr(w, what) for w in deep) == sum(getattr(w, what) for w in works)
    assert {w.name for w in deep if w.phase == "update"} == {
        w.name for w in works if w.phase == "update"
    }
    plan_works.needed.cache_clear()
    plan_works.rehearsed.cache_clear()


@pytest.mark.parametrize(("sequences", "passes"), [(5, 2), (6, 3)])
def test_a_deep_model_fetches_what_it_recomputes_once_where_the_chip_has_room(
    monkeypatch, sequences, passes
):
    """As the whole model does: 175b on a chip of 40 GB, of which 30 or 36 are needed."""
    config = load_preset("175b").model(50257)

    def fetched():
        works = plan_works.step_works(config, sequences, True, "bf16", CS2)
        return sum(work.fetch for work in works) / (2 * scaling.count_parameters(config))

    assert fetched() == pytest.approx(passes, rel=0.01)
    plan_works.rehearsed.cache_clear()
    monkeypatch.setattr(plan_works, "DEEP", 1000)
    assert fetched() == pytest.approx(passes, rel=0.01)
    plan_works.rehearsed.cache_clear()


@pytest.mark.parametrize("recompute", [False, True])
def test_a_resident_step_keeps_the_logits_it_need_not_make_again(recompute):
    logits = 2 * SMALL.block_size * SMALL.vocab_size
    given = SMALL, 2, recompute, "bf16", CS2
    streamed, resident = (
        sum(work.flops for work in plan_works.step_works(*given, resident=where))
        for where in (False, True)
    )
    assert streamed - resident == (0 if recompute else 2 * logits * SMALL.n_embd)
    more = plan_works.need(*given, resident=True).nbytes - plan_works.need(*given).nbytes
    assert more == (0 if recompute else 2 * logits)


@pytest.mark.parametrize("name", ["a100", "cs2", "laptop"])
def test_a_resident_step_updates_in_the_memory_of_the_chip(name):
    """Not in the one beside it; cores that compute as well update as fast as was measured."""
    chip = hardware(name).but(overhead=0, transfer_overhead=0)
    config = GPTConfig(50, 16, 2, 2, 320)
    found = plan(
        Job(config, 4, 1e6, "bf16" if "bf16" in chip.peak else "fp32", resident=True), chip
    )
    rate = chip.optimizer_bandwidth if chip.shared_cores else chip.memory_bandwidth
    norm_and_update = (4 + 28) * scaling.count_parameters(config) / rate
    assert found.playback.busy_ns["update"] == pytest.approx(1e9 * norm_and_update, abs=40)


def test_less_memory_means_more_passes_and_then_no_fit():
    ample = plan(job(sequences=8, recompute=False), CS2)
    assert (ample.passes, ample.sequences_per_pass, ample.fits) == (1, 8, True)
    tight = plan(job(sequences=8, recompute=False), CS2.but(memory=ample.need.nbytes // 2))
    assert tight.passes > 1 and tight.fits
    assert tight.need.nbytes <= ample.need.nbytes // 2
    none = plan(job(sequences=8, recompute=False), CS2.but(memory=1000))
    assert not none.fits and none.limited_by == "memory" and none.smallest > 1000


def test_the_bubble_of_many_passes_is_that_of_one_and_the_account_adds_up():
    need = plan(job(sequences=1), CS2).need.nbytes
    few, many = (plan(job(sequences=n), CS2.but(memory=need)) for n in (2, 50))
    assert (few.passes, many.passes) == (2, 50)
    found = many.as_json()
    assert found["bubble_seconds"] == few.playback.bubble_seconds > 0
    parts = [found["compute_seconds"], *found["stall_seconds"].values(), found["bubble_seconds"]]
    assert sum(parts) == pytest.approx(found["step_seconds"])
    assert found["compute_seconds"] == pytest.approx(25 * few.playback.compute_seconds)


def test_many_passes_are_limited_by_what_a_pass_waits_for():
    """Not by the update, which comes once, and makes up most of a step of two passes."""
    need = plan(job(sequences=1), CS2).need.nbytes
    slow = CS2.but(memory=need, bandwidth=1e9, optimizer_bandwidth=1e9)
    few, many = (plan(job(sequences=n), slow) for n in (2, 500))
    assert (few.passes, few.limited_by) == (2, "update")
    assert (many.passes, many.limited_by) == (500, "fetch")


def test_a_chip_computes_its_share_and_no_more():
    """Of 7 sequences in passes of at most 3, two passes have 2."""
    three = plan(job(sequences=3, recompute=False), CS2)
    chip = CS2.but(memory=three.need.nbytes, bandwidth=1e18, optimizer_bandwidth=1e18, latency=0)
    busy = {
        n: plan(job(sequences=n, recompute=False), chip).playback.compute_ns for n in (2, 3, 6, 7)
    }
    seven = plan(job(sequences=7, recompute=False), chip)
    assert (seven.passes, seven.sequences_per_pass) == (3, 3)
    assert busy[6] == pytest.approx(2 * busy[3], abs=2)
    assert busy[7] == pytest.approx(busy[3] + 2 * busy[2], abs=2)
    assert sum(seven.playback.stall_ns.values()) + seven.playback.bubble_ns == pytest.approx(
        seven.playback.step_ns - busy[7], abs=9
    )


def test_a_pass_is_no_larger_than_can_be_rehearsed(monkeypatch):
    """However many sequences there are, and however much memory: more passes, of equal size."""
    monkeypatch.setattr(planner, "MOST", 10 * SMALL.block_size)
    found = plan(job(sequences=10**9 + 11), CS2.but(memory="1PB"))
    assert (found.sequences_per_pass, found.passes, found.fits) == (10, 100_000_002, True)
    assert plan(job(sequences=11), CS2).sequences_per_pass == 6
    assert plan(job(sequences=10), CS2).passes == 1


def test_recompute_is_chosen_only_where_it_must():
    config = GPTConfig(50, 64, 6, 2, 32)
    free = plan(job(config, 4), CS2)
    assert not free.recompute
    kept = plan_works.need(config, 1, False, "bf16", CS2).nbytes
    again = plan_works.need(config, 1, True, "bf16", CS2).nbytes
    assert again < kept
    assert plan(job(config, 4), CS2.but(memory=again)).recompute


def test_more_bandwidth_never_makes_a_step_longer():
    times = [plan(job(), CS2.but(bandwidth=b)).step_seconds for b in (1e6, 1e8, 1e10, 1e12)]
    assert times == sorted(times, reverse=True)


def test_a_measured_step_gives_what_was_achieved(capsys):
    given = ["gpt2-124m", "--hardware", "a100", "--chips", "8", "--batch-size", "512"]
    found = answer(capsys, *given, "--step-seconds", "0.3")
    assert found["measured"] and found["step_seconds"] == 0.3
    assert found["mfu"] == pytest.approx(0.602, abs=0.001) and not found["impossible"]
    assert command.main([*given, "--step-seconds", "0.1"]) == 0
    assert "impossible: MFU would be 180" in capsys.readouterr().out


def test_side_by_side(capsys):
    assert command.main(["1.3b", "--compare", "cs2,a100x16,laptop"]) == 0
    out = capsys.readouterr().out
    assert "1 x cs2" in out and "16 x a100" in out and "tokens needed" in out


def test_a_small_run_takes_some_time_and_money_and_a_large_step_days(capsys):
    assert command.main(["nanogpt-cpu", "--hardware", "h100"]) == 0
    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()[1:])
    assert "hours" not in rows["whole"] and rows["whole"].endswith("ms")
    assert float(rows["cost"].removeprefix("$")) > 0 < float(rows["energy"].removesuffix(" kWh"))
    units = {1e-3: "1 ms", 1.5: "1.5 s", 119: "119 s", 120: "2.0 min", 7200: "2.0 hours",
             2 * 86400: "2.0 days", 1000 * 86400: "1,000.0 days", 1e9: "31.7 years"}  # fmt: skip
    assert {s: command.duration(s) for s in units} == units


def test_a_number_with_a_unit_has_no_exponent(capsys):
    assert command.main(["nanogpt-cpu", "--hardware", "cs3", "--tokens", "999.7e6"]) == 0
    out = capsys.readouterr().out
    assert "of 1 x 15.0 PFLOP/s" in out and "1,000 million tokens in" in out
    assert command.duration(0.9997) == "1,000 ms" and command.count(2e15) == "2,000 trillion"


@pytest.mark.parametrize("chips", ["a100x16", "a100 --chips 16", "a100x2 --chips 16"])
def test_chips_are_counted_once_whoever_says_how_many(capsys, chips):
    assert command.main(["nanogpt-cpu", "--hardware", *chips.split()]) == 0
    assert capsys.readouterr().out.startswith("nanogpt-cpu on 16 x a100\n")


def test_a_trace_and_a_picture(tmp_path, capsys):
    trace, picture = tmp_path / "step.json", tmp_path / "plan.svg"
    argv = ["nanogpt-cpu", "--hardware", "laptop"]
    assert command.main([*argv, "--trace", str(trace), "--picture", str(picture)]) == 0
    names = {e["args"]["name"] for e in json.loads(trace.read_text())["traceEvents"]
             if e["name"] == "thread_name"}  # fmt: skip
    assert {"fetch", "compute", "drain", "update"} <= names
    assert picture.read_text().lstrip().startswith("<?xml")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ("1.3b --compare=", "unknown hardware ''"),
        ("foo", "unknown preset 'foo'"),
        ("1.3b --hardware cs9", "unknown hardware 'cs9' (did you mean cs"),
        ("1.3b --hardware cs2 --bandwidth 0", "bandwidth must be above 0"),
        ("1.3b --hardware cs2 --chips -3", "chips must be a whole number"),
        ("1.3b --compare cs2,a100x-3", "chips must be a whole number"),
        ("1.3b --hardware cs2 --tokens -1", "--tokens must be a number above 0"),
        ("1.3b --hardware cs2 --step-seconds nan", "--step-seconds must be a number above 0"),
        ("1.3b --hardware laptop --precision bf16", "no peak for precision 'bf16'"),
        ("1.3b --hardware cs2 --chip-memory lots", "--chip-memory 'lots' is not a size"),
        ("--trace /nonexistent/t.json", "--trace /nonexistent/t.json: expected a file in a folder"),
        ("--picture /nonexistent/p.svg", "--picture /nonexistent/p.svg: expected a file in a"),
        ("--picture p.xyz", "--picture p.xyz: expected a name that ends in .svg or .png"),
        ("--hardware cs2 --block-size 100000000", "of at most 1,048,576 tokens, got 100,000,000"),
        ("--trace /", "--trace /: expected a file"),
        ("--trace /dev/null", "--trace /dev/null: expected a file"),
        ("--hardware cs2 --step-seconds 1e308", "no plan for these numbers"),
        ("--hardware cs2 --bandwidth 1e-300", "no plan for these numbers"),
        ("--compare cs2,a100 --chips 16", "say how many there, as in a100x16"),
        ("--step-seconds 1 --tokens-per-second 9", "measure the same: give one"),
    ],
)
def test_nonsense_is_one_line(argv, says):
    with pytest.raises(UserError) as error:
        command.main(argv.split())
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_mistake_is_one_line_on_stderr_and_status_2():
    argv = "nanogpt-cpu --hardware laptop --trace /nonexistent/t.json"
    run = subprocess.run(
        [sys.executable, "-m", "gpt.plan", *argv.split()], capture_output=True, text=True
    )
    assert run.returncode == 2 and run.stdout == ""
    assert run.stderr.startswith("gpt.plan: --trace /nonexistent/t.json")
    assert run.stderr.count("\n") == 1


def test_verifying_compares_plans_with_real_steps(monkeypatch):
    import dataclasses

    monkeypatch.setattr(plan_verify, "LEAST", 0)
    monkeypatch.setattr(plan_verify, "PROCESSES", 1)
    preset = load_preset("nanogpt-cpu")
    tiny = dataclasses.replace(
        preset, n_layer=2, n_embd=16, n_head=2, block_size=16, batch_size=2, vocab_size=30
    )
    machine = hardware("laptop")
    rows = list(plan_verify.verify(tiny, machine, rounds=1))
    assert [row.budget is None for row in rows] == [True, False, False, False] * 2
    assert all(abs(row.bytes_off) <= plan_verify.MEMORY for row in rows)
    assert "resident" in plan_verify.line(rows[0])
    with pytest.raises(UserError, match=r"nanogpt-cpu does not fit into the 100 kB of laptop"):
        next(plan_verify.verify(tiny, machine.but(memory="100kB")))


@pytest.mark.parametrize(
    ("argv", "presets"),
    [([], list(plan_verify.PRESETS)), (["nanogpt-cpu"], ["nanogpt-cpu"])],
    ids=["all", "one"],
)
def test_the_preset_that_is_named_is_verified(monkeypatch, capsys, argv, presets):
    seen = []
    monkeypatch.setattr(plan_verify, "hardware", lambda name: name)
    monkeypatch.setattr(plan_verify, "verify", lambda p, _: seen.append(p.preset) or [])
    assert command.main(["--verify", "--json", *argv]) == 0
    assert seen == presets and json.loads(capsys.readouterr().out) == []
    with pytest.raises(UserError, match="unknown preset 'foo'"):
        command.main(["--verify", "foo"])


def test_recompute_is_chosen_where_it_is_faster_not_only_where_it_must_be():
    slow_link = hardware("cs2").but(memory=400_000, bandwidth=1e6, peak=1e9)
    fast_link = slow_link.but(bandwidth=1e12)
    for chip, recomputes in ((slow_link, True), (fast_link, False)):
        stored, again, chosen = (
            plan(job(GPTConfig(50, 16, 4, 2, 32), 64, recompute=r), chip)
            for r in (False, True, None)
        )
        assert stored.fits and again.fits and again.sequences_per_pass > stored.sequences_per_pass
        assert chosen.step_seconds == min(stored.step_seconds, again.step_seconds)
        assert chosen.recompute is recomputes
