"""The benchmark runs, on sizes so small that its figures mean nothing; no time is asserted."""

import json
import os

import numpy as np
import pytest

import tinygrad_edu as tg
from gpt import (
    bench,
    bench_chip,
    bench_kernels,
    bench_matmul,
    bench_peer,
    bench_step,
)
from gpt.bench_profile import profiled
from gpt.errors import UserError

PRESET = "batch_size = 2\nblock_size = 8\nn_layer = 1\nn_head = 2\nn_embd = 16\ndropout = 0.1\n"
ONCE = ["--threads=1", "--repeats=1", "--blocks=1"]


@pytest.fixture(autouse=True)
def settings_restored():
    yield
    tg.set_matmul_backend("numba")
    tg.set_num_threads(os.cpu_count())


def run(capsys, argv, **sizes):
    assert bench.main([*argv, *ONCE, "--json"], **sizes) == 0
    return json.loads(capsys.readouterr().out)


def test_matmul(capsys):
    found = run(
        capsys, ["matmul"], shapes=((8, 9, 10),), small=((1, 4, 5),), layouts=("TN",), rounds=10
    )
    assert not found["failed"]
    assert [(r["shape"], r["layout"], r["small"]) for r in found["rows"]] == [
        ([8, 9, 10], "TN", False), ([1, 4, 5], "NN", True), ([1, 4, 5], "NT", True),
    ]  # fmt: skip
    for row in found["rows"]:
        assert set(row["ratio"]) == set(row["gflop_per_s"]) - {bench_matmul.OURS}
        assert bench_matmul.INSTALLED in row["ratio"]
        assert row["of_peak"] > 0
    assert {"geometric_mean", "minimum", "against", "of_peak"} <= set(found["summary"][0])
    bench_matmul.report(found)
    assert "8 x 9 x 10" in capsys.readouterr().out


@pytest.mark.parametrize("layout", bench_matmul.LAYOUTS)
def test_operands_multiply_and_a_transposed_one_is_a_view(layout):
    a, b = bench_matmul.operands(3, 4, 5, layout, np.random.default_rng(0))
    assert (a @ b).shape == (3, 4)
    assert a.flags.f_contiguous == (layout[0] == "T")
    assert b.flags.f_contiguous == (layout[1] == "T")


def test_kernels(capsys):
    sizes = bench_kernels.Sizes(b=2, t=4, c=8, h=2, v=11)
    found = run(capsys, ["kernels"], sizes=sizes, rounds=10, megabytes=1)
    names = [row["kernel"] for row in found["rows"]]
    assert len(set(names)) == len(names)
    for kernel in "gelu layer_norm rms_norm linear_cross_entropy attention embedding".split():
        assert {kernel, f"{kernel} backward"} <= set(names)
    assert {"dropout", "adamw", "sums_of_squares"} <= set(names)
    assert {row["unit"] for row in found["rows"]} == {"GB/s", "GF/s"}
    bench_kernels.report(found)
    assert "sums_of_squares" in capsys.readouterr().out


@pytest.mark.parametrize("recompute", [False, True])
def test_a_training_step(capsys, tmp_path, recompute):
    preset = tmp_path / "tiny.toml"
    preset.write_text(PRESET)
    found = run(capsys, [str(preset), "--no-torch", *["--recompute"] * recompute], rounds=10)
    assert found["recompute"] == recompute
    row = found["steps"][bench_step.OURS]
    assert {"ms_per_step", "tokens_per_s", "gflop_per_s", "mfu", "peak_mb", "forward_ms"} <= set(
        row
    )
    assert "not asked for" in found["failed"][bench_step.EAGER]
    assert {"SelfAttention backward", "Linear forward", "adamw"} <= set(found["profile"]["ops"])
    assert sum(found["profile"]["ops"].values()) <= found["profile"]["total"]
    bench_step.report(found)
    printed = capsys.readouterr().out
    assert "not covered" in printed
    assert ("recompute in ours" in printed) == recompute


def test_a_step_on_chips(capsys, tmp_path):
    preset = tmp_path / "tiny.toml"
    preset.write_text(PRESET)
    found = run(
        capsys, ["chip", str(preset), "--chip=1kB,1MB", "--chip=1000kB", f"--external={tmp_path}"]
    )
    assert list(tmp_path.iterdir()) == [preset]
    assert set(found["failed"]) == {"1.00 kB, RAM", "1.00 kB, file"}
    assert all("on the chip at once" in why for why in found["failed"].values())
    resident, *chips = found["steps"].values()
    assert list(found["steps"]) == [bench_chip.RESIDENT, "1.00 MB, RAM", "1.00 MB, file"]
    assert resident["budget"] is None and resident["ratio"] == 1 and "peak_bytes" not in resident
    assert len(set(resident["losses"])) == found["untimed"] + found["timed"] == 3
    weights = 4 * found["parameters"]
    for row in chips:
        assert row["losses"] == resident["losses"] and row["differ"] == []
        assert row["tokens_per_s"] > 0 and row["ratio"] > 0
        assert 0 < row["peak_bytes"] <= found["needed_bytes"] <= row["budget"] == 10**6
        assert row["external_bytes"] == 4 * weights
        assert row["moved_bytes"]["update"] == 7 * weights  # four are read, three are written
        assert row["moved_bytes"]["drain"] >= weights and row["moved_bytes"]["fetch"] > 0
        assert set(row["waited_s"]) <= {"fetch", "drain", "update"}
        assert 0 <= row["overlap"] <= 1
    bench_chip.report(found)
    printed = capsys.readouterr().out
    assert printed.count("same bits") == 2 and "1.00 kB, file: not measured" in printed


def test_other_losses_than_the_resident_ones_are_said():
    rows = {
        bench_chip.RESIDENT: {"losses": [2.0, 1.5, 1.25]},
        "chip": {"losses": [2.0, 1.625, 1.0], "differ": [2, 3]},
    }
    assert bench_chip.losses_of(bench_chip.RESIDENT, rows) == "2.0000 to 1.2500"
    assert bench_chip.losses_of("chip", rows) == "2 differ, first in step 2: 1.625, not 1.5"


def test_what_a_chip_did_is_told_per_step():
    assert bench_chip.per_step([{"fetch": 3.0}, {"fetch": 1.0, "drain": 2.0}], 2) == {
        "fetch": 2.0, "drain": 1.0,
    }  # fmt: skip


def test_the_profile_leaves_the_ops_as_they_were():
    from tinygrad_edu import ops

    before = {op: dict(vars(op)) for op in ops.CATALOGUE}
    with profiled():
        assert dict(vars(ops.Linear)) != before[ops.Linear]
    assert {op: dict(vars(op)) for op in ops.CATALOGUE} == before


def test_compile_reports_both_caches(capsys, monkeypatch):
    asked = []
    monkeypatch.setattr(
        bench.bench_compile, "seconds", lambda steps, cache: asked.append(cache) or len(asked)
    )
    found = run(capsys, ["compile"])
    assert found == {
        "cold_first_loss_s": 1, "warm_first_loss_s": 2,
        "cold_first_step_s": 3, "warm_first_step_s": 4,
    }  # fmt: skip
    assert asked[0] == asked[1] != asked[2] == asked[3]
    bench.bench_compile.report(found)


def test_the_step_that_compile_times_runs(tmp_path):
    source = bench.bench_compile.FIRST_LOSS.format(steps=2)
    exec(compile(source, "first loss", "exec"), {})


def test_a_peer_that_fails_is_left_out_and_said():
    with bench_peer.Peer("gpt.bench_matmul", "no such backend") as peer:
        failed = {}
        request = dict(what="times", threads=1, shape=[1, 1, 1], layout="NN", repeats=1)
        assert bench_peer.alternate({"broken": peer}, 2, failed, **request) == {}
        assert "no such backend" in failed["broken"]


@pytest.mark.parametrize(
    "argv, message",
    [
        (["matmul", "kernels"], "give one of"),
        (["chip", "matmul"], "give one of"),
        (["default", "chip"], "give one of"),
        (["chip", "--chip=256MB,much"], "'much' is not a size"),
        (["default", "--chip=256MB"], "--chip and --external are for"),
        (["chip", "default", "--external=/no/such/folder"], "--external /no/such/folder: No such"),
        (["no-such-preset"], "unknown preset"),
        (["--repeats=0"], "--repeats must be at least 1, got 0"),
    ],
)
def test_mistakes_are_one_line(argv, message):
    with pytest.raises(UserError, match=message):
        bench.main(argv)


@pytest.mark.parametrize("argv", [[], ["chip"]])
def test_a_preset_that_makes_no_sense_is_one_line(tmp_path, argv):
    preset = tmp_path / "odd.toml"
    preset.write_text(PRESET.replace("n_head = 2", "n_head = 3"))
    with pytest.raises(UserError, match="n_head 3 does not divide n_embd 16"):
        bench.main([*argv, str(preset), *ONCE])
