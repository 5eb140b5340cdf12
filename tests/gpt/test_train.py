"""Training as a user meets it: the command line, the run folder, kills, resumes, mistakes."""

import errno
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import tinygrad_edu as tg
from gpt import GPT, GPTConfig, disk, run_folder
from gpt import bench as bench_command
from gpt import plan as plan_command
from gpt import sample as sample_command
from gpt import train as train_command
from gpt.config import load_preset, parse, preset_names
from gpt.errors import UserError
from gpt.metrics import Metrics
from gpt.run_folder import RunFolder

TINY = [
    "--n-layer=2", "--n-head=2", "--n-embd=16", "--block-size=8", "--batch-size=4", "--steps=12",
    "--eval-every=4", "--eval-batches=2", "--warmup-steps=2", "--tokenizer=char",
    "--dropout=0.1",
]  # fmt: skip
TEXT = "".join(random.Random(0).choices("abcdefgh \n", k=4000))


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TINYGRAD_EDU_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def train(*arguments):
    return train_command.main([*TINY, *map(str, arguments)])


def command(module, *arguments, **options):
    """The command in a process of its own, as a user runs it."""
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    options = {"capture_output": True, "text": True, "env": env, "timeout": 120} | options
    return subprocess.run([sys.executable, "-m", module, *map(str, arguments)], **options)


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run):
    return [(row["step"], row["loss"], row.get("val_loss")) for row in metrics(run)]


def test_a_run_leaves_all_that_the_design_names(text, tmp_path, capsys):
    run = tmp_path / "run"
    assert train("--data", text, "--out", run) == 0
    rows = metrics(run)
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert all(row["loss"] > 0 and row["ms"] > 0 and row["tokens_per_s"] > 0 for row in rows)
    assert [row["step"] for row in rows if "val_loss" in row] == [4, 8, 12]
    assert rows[-1]["loss"] < rows[0]["loss"]
    for name in ("config.json", "model.safetensors", "tokenizer.json", "train.json", "loss.png"):
        assert (run / name).stat().st_size > 0, name
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "held-out loss" in printed and str(run) in printed
    model = GPT.load(run)
    assert model.config.block_size == 8 and model.config.vocab_size == 10


def test_a_run_repeats_bit_for_bit_and_follows_its_seed(text, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train("--data", text, "--out", tmp_path / name, "--seed", seed)
    assert losses(tmp_path / "a") == losses(tmp_path / "b") != losses(tmp_path / "c")


def test_a_learning_rate_below_the_presets_last_one_does_not_rise_to_it(text, tmp_path):
    for name, last in (("a", "--min-lr=1"), ("b", "--min-lr=1e-5")):
        train("--data", text, "--out", tmp_path / name, "--learning-rate=1e-5", last)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


def test_resume_of_a_shorter_run_continues_bit_for_bit(text, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train("--data", text, "--out", whole)
    train("--data", text, "--out", parts)
    # Back to the checkpoint of step 8, as a kill after it would leave the folder.
    shutil.rmtree(parts)
    stop_after(8, text, parts)
    assert train("--data", text, "--out", parts, "--resume") == 0
    assert losses(whole) == losses(parts)
    resumed = [row for row in metrics(parts) if "resumed_from" in row]
    assert [(row["step"], row["resumed_from"]) for row in resumed] == [(9, 8)]
    a, b = GPT.load(whole), GPT.load(parts)
    for x, y in zip(a.parameters(), b.parameters(), strict=True):
        np.testing.assert_array_equal(x.data, y.data)


def stop_after(step, text, run):
    """A run that is interrupted during `step`."""

    append = Metrics.append

    def append_and_interrupt(self, row):
        append(self, row)
        if row["step"] == step:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Metrics, "append", append_and_interrupt)
        assert train("--data", text, "--out", run) == 130


def test_ctrl_c_saves_where_it_stopped_and_resume_goes_on(text, tmp_path):
    whole, run = tmp_path / "whole", tmp_path / "run"
    train("--data", text, "--out", whole)
    stop_after(6, text, run)
    assert [row["step"] for row in metrics(run)] == [1, 2, 3, 4, 5, 6]
    # --resume needs nothing but the folder: the rest is remembered there.
    assert train_command.main(["--resume", "--out", str(run)]) == 0
    assert [(s, loss) for s, loss, _ in losses(run)] == [(s, loss) for s, loss, _ in losses(whole)]


def test_ctrl_c_after_the_last_look_of_a_step_is_saved_by_the_next(
    text, tmp_path, monkeypatch, capsys
):
    run, trouble, looks = tmp_path / "run", RunFolder.trouble, []

    def interrupting(self):
        looks.append(self)
        if len(looks) == 6:  # step 6 has no checkpoint, which is decided by now
            os.kill(os.getpid(), signal.SIGINT)
        return trouble.fget(self)

    monkeypatch.setattr(RunFolder, "trouble", property(interrupting))
    assert train("--data", text, "--out", run) == 130
    assert f"saved at step {RunFolder(run).read().step}:" in capsys.readouterr().out
    assert RunFolder(run).read().step == len(metrics(run)) == 7


def test_ctrl_c_saves_although_nobody_reads_the_progress_any_more(text, tmp_path, monkeypatch):
    """As in a pipe to tee, which the same Ctrl-C has ended."""
    run, update = tmp_path / "run", train_command.tqdm.update

    def closed(self, *arguments):
        if self.n == 5:
            raise BrokenPipeError
        update(self, *arguments)

    monkeypatch.setattr(train_command.tqdm, "update", closed)
    with pytest.raises(BrokenPipeError):
        stop_after(6, text, run)
    assert RunFolder(run).read().step == 6


def test_the_first_ctrl_c_says_what_it_waits_for(text, tmp_path, capfd):
    stop_after(6, text, tmp_path / "run")
    assert capfd.readouterr().err.count("stopping after this step; once more stops at once") == 1


def test_resume_without_a_checkpoint_starts_over_and_says_so(text, tmp_path, capsys):
    run = tmp_path / "run"
    assert train("--data", text, "--out", run, "--resume") == 0
    assert "starting from the beginning, as this command says" in capsys.readouterr().out
    assert "resumed_from" not in metrics(run)[0]


def test_accumulated_micro_batches_are_one_large_batch(text, tmp_path, monkeypatch):
    # The same 8 sequences per step, as 1 x 8 and as 2 x 4. AdamW would hide gradients of another
    # size, were it not for eps and clipping.
    norms, step = {"one": [], "two": []}, train_command.train_step
    for name, flags in (("one", ["--batch-size=8"]), ("two", ["--accumulate=2"])):

        def noted(*arguments, name=name):
            loss, norm = step(*arguments)
            norms[name].append(norm)
            return loss, norm

        monkeypatch.setattr(train_command, "train_step", noted)
        train("--data", text, "--out", tmp_path / name, "--dropout=0", *flags)
    one, two = ([row["loss"] for row in metrics(tmp_path / name)] for name in norms)
    np.testing.assert_allclose(one, two, rtol=1e-5)
    np.testing.assert_allclose(norms["one"], norms["two"], rtol=1e-4)


def test_an_earlier_run_is_not_overwritten_unless_asked(text, tmp_path):
    run = tmp_path / "run"
    train("--data", text, "--out", run)
    before = losses(run)
    with pytest.raises(UserError, match="--overwrite"):
        train("--data", text, "--out", run, "--seed=7")
    assert losses(run) == before
    assert train("--data", text, "--out", run, "--seed=7", "--overwrite") == 0
    assert losses(run) != before


def test_resume_refuses_another_model_and_other_data(text, tmp_path):
    run, other = tmp_path / "run", tmp_path / "other.txt"
    other.write_text(TEXT[::-1])
    train("--data", text, "--out", run)
    with pytest.raises(UserError, match="n_embd 16 there, 32 here"):
        train("--data", text, "--out", run, "--resume", "--n-embd=32")
    with pytest.raises(UserError, match="other data"):
        train("--data", other, "--out", run, "--resume")


def test_resume_of_a_finished_run_says_so_and_how_to_go_on(text, tmp_path, capsys):
    run = tmp_path / "run"
    train("--data", text, "--out", run)
    before = metrics(run)
    for steps in (12, 5):
        capsys.readouterr()
        assert train("--data", text, "--out", run, "--resume", "--steps", steps) == 0
        said = capsys.readouterr().out
        assert f"is finished: it has done 12 steps, and {steps} were asked for" in said
        assert f"--resume --out {run} --steps 24 goes on" in said and "resuming" not in said
        assert metrics(run) == before
    assert train_command.main(["--resume", "--out", str(run), "--steps", "24"]) == 0
    assert "resuming" in capsys.readouterr().out and len(metrics(run)) == 24


def test_resume_leaves_out_a_torn_line_and_says_which(text, tmp_path, capsys):
    run = tmp_path / "run"
    train("--data", text, "--out", run)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join([*lines[:2], lines[2][:15], *lines[3:], ""]))
    assert train("--data", text, "--out", run, "--resume", "--steps=13") == 0
    said = capsys.readouterr().err
    assert said.count('left out line 3, which is no row: \'{"step": 3, "lo\'') == 1
    assert [row["step"] for row in metrics(run)] == [1, 2, *range(4, 14)]


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text.replace('"steps": 12', '"steps": "24"'),
        lambda text: text.replace('"seed": 1337', '"seed": null'),
        lambda text: text.replace('"steps": 12', '"steps": 24'),
        lambda text: "[" * 100_000,
    ],
    ids=["text", "null", "number", "deep"],
)
def test_a_train_json_edited_by_hand_is_refused_by_name(text, tmp_path, edit):
    run = tmp_path / "run"
    train("--data", text, "--out", run)
    path = run / "train.json"
    assert path.write_text(edit(path.read_text()))
    with pytest.raises(UserError, match=r"train\.json: .* damaged"):
        train_command.main(["--resume", "--out", str(run)])


def test_resume_refuses_another_tokenizer(text, tmp_path):
    run = tmp_path / "run"
    train("--data", text, "--out", run)
    before = contents(run)
    for arguments in (["--tokenizer=byte"], ["default"]):  # the preset's is byte, too
        done = command("gpt.train", *arguments, "--resume", "--out", run, "--steps=13")
        assert done.returncode == 2 and "was begun with --tokenizer char" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1 and contents(run) == before


def test_resume_goes_on_in_the_folder_it_is_given(text, tmp_path, monkeypatch):
    """Also of a run that has since been copied to where runs are by default."""
    monkeypatch.chdir(tmp_path)
    train("--data", text, "--out", "elsewhere")
    shutil.copytree("elsewhere", "runs/default")
    before = contents(Path("elsewhere"))
    assert train_command.main(["--resume", "--steps=13"]) == 0
    assert len(metrics(Path("runs/default"))) == 13 and contents(Path("elsewhere")) == before


def test_resume_goes_on_in_the_folder_that_a_preset_names(text, tmp_path):
    run, preset = tmp_path / "run", tmp_path / "mine.toml"
    preset.write_text(f"out = {json.dumps(str(run))}\ndata = {json.dumps(str(text))}\n")
    assert train(preset) == 0
    assert train(preset, "--resume", "--steps=13") == 0 and len(metrics(run)) == 13


def test_a_resume_gives_back_what_opens_the_model(text, tmp_path, capsys):
    run, lost = tmp_path / "run", ("config.json", "tokenizer.json")
    train("--data", text, "--out", run)
    before = contents(run)
    for name in lost:
        (run / name).unlink()
    assert train("--data", text, "--out", run, "--resume", "--steps=13") == 0
    assert all((run / name).read_bytes() == before[name] for name in lost)
    assert sample_command.main([str(run), "--tokens", "3"]) == 0


def test_a_resume_where_nothing_can_be_written_is_refused_before_it_trains(
    text, tmp_path, monkeypatch
):
    run = tmp_path / "run"
    train("--data", text, "--out", run)
    before = contents(run)

    def read_only(path, flags, *mode):
        if flags & os.O_CREAT:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return os.open(path, flags, *mode)

    monkeypatch.setattr(disk.Calls, "open", staticmethod(read_only))
    monkeypatch.setattr(train_command, "train_step", lambda *_: pytest.fail("trained"))
    with pytest.raises(OSError, match="Read-only file system"):
        train("--data", text, "--out", run, "--resume", "--steps=13")
    assert contents(run) == before


def test_detect_nan_names_op_layer_and_step_and_saves_the_batch(text, tmp_path, monkeypatch):
    run = tmp_path / "run"

    class Broken(GPT):
        def hidden(self, idx, cache=None):
            self.calls = getattr(self, "calls", 0) + 1
            if self.calls == 3:
                weight = self.transformer.h[1].mlp.c_fc.weight
                weight.data = np.full(weight.shape, np.nan, np.float32)
            return super().hidden(idx, cache)

    monkeypatch.setattr(train_command, "GPT", Broken)
    with pytest.raises(UserError, match=r"step 3: Linear in transformer\.h\.1\.mlp\.c_fc made NaN"):
        train("--data", text, "--out", run, "--detect-nan")
    from safetensors.numpy import load_file

    assert load_file(run / "nan-step-3.safetensors")["x"].shape == (4, 8)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(text, tmp_path):
    run = tmp_path / "run"
    says = "no earlier one. The same command with --resume --detect-nan names the op at fault"
    exploding = ["--data", text, "--out", run, "--learning-rate=1e30", "--grad-clip=0"]
    with pytest.raises(UserError, match=says):
        train(*exploding)
    assert not any("NaN" in line for line in (run / "metrics.jsonl").read_text().splitlines())
    with pytest.raises(UserError, match=r"step \d: \w+ in .* made"):
        train(*exploding, "--resume", "--detect-nan")


EXPLODING = ["--learning-rate=1e38", "--min-lr=1e38", "--warmup-steps=0", "--eval-every=1"]


def test_detect_nan_names_what_an_evaluation_meets(text, tmp_path):
    run, found = tmp_path / "run", r"step 1: \w+ in .* in the forward pass; its batch is in .*nan-"
    with pytest.raises(UserError, match=found):
        train("--data", text, "--out", run, *EXPLODING, "--detect-nan")
    assert (run / "nan-step-1.safetensors").exists()


def test_a_held_out_loss_that_is_not_finite_replaces_no_checkpoint(text, tmp_path):
    run = tmp_path / "run"
    train("--data", text, "--out", run, "--steps=4")
    with pytest.raises(UserError, match=r"step 5: .*held-out loss is \w+; .*step 4 is kept"):
        train("--data", text, "--out", run, "--resume", *EXPLODING)
    assert RunFolder(run).read().step == 4 and metrics(run)[-1]["val_loss"] is None


def test_a_full_disk_at_checkpoint_time_keeps_the_run_and_the_old_checkpoint(
    text, tmp_path, monkeypatch, capsys
):
    run, calls = tmp_path / "run", []
    commit = train_command.RunFolder.commit

    def failing(self, step, *rest):
        calls.append(step)
        if step == 8:
            raise OSError(28, "No space left on device")
        commit(self, step, *rest)

    monkeypatch.setattr(train_command.RunFolder, "commit", failing)
    assert train("--data", text, "--out", run) == 0
    assert calls == [4, 8, 12]
    assert "step 8 not written" in capsys.readouterr().err


def test_a_run_that_never_had_a_checkpoint_is_begun_again_by_the_whole_command(
    text, tmp_path, monkeypatch
):
    """Its folder does not know yet what it was told."""

    def failing(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(train_command.RunFolder, "commit", failing)
    says = "there is no earlier one: mend that, then the same command with --resume"
    with pytest.raises(UserError, match=says):
        train("--data", text, "--out", tmp_path / "run")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_a_log_on_a_full_disk_ends_no_run(text, tmp_path, monkeypatch):
    with open("/dev/full", "wb", 0) as full, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", io.TextIOWrapper(full, write_through=True))
        patch.setattr(run_folder, "draw_losses", lambda *_: 1 / 0)  # something to say, too
        assert train("--data", text, "--out", tmp_path / "run") == 0
    assert RunFolder(tmp_path / "run").read().step == 12


def test_rows_that_cannot_be_written_are_noticed_once_and_so_is_the_end_of_it(
    text, tmp_path, monkeypatch, capsys
):
    run, write, append = tmp_path / "run", disk.Calls.write, Metrics.append

    def full(*_):
        raise OSError(28, "No space left on device")

    def append_to_a_disk_full_at_steps_5_and_6(self, row):
        patched = full if row["step"] in (5, 6) else write
        monkeypatch.setattr(disk.Calls, "write", staticmethod(patched))
        append(self, row)
        monkeypatch.setattr(disk.Calls, "write", staticmethod(write))

    monkeypatch.setattr(Metrics, "append", append_to_a_disk_full_at_steps_5_and_6)
    assert train("--data", text, "--out", run) == 0
    printed = capsys.readouterr().err
    assert printed.count("rows wait in memory: No space left on device") == 1
    assert printed.count("the disk takes everything again") == 1
    assert [row["step"] for row in metrics(run)] == list(range(1, 13))


def test_samples_follow_prompt_and_seed(text, tmp_path, capsys):
    run = tmp_path / "run"
    train("--data", text, "--out", run)
    capsys.readouterr()
    drawn = []
    for seed in (1, 1, 2):
        flags = ["--prompt", "abc", "--tokens", "40", "--seed", str(seed), "--top-k", "5"]
        assert sample_command.main([str(run), *flags]) == 0
        drawn.append(capsys.readouterr().out)
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(out.startswith("abc") and len(out) == 44 for out in drawn)


def test_a_prompt_that_begins_with_dashes_keeps_its_underscores(text, tmp_path, capsys):
    run, prompt = tmp_path / "run", "-- my_value is x_y=3"
    train("--data", text, "--out", run, "--steps=1", "--tokenizer=byte")
    capsys.readouterr()
    assert sample_command.main([str(run), "--prompt", prompt, "--tokens=0", "--top_k=5"]) == 0
    assert capsys.readouterr().out == prompt + "\n"


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--prompt", "aéb"], "é"),
        (["--prompt", ""], "empty"),
        (["--temperature", "-1"], "temperature"),
        (["--temperature", "nan"], "temperature"),
        (["--top-k", "0"], "top_k"),
        (["--tokns", "3"], "did you mean '--tokens'"),
    ],
)
def test_sample_mistakes_are_named(text, tmp_path, flags, words):
    run = tmp_path / "run"
    train("--data", text, "--out", run, "--steps=1")
    with pytest.raises(UserError, match=words):
        sample_command.main([str(run), *flags])
    with pytest.raises(UserError, match="not a folder"):
        sample_command.main([str(tmp_path / "nowhere")])


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--n-layr", "3"], "did you mean '--n-layer'"),
        (["nanogpt"], "did you mean 'nanogpt-cpu'"),
        (["--steps", "x"], "--steps"),
        (["--steps", "0"], "--steps must be at least 1"),
        (["--learning-rate", "nan"], "--learning-rate"),
        (["--learning-rate=-1"], "--learning-rate"),
        (["--beta2", "1"], "--beta2"),
        (["--n-head", "3"], "n_head 3 does not divide n_embd 128"),
        (["--dropout", "1.5"], "dropout"),
        (["--seed", "-1"], "--seed"),
        (["--recompute", "maybe"], "--recompute"),
        ([""], "unknown preset ''"),
        (["nowhere.toml"], "nowhere.toml cannot be read: No such file or directory; give a TOML"),
        (["--resume", "--overwrite"], "give one of them"),
        (["--chip=20MB", "--external="], "--external is empty"),
        (["--out", ""], "--out is empty: .* for runs/default"),
        (["--out=", "--resume"], "--out is empty"),
    ],
)
def test_flags_that_make_no_sense_are_named(flags, words):
    with pytest.raises(UserError, match=words):
        parse(flags)


@pytest.mark.parametrize(
    ("command_of", "arguments", "whole"),
    [
        (train_command, ["--step", "3"], "--steps"),
        (sample_command, ["run", "--tok", "3"], "--tokens"),
        (plan_command, ["--hard=cs2"], "--hardware"),
        (bench_command, ["--repeat", "1"], "--repeats"),
    ],
)
def test_no_command_takes_half_an_option(command_of, arguments, whole):
    with pytest.raises(UserError, match=f"unknown argument .*did you mean '{whole}'"):
        command_of.main(arguments)


def test_presets_and_flags():
    assert parse(["nanogpt-cpu"]).block_size == 64
    assert parse(["--n_layer=3"]).n_layer == parse(["--n-layer", "3"]).n_layer == 3
    assert preset_names()[0] == "default"
    wanted = {"default", "nanogpt-cpu", "shakespeare-char", "gpt2-124m", "111m", "1.3b", "13b"}
    assert wanted | {"70b", "175b"} == set(preset_names())
    config = load_preset("175b").check().model(50257)
    assert (config.n_layer, config.n_embd, config.n_head) == (96, 12288, 96)


def test_mistakes_on_the_command_line_are_one_line_and_status_2(text, tmp_path):
    run = tmp_path / "run"
    for arguments in (
        ["--data", tmp_path / "missing.txt", "--out", run],
        ["--n-layr", "3"],
        ["--data", text, "--block-size", "100000", "--out", run],
        ["--data", text, "--out", text],
    ):
        done = command("gpt.train", *arguments)
        assert done.returncode == 2, done
        assert len(done.stderr.strip().splitlines()) == 1 and "Traceback" not in done.stderr
    assert not run.exists()
    done = command("gpt.train", "--help")
    assert done.returncode == 0 and "gpt2-124m" in done.stdout and "--n-layer" in done.stdout


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("name", "arguments"),
    [("train", ["--help"]), ("plan", ["--help"]), ("plan", ["nanogpt-cpu", "--hardware=cs2"])],
)
def test_an_output_that_is_full_is_one_line_and_one_that_is_closed_is_none(
    name, arguments, unbuffered
):
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    env["PYTHONUNBUFFERED"] = unbuffered
    read, closed = os.pipe()
    os.close(read)
    with open("/dev/full", "w") as full, open(closed, "w") as pipe:
        run = [sys.executable, "-m", f"gpt.{name}", *arguments]
        options = {"stderr": subprocess.PIPE, "text": True, "env": env, "timeout": 60}
        done = subprocess.run(run, stdout=pipe, **options)
        assert (done.returncode, done.stderr) == (0, "")
        done = subprocess.run(run, stdout=full, **options)
    if unbuffered and "--help" in arguments:
        return  # argparse itself passes over what it cannot write
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "the system refuses: [Errno 28] No space left on device" in done.stderr


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("train", ["--out", "a" * 300]),
        ("train", ["--resume", "--out", "a" * 300]),
        ("sample", ["a" * 300]),
        ("plan", ["--hardware=cs2", "--trace", "a" * 300]),
    ],
)
def test_a_name_too_long_is_one_line_and_status_2(text, name, arguments):
    done = command(f"gpt.{name}", *arguments, *["--data", text] * (name == "train"))
    assert done.returncode == 2 and "File name too long" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["train", "sample", "plan", "bench"])
def test_ctrl_c_during_the_imports_is_one_line_and_status_130(tmp_path, name):
    (tmp_path / "numba.py").write_text("raise KeyboardInterrupt")
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    done = command(f"gpt.{name}", env=os.environ | {"PYTHONPATH": path})
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


@pytest.mark.faults
def test_twenty_kills_lose_nothing(text, tmp_path):
    flags = [*TINY, "--steps=300", "--eval-every=10", "--data", text]
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert command("gpt.train", *flags, "--out", whole).returncode == 0
    chance = random.Random(1)
    kills = resumes = 0
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    while kills < 20:
        before = (run / "train.json").exists()
        process = subprocess.Popen(
            [sys.executable, "-m", "gpt.train", *map(str, flags), "--out", str(run), "--resume"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment,
        )  # fmt: skip
        time.sleep(chance.uniform(0.3, 2.0))
        if process.poll() is not None:
            assert process.returncode == 0
            shutil.rmtree(run)  # finished before the kill: begin again
            continue
        process.kill()
        process.wait()
        kills += 1
        resumes += before and any("resumed_from" in line for line in lines_of(run))
    assert resumes > 0
    assert command("gpt.train", *flags, "--out", run, "--resume").returncode == 0
    assert losses(run) == losses(whole)


def lines_of(run):
    path = run / "metrics.jsonl"
    return path.read_text(errors="replace").splitlines() if path.exists() else []


def test_the_folder_opens_in_transformers_with_equal_logits(text, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    run, idx = tmp_path / "run", np.arange(8)[None]
    for flags in ([], ["--bias"]):
        train("--data", text, "--out", run, "--overwrite", *flags)
        theirs = transformers.GPT2LMHeadModel.from_pretrained(run).eval()
        with tg.no_grad():
            ours = GPT.load(run).eval()(idx)[0].data
        expected = theirs(torch.from_numpy(idx)).logits.detach().numpy()
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)
        theirs.save_pretrained(tmp_path / "back")
        if flags:
            again = GPT.load(tmp_path / "back").eval()(idx)[0].data
            np.testing.assert_array_equal(ours, again)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_resume_never_starts_over_on_top_of_weights(text, tmp_path):
    """Neither of a model that somebody else trained, nor of a run that lost its train.json."""
    pretrained, lost = tmp_path / "pretrained", tmp_path / "lost"
    GPT(config=load_preset("nanogpt-cpu").model(10)).save(pretrained)
    train("--data", text, "--out", lost)
    (lost / "train.json").unlink()
    for folder in (pretrained, lost):
        before = contents(folder)
        with pytest.raises(UserError, match=r"no checkpoint to go on from.*--overwrite replaces"):
            train("--data", text, "--out", folder, "--resume")
        assert contents(folder) == before


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "loss.png"])
@pytest.mark.parametrize("resume", [False, True])
def test_files_of_a_runs_names_are_not_replaced_unasked(text, tmp_path, name, resume):
    mine = tmp_path / name
    mine.write_text("mine")
    with pytest.raises(UserError, match=f"holds .*files of the names a run writes .{name}"):
        train("--data", text, "--out", tmp_path, *["--resume"] * resume)
    assert mine.read_text() == "mine" and not (tmp_path / "metrics.jsonl").exists()
    assert train("--data", text, "--out", tmp_path, "--overwrite") == 0


def test_a_run_without_a_checkpoint_yet_is_begun_again_by_resume(text, tmp_path, capsys):
    run = tmp_path / "run"
    train("--data", text, "--out", run)
    for path in run.glob("*.safetensors"):
        path.unlink()
    (run / "train.json").unlink()
    (run / "model-0000004.safetensors").touch()  # killed while it wrote its first checkpoint
    assert train("--data", text, "--out", run, "--resume") == 0
    assert "starting from the beginning" in capsys.readouterr().out
    assert [row["step"] for row in metrics(run)] == list(range(1, 13))


def test_one_process_at_a_time_trains_in_a_folder(text, tmp_path):
    pytest.importorskip("fcntl")
    run = tmp_path / "new" / "run"
    with RunFolder(run).taken():
        for more in ([], ["--resume"], ["--overwrite"]):
            with pytest.raises(UserError, match="another process is training there"):
                train("--data", text, "--out", run, *more)
    assert train("--data", text, "--out", run) == 0
    with RunFolder(run).taken():
        assert sample_command.main([str(run), "--tokens", "3"]) == 0


def test_a_model_is_not_saved_over_that_of_a_run(text, tmp_path):
    """The next look at the run would put its own model back."""
    run, tuned = tmp_path / "run", tmp_path / "tuned"
    train("--data", text, "--out", run, "--steps=1")
    model, before = GPT.load(run), contents(run)
    with pytest.raises(UserError, match=r"holds a training run.*save to another folder"):
        model.save(run)
    assert contents(run) == before
    model.save(tuned)
    model.save(tuned)


def test_a_text_without_newlines_ends_on_a_sample_as_well(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("ab\x01" * 900)
    assert train("--data", text, "--out", tmp_path / "run") == 0
    assert "held-out loss" in capsys.readouterr().out


def test_a_picture_that_cannot_be_written_costs_no_checkpoint(text, tmp_path, capsys):
    run = tmp_path / "run"
    train("--data", text, "--out", run)
    (run / "loss.png").unlink()
    (run / "loss.png").mkdir()
    assert train("--data", text, "--out", run, "--resume", "--steps=13") == 0
    said = capsys.readouterr().err
    assert "loss.png: still an earlier picture" in said and "not written" not in said
    assert json.loads((run / "train.json").read_text())["step"] == 13
    assert not list(run.glob(".*"))


def test_a_picture_that_cannot_be_drawn_costs_no_run(text, tmp_path, monkeypatch, capsys):
    """As with a matplotlibrc that asks for TeX where there is none."""

    def draw(*_):
        raise RuntimeError("latex\ncould not be found")

    monkeypatch.setattr(run_folder, "draw_losses", draw)
    assert train("--data", text, "--out", tmp_path / "run") == 0
    said = capsys.readouterr().err
    assert said.count("loss.png: still an earlier picture: latex could not be found") == 1
    assert RunFolder(tmp_path / "run").read().step == 12


def test_a_run_inside_its_own_data_can_be_resumed(text, tmp_path, monkeypatch):
    notes = tmp_path / "notes"
    notes.mkdir()
    text.rename(notes / "text.txt")
    monkeypatch.chdir(notes)
    here = ["--data", ".", "--out", "runs/a"]
    train(*here)
    assert train(*here, "--resume", "--steps=13") == 0
    train("--data", ".", "--out", "runs/b")
    assert losses(Path("runs/a"))[:12] == losses(Path("runs/b"))
    train("--data", ".", "--out", ".")
    assert train("--data", ".", "--out", ".", "--resume", "--steps=13") == 0
    assert losses(Path(".")) == losses(Path("runs/a"))


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_console_that_cannot_show_a_text_ends_no_run(tmp_path, encoding):
    text = tmp_path / "text.txt"
    text.write_text("\u4f60\u597d\n" * 900, encoding="utf-8")
    env = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = command("gpt.train", *TINY, "--data", text, "--out", tmp_path / "run", env=env)
    assert done.returncode == 0 and "held-out loss" in done.stdout, done.stderr


def test_memory_that_is_not_there_is_one_line(text, tmp_path):
    huge = "--n-embd=2000000000"
    done = command("gpt.train", *TINY, "--data", text, "--out", tmp_path / "r", huge)
    assert done.returncode == 2 and "not enough memory" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"n_layer": "1"}, "n_layer is '1'"), ({"n_head": 3}, "n_head 3 does not divide"),
        ({"n_positions": None}, "n_positions is None"), ({"n_embd": 1e300}, "n_embd is 1e.300"),
        ({"n_embd": {}, "n_inner": 5}, "n_embd is {}"), ({"resid_pdrop": 1.0}, "resid_pdrop is 1"),
        ({"resid_pdrop": "a"}, "resid_pdrop is 'a'"), ({"bias": "no"}, "bias is 'no'"),
        (None, "expected an object"), ("[" * 100_000, "cannot be read"),
    ],
    ids=str,
)  # fmt: skip
def test_odd_values_in_a_config_are_named(tmp_path, change, says):
    GPT(config=load_preset("nanogpt-cpu").model(10)).save(tmp_path)
    path = tmp_path / "config.json"
    if isinstance(change, dict):
        change = json.dumps(json.loads(path.read_text()) | change)
    path.write_text(change or "null")
    with pytest.raises(UserError, match=says):
        GPT.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"n_layer": 10**9}, "there are 1 blocks, the config says 1000000000"),
        ({"vocab_size": 10**12}, r"wte.weight has shape \(10, 4\), the config says \(10{12}, 4\)"),
        ({"n_positions": 10**12}, r"wpe.weight has shape \(8, 4\), the config says \(10{12}, 4\)"),
        ({"n_embd": 10**12}, r"wte.weight has shape \(10, 4\), the config says \(10, 10{12}\)"),
    ],
    ids=str,
)
def test_a_config_of_a_larger_model_is_refused_before_its_model_is_built(
    tmp_path, monkeypatch, change, says
):
    GPT(GPTConfig(10, 8, 1, 1, 4)).save(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    monkeypatch.setattr(GPT, "__init__", lambda *_, **__: pytest.fail("built"))
    with pytest.raises(UserError, match=says):
        GPT.load(tmp_path)
