"""Faults of the external memory: the resident run's bits or a clean error, and never a hang."""

import contextlib
import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from gpt import run_folder
from gpt import train as train_command
from gpt.metrics import Metrics
from tinygrad_edu import nn
from tinygrad_edu.memory import (
    Chip,
    ExternalMemory,
    ExternalMemoryError,
    external_file,
    residency,
    transfer,
)
from tinygrad_edu.memory.transfer import Mover

from .doubles import METHODS, ROOMY, Medium, failing, live_threads, train, train_on_chip, within

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "preadv"), reason="positional reads"),
    pytest.mark.filterwarnings("ignore:.*was left live"),
]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TINYGRAD_EDU_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.bin"


@pytest.fixture(scope="module")
def tight():
    """The smallest chip for the small model: weights leave and come back all the time."""
    with Chip(ROOMY) as chip:
        train()
    return chip.peak_bytes


def assert_all_let_go(path):
    assert live_threads() == [] and Chip._open is None
    with Chip(ROOMY, ExternalMemory(path)):  # not locked, and not refused
        pass


# Calls that fail.


@pytest.mark.parametrize("for_good", [False, True], ids=["once", "for good"])
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC], ids=["EIO", "ENOSPC"])
@pytest.mark.parametrize("method", METHODS)
def test_whichever_call_fails_the_run_has_the_same_bits_or_says_so(
    path, monkeypatch, tight, method, error, for_good
):
    expected = train()
    for n in range(1, 1000):
        medium = failing(method, n, error, for_good)
        monkeypatch.setattr(external_file, "calls", medium)
        with within(20):
            try:
                assert train_on_chip(path, tight, poison=True) == expected
                assert not medium.failed, f"call {n} was swallowed"
            except ExternalMemoryError as failure:
                assert medium.failed and failure.errno == error
                assert str(path) in str(failure) and "\n" not in str(failure)
        if method == "fsync" and medium.failed:
            assert medium.log.count("fsync") == n, "a failed fsync was tried again"
        monkeypatch.setattr(external_file, "calls", external_file.Calls())
        assert_all_let_go(path)
        if not medium.failed:
            break
    assert n == medium.log.count(method) + 1 or method in ("read", "write")
    assert n > {"open": 1, "truncate": 1, "fsync": 3, "allocate": 12}.get(method, 30)
    assert train_on_chip(path, tight) == expected


@pytest.mark.parametrize("method", ["open", "allocate", "write", "fsync", "truncate", "replace"])
def test_whichever_call_fails_a_closed_file_is_whole_or_marked_live(path, monkeypatch, method):
    for n in range(1, 1000):
        train_on_chip(path, steps=1)
        before = path.read_bytes()
        medium = failing(method, n, errno.EIO)
        monkeypatch.setattr(external_file, "calls", medium)
        with contextlib.suppress(ExternalMemoryError):
            train_on_chip(path, steps=1)
        monkeypatch.setattr(external_file, "calls", external_file.Calls())
        if not medium.failed:
            break
        assert path.read_bytes() == before or b'"state": "live"' in path.read_bytes()[:100]
        assert_all_let_go(path)
    assert n > {"open": 2, "truncate": 1, "replace": 1, "fsync": 3}.get(method, 8)


def test_a_failed_fetch_that_is_dropped_unread_is_not_taken_for_a_weight(path, monkeypatch, tight):
    monkeypatch.setattr(residency, "AHEAD", 200)  # hardly any room for what nobody uses
    expected = train()
    for n in range(1, 1000):
        medium = failing("read", n, errno.EIO)
        monkeypatch.setattr(external_file, "calls", medium)
        with within(20):
            try:
                assert train_on_chip(path, tight, poison=True) == expected
                break
            except ExternalMemoryError:
                assert medium.failed
    assert 50 < n < 999 and not medium.failed


def failing_in_a_thread(method, n, error):
    """Fails the first call of `method` from number `n` on that the reader or writer makes."""

    def before(medium, name):
        here = threading.current_thread().name.startswith("chip ")
        if here and name == method and medium.log.count(name) >= n and not medium.failed:
            medium.failed = True
            raise error

    return Medium(before)


@pytest.mark.parametrize("error", [OSError(errno.EIO, "lost"), MemoryError("none left")], ids=repr)
@pytest.mark.parametrize("method", ["read", "write"])
def test_a_chip_that_lost_a_transfer_computes_nothing_more(path, monkeypatch, tight, method, error):
    def goes_wrong():
        try:
            train()
        except (ExternalMemoryError, MemoryError):
            return True

    failures = 0
    for n in range(1, 1000, 5):
        medium = failing_in_a_thread(method, n, error)
        monkeypatch.setattr(external_file, "calls", medium)
        with within(20), contextlib.suppress(ExternalMemoryError, MemoryError):
            with Chip(tight, ExternalMemory(path)):
                if goes_wrong():
                    failures += 1
                    assert goes_wrong()
        if not medium.failed:
            break
    assert failures > 5


# Threads that die.


@pytest.mark.filterwarnings("ignore:Exception in thread chip")
@pytest.mark.parametrize("victim", ["reader", "writer"])
def test_a_thread_that_dies_is_noticed_by_whoever_waits(path, monkeypatch, tight, victim):
    monkeypatch.setattr(transfer, "POLL", 0.01)
    work, expected, deaths = Mover._work, train(), 0
    for jobs in range(0, 200, 5):

        def die(self, jobs=jobs):
            if self.thread.name != f"chip {victim}":
                return work(self)
            while (job := self.queue.get()) is not None:
                if jobs == 0:
                    raise SystemExit
                job.run()
                jobs -= 1

        monkeypatch.setattr(Mover, "_work", die)
        with within(20):
            try:
                assert train_on_chip(path, tight, poison=True) == expected
                break
            except RuntimeError as error:
                assert "has died: this chip cannot go on; resume from the last" in str(error)
                deaths += 1
        assert_all_let_go(path)
    assert deaths >= 3 and jobs < 195


def test_a_thread_that_is_closed_drops_what_it_has_not_begun():
    mover, begun, go, done = Mover("reader"), threading.Event(), threading.Event(), []

    def first():
        begun.set()
        go.wait()
        done.append(1)

    jobs = [mover.submit(first, "a"), mover.submit(lambda: done.append(2), "the weight of b")]
    begun.wait()
    closing = threading.Thread(target=mover.close)
    closing.start()
    while not mover.closing:
        time.sleep(0.001)
    go.set()
    closing.join()
    with within(5):
        jobs[0].wait()
        with pytest.raises(
            RuntimeError, match="the weight of b was not moved: the chip was closed"
        ):
            jobs[1].wait()
    assert done == [1] and not mover.alive


# Interrupts.


@pytest.fixture
def ctrl_c():
    """SIGINT as in a terminal: a process in the background may have been told to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("where", ["loop", "read", "write"])
def test_ctrl_c_ends_the_chip_at_once_and_leaves_the_file_live(path, monkeypatch, where):
    def each_step(model, step):
        if where == "loop" and step == 1:
            raise KeyboardInterrupt

    def before(medium, method):
        if method == where and medium.log.count(method) == 30:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(external_file, "calls", Medium(before))
    with within(10), pytest.raises(KeyboardInterrupt):
        train_on_chip(path, steps=1000, each_step=each_step)
    assert live_threads() == [] and Chip._open is None
    with pytest.warns(UserWarning, match=rf"left live by process {os.getpid()}"):
        assert train_on_chip(path) == train()


def test_ctrl_c_while_the_chip_closes_does_not_mark_the_file_closed(path, monkeypatch):
    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Chip, "settle", interrupted)
    with pytest.raises(KeyboardInterrupt), Chip(ROOMY, ExternalMemory(path)):
        nn.Parameter(np.ones(3, np.float32), requires_grad=False)
    monkeypatch.undo()
    with pytest.warns(UserWarning, match="left live"):
        assert_all_let_go(path)


# A disk that is full.


class FileLimit:
    """No file grows past `nbytes` inside: a short write, then EFBIG."""

    def __init__(self, nbytes):
        self.nbytes = nbytes

    def __enter__(self):
        import resource

        self.limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        self.handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.nbytes, self.limits[1]))

    def __exit__(self, *_):
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, self.limits)
        signal.signal(signal.SIGXFSZ, self.handler)


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_FSIZE of Linux")


@linux
def test_a_full_disk_is_a_clean_error_wherever_it_ends(path, monkeypatch):
    def full(nbytes):
        path.unlink()
        with FileLimit(nbytes), pytest.raises(ExternalMemoryError) as failure:
            train_on_chip(path)
        assert failure.value.errno == errno.EFBIG
        assert_all_let_go(path)

    train_on_chip(path)
    whole = path.stat().st_size
    for nbytes in (
        0,
        50,
        100,
        5000,
        whole // 2,
        whole - 2000,
        whole - 1,
    ):  # the last two: in the table
        full(nbytes)
    # A file system that promises room and does not have it: the weights are cut short.
    monkeypatch.setattr(external_file.Calls, "allocate", staticmethod(lambda *_: None))
    for nbytes in (4096 + 100, 2 * 4096 + 1, 3 * 4096):
        full(nbytes)
    monkeypatch.undo()
    assert train_on_chip(path) == train()


# The command line.

TEXT = "".join(random.Random(0).choices("abcdefgh \n", k=4000))
FLAGS = [
    "--n-layer=2", "--n-head=2", "--n-embd=16", "--block-size=16", "--batch-size=2", "--steps=6",
    "--eval-every=2", "--eval-batches=1", "--warmup-steps=2", "--tokenizer=byte", "--dropout=0.1",
]  # fmt: skip
TIGHT = "--chip=230kB"


def only_train():
    """The sample and the picture at the end take longer than the run."""
    train_command.closing_text = run_folder.draw_losses = lambda *_, **__: ""


@pytest.fixture
def text(tmp_path, monkeypatch):
    for module, name in ((train_command, "closing_text"), (run_folder, "draw_losses")):
        monkeypatch.setattr(module, name, getattr(module, name))
    only_train()
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def resident(text, tmp_path):
    """The checkpoint of a run without a chip that nothing interrupted."""
    assert main(text, tmp_path / "resident") == 0
    return checkpoint(tmp_path / "resident")


def main(text, run, *more):
    preset = "default"  # so that nothing is taken from the run that is resumed
    return train_command.main([preset, *FLAGS, f"--data={text}", f"--out={run}", *map(str, more)])


def checkpoint(run, step=6):
    return [(run / f"{role}-{step:07d}.safetensors").read_bytes() for role in ("model", "state")]


def script(code, *arguments, **options):
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    options = {"capture_output": True, "text": True, "env": env, "timeout": 600} | options
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], **options)


def stop_after(step, *arguments):
    """A run with a Ctrl-C during `step`."""
    append = Metrics.append

    def append_and_interrupt(self, row):
        append(self, row)
        if row["step"] == step:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Metrics, "append", append_and_interrupt)
        assert main(*arguments) == 130


@pytest.mark.parametrize("step", [1, 3, 4])
def test_ctrl_c_and_resume_have_the_bits_of_a_resident_run(text, tmp_path, path, resident, step):
    run = tmp_path / "run"
    chip = (TIGHT, f"--external={path}")
    stop_after(step, text, run, *chip)
    assert main(text, run, "--resume", *chip) == 0
    assert checkpoint(run) == resident


@pytest.mark.parametrize("begun", ["resident", "streamed"])
def test_resident_and_streamed_runs_resume_each_other(text, tmp_path, path, resident, begun):
    run = tmp_path / "run"
    chip = (TIGHT, f"--external={path}")
    first, second = ((), chip) if begun == "resident" else (chip, ())
    stop_after(3, text, run, *first)
    assert main(text, run, "--resume", *second) == 0
    assert checkpoint(run) == resident


def test_damage_found_at_a_checkpoint_ends_the_run(text, tmp_path, path, monkeypatch, capsys):
    """Not a disk that is full for a while: the run must not go on with these numbers."""
    run, commit = tmp_path / "run", train_command.RunFolder.commit

    def damaged(self, step, *rest):
        if step == 4:
            with open(path, "r+b") as file:
                file.seek(external_file.PAGE)  # the first weight
                file.write(b"\1\2\3\4")
        commit(self, step, *rest)

    monkeypatch.setattr(train_command.RunFolder, "commit", damaged)
    with pytest.raises(train_command.UserError, match=r"corrupted in the weight of transformer\."):
        main(text, run, TIGHT, f"--external={path}")
    assert "going on" not in capsys.readouterr().err
    assert train_command.RunFolder(run).read().step == 2


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)
from gpt import config, train
config.run(train.main, "gpt.train")
"""


@linux
def test_a_full_disk_is_one_line_and_status_2_and_keeps_the_checkpoint(text, tmp_path, path):
    run = tmp_path / "run"
    stop_after(3, text, run)
    before = checkpoint(run, 3)
    flags = ["default", *FLAGS, f"--data={text}", f"--out={run}", "--resume", TIGHT]
    done = script(LIMITED, 200_000, *flags, f"--external={path}")
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"gpt.train: {path} no room for the ")
    assert os.strerror(errno.EFBIG) in line
    assert "resume from the last checkpoint" in line
    assert checkpoint(run, 3) == before
    assert train_command.RunFolder(run).read().step == 3


def test_an_external_file_that_is_not_ours_is_one_line_and_status_2(text, tmp_path):
    flags = [*FLAGS, f"--data={text}", f"--out={tmp_path / 'run'}", TIGHT, f"--external={text}"]
    done = script("from gpt import config, train; config.run(train.main, 'gpt.train')", *flags)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "is not an external memory: it will not be overwritten" in line
    assert text.read_text() == TEXT


# One process that imports once, and a child per kill: each dies at call k of the external file.
KILLED = """
import os, signal, sys
sys.path.insert(0, {root!r})
from gpt import disk, train
from tests.memory.doubles import Medium
from tests.memory.test_faults import only_train
from tinygrad_edu.memory import external_file
only_train()
disk.Calls.fsync = external_file.Calls.fsync = staticmethod(lambda _: None)  # no power is cut here
def scene(k):
    def before(medium, method):
        if len(medium.log) == k:
            os.kill(os.getpid(), signal.SIGKILL)
    external_file.calls = Medium(before)
    out, err = (os.open(os.devnull, os.O_WRONLY) for _ in "ab")
    os.dup2(out, 1), os.dup2(err, 2)
    flags = [f"--out={tmp}/run-{{k}}", f"--external={tmp}/external-{{k}}"]
    train.main([*{flags!r}, *flags])
    return len(external_file.calls.log)
for k in map(int, sys.argv[1:]):
    read, write = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            os.write(write, str(scene(k)).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(write)
    status = os.waitpid(child, 0)[1]
    counted = os.read(read, 20).decode()
    os.close(read)
    print(k, os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status), counted)
"""


def kill_at(text, tmp_path, calls):
    """A run per number in `calls`, killed at that call -> (number, signal or status, calls)."""
    flags = ["default", *FLAGS, f"--data={text}", TIGHT]
    code = KILLED.format(root=str(ROOT), tmp=str(tmp_path), flags=flags)
    done = script(code, *calls)
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()]


def assert_kills_lose_nothing(text, tmp_path, resident, share):
    """Kills at `share` (0 .. 1) of the run's calls."""
    ((_, status, count),) = kill_at(text, tmp_path, [10**9])
    assert status == "0" and checkpoint(tmp_path / f"run-{10**9}") == resident
    calls = sorted({1 + int(place * (int(count) - 2)) for place in share})
    resumed = 0
    for k, status, *_ in kill_at(text, tmp_path, calls):
        assert status == str(int(signal.SIGKILL)), k
        run, file = tmp_path / f"run-{k}", tmp_path / f"external-{k}"
        saved = run.exists() and train_command.RunFolder(run).read()
        resumed += bool(saved)
        with within(60):
            assert main(text, run, "--resume", TIGHT, f"--external={file}") == 0
        assert checkpoint(run) == resident, k
    return resumed


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")


@needs_fork
def test_a_kill_and_a_resume_have_the_bits_of_an_uninterrupted_run(text, tmp_path, resident):
    share = [0, 0.1, 0.45, 0.7, 0.9, 1]
    assert assert_kills_lose_nothing(text, tmp_path, resident, share) >= 2


@needs_fork
@pytest.mark.faults
def test_a_kill_at_any_call_loses_nothing(text, tmp_path, resident):
    share = np.linspace(0, 1, 80)
    assert assert_kills_lose_nothing(text, tmp_path, resident, share) > 30
