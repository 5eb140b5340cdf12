"""Whether a step fits on a chip is known before it begins, and the ways out that are named work."""

import random
import re
import sys

import numpy as np
import pytest

from gpt import config as cli
from gpt import fit, train
from gpt.errors import UserError
from gpt.model import GPT, GPTConfig
from tinygrad_edu.kernels import blocks
from tinygrad_edu.memory import Chip, ChipMemoryError, parse_size

SHAPE = [
    "--n-layer=3", "--n-head=2", "--n-embd=32", "--block-size=32", "--batch-size=6", "--steps=2",
    "--eval-every=2", "--eval-batches=1", "--warmup-steps=1", "--tokenizer=char", "--dropout=0.1",
]  # fmt: skip


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch, tmp_path):
    monkeypatch.setenv("TINYGRAD_EDU_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(blocks, "UNIT_BYTES", 8192)
    fit.rehearse.cache_clear()
    yield
    fit.rehearse.cache_clear()


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("".join(random.Random(0).choices("abcdefgh \n", k=4000)))
    return path


def parsed(*arguments):
    config = cli.parse([*SHAPE, *map(str, arguments)])
    return config, config.model(10)


def refusal(*arguments):
    config, shape = parsed(*arguments)
    with pytest.raises(UserError) as error:
        fit.choose_recompute(config, shape)
    return str(error.value)


def ways(message):
    """The settings that a refusal proposes, as lists of arguments."""
    proposed = message.split("what would fit: ")[1].split("; ")
    return [re.sub(r" \(.*\)", "", way).split() for way in proposed]


def needed(*arguments):
    config, shape = parsed(*arguments)
    return fit.rehearse(shape, config.batch_size, config.recompute == "on").needed


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("recompute", [False, True], ids=["stored", "recomputed"])
@pytest.mark.parametrize(
    "shape",
    [
        GPTConfig(65, 32, 3, 2, 32),
        GPTConfig(65, 16, 2, 2, 64, dropout=0.1, bias=False),
        GPTConfig(400, 8, 1, 1, 40),
    ],
    ids=str,
)
def test_what_is_rehearsed_is_what_a_step_of_training_needs(shape, recompute, batch):
    """With distinct tokens: those that occur twice are looked up once."""
    least = fit.rehearse(shape, batch, recompute).needed
    ids = (np.arange(batch * shape.block_size) % shape.vocab_size).reshape(batch, -1)
    with Chip("20MB") as chip:
        model = GPT(shape, recompute=recompute)
        for _ in range(2):
            _, loss = model(ids, ids)
            (loss * 0.5).backward()
    assert least - 64 <= chip.peak_bytes <= least
    assert fit.rehearse(shape, batch, recompute).flops > 0


@pytest.mark.parametrize("recompute", ["off", "on"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_training_runs_on_a_chip_of_the_rehearsed_size(text, tmp_path, recompute, accumulate):
    size = needed("--recompute", recompute)
    arguments = [*SHAPE, f"--data={text}", f"--recompute={recompute}", f"--accumulate={accumulate}"]
    out = tmp_path / "run"
    assert train.main([*arguments, f"--chip={size}", f"--out={out}"]) == 0
    with pytest.raises(UserError, match="too small"):
        train.main([*arguments, f"--chip={size - 1}", f"--out={tmp_path / 'none'}"])
    assert not (tmp_path / "none").exists()


def test_a_run_that_fits_does_not_fail_at_its_closing_text(text, tmp_path, capsys, monkeypatch):
    """The keys and values of many narrow layers are more than a step with recompute holds."""

    def needs_more(model, *_):
        raise ChipMemoryError("no room")

    monkeypatch.setattr(train, "closing_text", needs_more)
    assert train.main([*SHAPE, f"--data={text}", "--chip=20MB", f"--out={tmp_path}"]) == 0
    assert f"run folder: {tmp_path}" in capsys.readouterr().out


def test_auto_recomputes_only_where_it_must():
    stored, recomputed = needed(), needed("--recompute", "on")
    assert recomputed < stored
    for size, expected in ((stored, False), (stored - 1, True), (recomputed, True)):
        assert fit.choose_recompute(*parsed("--recompute", "auto", "--chip", size)) is expected
    assert "too small" in refusal("--recompute", "auto", "--chip", recomputed - 1)
    assert fit.choose_recompute(*parsed("--recompute", "on", "--chip", stored)) is True
    assert fit.choose_recompute(*parsed("--recompute", "off", "--chip", stored)) is False


@pytest.mark.parametrize("share", [0.999, 0.7, 0.3, 0.1, 0.02, 1e-6])
@pytest.mark.parametrize("recompute", ["off", "on", "auto"])
@pytest.mark.parametrize("batch", [1, 6, 15])
def test_every_way_out_works(recompute, share, batch):
    given = ["--recompute", recompute, "--batch-size", batch, "--accumulate", 2]
    sizes = [needed("--recompute", r, "--batch-size", batch) for r in ("off", "on")]
    least = {"off": sizes[0], "on": sizes[1], "auto": min(sizes)}[recompute]
    given += ["--chip", max(1, int(least * share))]
    message = refusal(*given)
    assert "\n" not in message and f"{batch} x 32 tokens" in message
    for way in ways(message):
        config, shape = parsed(*given, *way)
        fit.choose_recompute(config, shape)  # raises if it does not fit
        if "--accumulate" in way:
            assert config.batch_size * config.accumulate == 2 * batch
    assert ways(message)[0][0] == "--chip"


def test_a_larger_batch_is_cut_into_equal_parts():
    given = ["--batch-size", 45, "--recompute", "on"]
    size = needed("--batch-size", 20, "--recompute", "on")
    found = ways(refusal(*given, "--chip", size))
    assert ["--batch-size", "15", "--accumulate", "3"] in found


@pytest.mark.parametrize("nbytes", [1, 999, 1000, 10**7, 10**7 + 1, 123_456_789, 10**12 + 7])
def test_a_size_as_a_flag_is_no_smaller_than_it_was(nbytes):
    size = parse_size(fit.as_flag(nbytes))
    assert nbytes <= size <= max(1.1 * nbytes, nbytes + 1000)


def test_a_chip_too_small_is_one_line_and_status_2(text, tmp_path, capsys, monkeypatch):
    arguments = [*SHAPE, f"--data={text}", f"--out={tmp_path / 'run'}", "--chip=20kB"]
    monkeypatch.setattr(sys, "argv", ["gpt.train", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.run(train.main, "gpt.train")
    assert end.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and "--chip 20kB is too small" in lines[0]


def test_the_announcement_names_the_figures():
    config, shape = parsed("--chip", "1MB", "--external", "/big/disk")
    line = fit.announcement(config, shape, True, 123_000_000)
    for figure in ("1.00 MB", "recompute on", "123 MB", "/big/disk"):
        assert figure in line
    assert "\n" not in line
