"""A run folder under failing calls, kills, full disks and damage: exactly old or exactly new."""

import errno
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

from gpt import disk, run_folder
from gpt.disk import write_atomically
from gpt.errors import UserError
from gpt.run_folder import RunFolder


class FailingDisk(disk.Calls):
    """Fails the n-th call (and, if `for_good`, all after it); `most` bytes a write."""

    CALLS = ("open", "read", "pread", "write", "fsync", "truncate", "replace", "link", "unlink")

    def __init__(self, at=0, error=errno.EIO, for_good=False, most=None, on_call=None):
        self.log, self.failed = [], False
        for name in self.CALLS:
            setattr(self, name, self.wrapped(name, at, error, for_good, most, on_call))

    def wrapped(self, name, at, error, for_good, most, on_call):
        real = getattr(disk.Calls, name)

        def call(*arguments):
            self.log.append((name, *arguments))
            if on_call:
                on_call(len(self.log))
            if len(self.log) == at or (for_good and at and len(self.log) > at):
                self.failed = True
                if name == "write" and len(arguments[1]) > 1:  # half of it arrives all the same
                    real(arguments[0], arguments[1][: len(arguments[1]) // 2])
                raise OSError(error, os.strerror(error))
            if name == "write" and most:
                arguments = (arguments[0], arguments[1][:most])
            return real(*arguments)

        return call


def arrays(step):
    """A checkpoint whose every number depends on the step."""
    rng = np.random.default_rng(step)
    model = {
        "h.weight": rng.standard_normal((3, 4), np.float32).T,  # not contiguous
        "scalar": np.array(step, np.float64),
        "mask": rng.random(5) < 0.5,
        "none": np.zeros((0, 3), np.float32),
    }
    state = {"m.h.weight": rng.standard_normal((4, 3)), "ids": rng.integers(0, 9, 7, np.uint16)}
    return model, state, {"rng": rng.bit_generator.state, "name": "é", "lr": 0.1 * step}


def commit(folder, step):
    folder.metrics.append({"step": step, "loss": 1 / step})
    folder.commit(step, *arrays(step))


def assert_is(checkpoint, step):
    model, state, info = arrays(step)
    assert (checkpoint.step, checkpoint.info) == (step, info)
    for found, expected in ((checkpoint.model, model), (checkpoint.state, state)):
        assert found.keys() == expected.keys()
        for name in expected:
            assert found[name].dtype == expected[name].dtype
            assert found[name].shape == expected[name].shape
            assert found[name].tobytes() == expected[name].tobytes(), name


def assert_published(path):
    """model.safetensors is the file that train.json names."""
    entry = json.loads((path / "train.json").read_text())["files"]["model"]
    assert (path / "model.safetensors").read_bytes() == (path / entry["name"]).read_bytes()


def assert_tidy(path):
    files = json.loads((path / "train.json").read_text())["files"].values()
    expected = {"train.json", "metrics.jsonl", "model.safetensors", *(f["name"] for f in files)}
    assert set(os.listdir(path)) == expected


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """What is seen after a kill does not depend on fsync; its order has a test of its own."""
    monkeypatch.setattr(disk.Calls, "fsync", staticmethod(lambda _: None))


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.open_new()
    return folder


@pytest.fixture
def saved(folder):
    commit(folder, 1)
    return folder


def test_a_checkpoint_comes_back_bit_for_bit(folder):
    assert folder.read() is None
    for step in (1, 2, 2, 2, 7):  # a step committed again must not touch the committed files
        commit(folder, step)
        assert_is(RunFolder(folder.path).read(), step)
        assert_published(folder.path)
        assert_tidy(folder.path)


def test_transformers_metadata_and_library_agree(saved):
    with safetensors.safe_open(saved.path / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == set(arrays(1)[0])


@pytest.mark.parametrize("for_good", [False, True])
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("step", [1, 2])
def test_whichever_call_fails_one_checkpoint_is_whole(tmp_path, monkeypatch, error, for_good, step):
    for n in range(1, 1000):
        folder = RunFolder(tmp_path / str(n))
        folder.open_new()
        commit(folder, 1)
        before = (folder.path / "train.json").read_bytes()
        failing = FailingDisk(n, error, for_good)
        monkeypatch.setattr(disk, "calls", failing)
        raised = False
        folder.metrics.append({"step": 2, "loss": 2.0})
        try:
            folder.commit(step, *arrays(2))
        except OSError as failure:
            raised = True
            assert failure.errno == error
        monkeypatch.setattr(disk, "calls", disk.Calls())
        found = RunFolder(folder.path).read()
        if (folder.path / "train.json").read_bytes() == before:
            assert raised, f"call {n} was swallowed"
            assert_is(found, 1)
        else:
            expected = arrays(2)
            assert found.step == step
            assert found.model["h.weight"].tobytes() == expected[0]["h.weight"].tobytes()
            assert found.info == expected[2]
        assert_published(folder.path)
        commit(folder, 3)  # the run goes on, and no row was lost
        assert_is(RunFolder(folder.path).read(), 3)
        assert_tidy(folder.path)
        assert [row["step"] for row in RunFolder(folder.path).metrics.rows()] == [1, 2, 3]
        if not failing.failed:
            break
    assert n > 25


def test_a_failure_leaves_no_partial_files(saved, monkeypatch):
    for n in range(1, 100):
        monkeypatch.setattr(disk, "calls", failing := FailingDisk(n, errno.ENOSPC))
        try:
            saved.commit(n, *arrays(n))
        except OSError:
            assert not [f for f in os.listdir(saved.path) if "partial" in f], n
        if not failing.failed:
            break
    assert 25 < n < 99


def test_everything_is_flushed_before_the_commit_and_nothing_removed_before_it_is(
    saved, monkeypatch
):
    recording = FailingDisk()
    monkeypatch.setattr(disk, "calls", recording)
    commit(saved, 2)
    calls = [(name, str(rest[-1]).rpartition("/")[2]) for name, *rest in recording.log]
    at = calls.index(("replace", "train.json"))
    opened, dirty = None, set()
    for name, *rest in recording.log[:at]:
        if name == "open":
            opened = str(rest[0])
        elif name == "write":
            dirty.add(opened)
        elif name == "fsync":
            dirty.discard(opened)
    assert not dirty
    removals = [i for i, (name, of) in enumerate(calls) if name == "unlink" and "partial" not in of]
    assert len(removals) == 2 and min(removals) > at  # the files of the earlier checkpoint
    assert "fsync" in [name for name, _ in calls[at : min(removals)]]  # of the folder


KILLED = """
import os, signal, sys
sys.path[:0] = [{root!r}, {tests!r}]
import test_run_folder as t
from gpt import disk, run_folder
disk.Calls.fsync = staticmethod(lambda _: None)
def scene(path, k):
    done = os.open(path + ".done", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    def on_call(n):
        if n == k:
            os.kill(os.getpid(), signal.SIGKILL)
    disk.calls = t.FailingDisk(on_call=on_call, most=2000)
    folder = run_folder.RunFolder(path)
    folder.open_new()
    for step in (1, 2, 2):
        t.commit(folder, step)
        os.write(done, b"%d" % step)
for k in range(1, 1000):
    child = os.fork()
    if not child:
        scene(os.path.join({tmp!r}, str(k)), k)
        os._exit(0)
    if not os.WIFSIGNALED(os.waitpid(child, 0)[1]):
        print(k)
        break
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_a_kill_at_any_call_leaves_exactly_old_or_exactly_new(tmp_path):
    here = os.path.dirname(__file__)
    root = os.path.dirname(os.path.dirname(here))
    script = KILLED.format(root=root, tests=here, tmp=str(tmp_path))
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    kills = int(run.stdout)
    assert kills > 100
    for k in range(1, kills):
        path = tmp_path / str(k)
        done = [int(c) for c in (tmp_path / f"{k}.done").read_text()]
        folder = RunFolder(path)
        checkpoint = folder.read()
        if checkpoint is None:
            assert not done
            folder.open_new(overwrite=True)
            step = 0
        else:
            step = checkpoint.step
            assert step in (max(done, default=0), max(done, default=0) + 1), k
            assert_is(checkpoint, step)
            assert_published(path)
        folder.metrics.cut(step)
        assert {row["step"] for row in folder.metrics.rows()} == set(range(1, step + 1))
        commit(folder, 9)
        assert_is(RunFolder(path).read(), 9)
        assert_tidy(path)


def test_short_writes_lose_nothing(saved, monkeypatch):
    monkeypatch.setattr(disk, "calls", FailingDisk(most=7))
    commit(saved, 2)
    assert_is(saved.read(), 2)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_FSIZE as Linux has it")
def test_a_full_disk_keeps_the_old_checkpoint(saved):
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(OSError) as failure:
            saved.commit(2, {"big": np.zeros(1000)}, {}, {})
        assert failure.value.errno == errno.EFBIG
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert_is(saved.read(), 1)
    assert_tidy(saved.path)


@pytest.mark.parametrize("role", ["model", "state"])
def test_a_truncated_or_missing_file_is_named(saved, role):
    path = saved.path / f"{role}-0000001.safetensors"
    data = path.read_bytes()
    for length in (0, 1, 8, 20, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(UserError, match=rf"{path.name}: is cut short, {length} bytes of"):
            saved.read()
    path.write_bytes(data + b"x")
    with pytest.raises(UserError, match=rf"{path.name}: is too long"):
        saved.read()
    path.unlink()
    with pytest.raises(UserError, match=rf"{path.name}: is missing"):
        saved.read()


@pytest.mark.parametrize("role", ["model", "state"])
def test_a_flipped_byte_is_found_and_its_tensor_named(saved, role):
    path = saved.path / f"{role}-0000001.safetensors"
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    place = {p: "its header" for p in range(start)}
    for name, tensor in header.items():
        if name != "__metadata__":
            begin, end = (start + offset for offset in tensor["data_offsets"])
            place |= {p: f"tensor {name}" for p in range(begin, end)}
    assert len(place) == len(data)
    for position in range(len(data)):
        for bit in (1, 64):
            flipped = bytearray(data)
            flipped[position] ^= bit
            path.write_bytes(flipped)
            with pytest.raises(UserError, match=f"{path.name}: is damaged in {place[position]};"):
                saved.read()


def test_a_flipped_byte_in_train_json_is_found(saved):
    path = saved.path / "train.json"
    data = path.read_bytes()
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1
        path.write_bytes(flipped)
        with pytest.raises(UserError, match=r"train\.json: "):
            saved.read()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[1, 2]", "is not a run's"),
        (b'{"epochs": 3}', "is not a run's"),
        (b'{"format": 2, "step": 1, "files": {}}', "format 2, this program reads format 1"),
        (b'{"format": 1, "step": 1, "files": {}}', "checksum"),
    ],
)
def test_a_foreign_train_json_is_refused(saved, content, complaint):
    (saved.path / "train.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"train\.json: .*{complaint}"):
        saved.read()


@pytest.mark.parametrize("links", [True, False])
def test_reading_mends_model_safetensors(saved, monkeypatch, links):
    if not links:

        def no_links(*_):
            raise OSError(errno.EPERM, "no hard links here")

        monkeypatch.setattr(disk.Calls, "link", staticmethod(no_links))
        commit(saved, 2)
        assert_published(saved.path)
    public = saved.path / "model.safetensors"
    public.unlink()
    saved.read()
    assert_published(saved.path)
    public.unlink()
    public.write_bytes(b"an earlier model")
    saved.read()
    assert_published(saved.path)
    assert saved.trouble is None


def test_reading_a_run_that_goes_on_meanwhile(saved, monkeypatch):
    real, reader = disk.Calls.read, RunFolder(saved.path)
    moments = iter([2])

    def read(*arguments):
        data = real(*arguments)
        for step in moments:  # once: right after train.json was read
            commit(saved, step)
        return data

    monkeypatch.setattr(disk.Calls, "read", staticmethod(read))
    assert_is(reader.read(), 2)


def test_an_earlier_run_is_never_overwritten_unasked(saved):
    (saved.path / "notes.txt").write_text("mine")
    for name in ("train.json", "metrics.jsonl", "model-0000001.safetensors"):
        with pytest.raises(UserError, match=r"--resume .* --overwrite .* another --out"):
            RunFolder(saved.path).open_new()
        assert_is(saved.read(), 1)
        saved.path.joinpath(name).rename(saved.path / "aside")
        with pytest.raises(UserError, match="holds an earlier run"):
            RunFolder(saved.path).open_new()
        saved.path.joinpath("aside").rename(saved.path / name)
    RunFolder(saved.path).open_new(overwrite=True)
    assert sorted(os.listdir(saved.path)) == ["metrics.jsonl", "notes.txt"]
    assert not saved.metrics.rows()


def test_overwriting_that_fails_midway_leaves_a_run_or_none(tmp_path, monkeypatch):
    for n in range(1, 100):
        folder = RunFolder(tmp_path / str(n))
        folder.open_new()
        commit(folder, 1)
        failing = FailingDisk(n, for_good=True)
        monkeypatch.setattr(disk, "calls", failing)
        if failing.failed:
            with pytest.raises(UserError, match="cannot keep a run here"):
                folder.open_new(overwrite=True)
        else:
            try:
                folder.open_new(overwrite=True)
            except UserError:
                assert failing.failed
        monkeypatch.setattr(disk, "calls", disk.Calls())
        found = folder.read()
        assert found is None or (found.step == 1 and n == 1)
        if not failing.failed:
            break
    assert n > 5


def test_a_place_that_cannot_hold_a_run_is_the_users_mistake(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=r"file.*: (is a file|cannot keep a run here)"):
            RunFolder(path).open_new()
    monkeypatch.setattr(disk, "calls", FailingDisk(1, errno.EROFS, for_good=True))
    with pytest.raises(UserError, match="Read-only file system; make it writable"):
        RunFolder(tmp_path / "run").open_new()


def test_metrics_are_strict_json_and_a_torn_line_is_dropped(folder):
    folder.metrics.append({"step": 1, "loss": np.float32(0.5)})
    folder.metrics.append(
        {"step": np.int64(2), "loss": float("nan"), "val_loss": np.float32(np.inf)}
    )
    path, two = folder.path / "metrics.jsonl", None
    for torn in (b"", b"{", b'{"step": 3, "loss": 0.2}', b'{"step": 3', b"\0\0\0\n"):
        whole = path.read_bytes() if two is None else two
        two = whole
        path.write_bytes(whole + torn)
        expected = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": None, "val_loss": None}]
        assert RunFolder(folder.path).metrics.rows() == expected
    path.write_bytes(two + b'{"step": 3')
    again = RunFolder(folder.path)
    again.metrics.append({"step": 3, "loss": 3.0})
    assert [row["step"] for row in again.metrics.rows()] == [1, 2, 3]
    assert path.read_bytes().count(b"\n") == 3


def test_pictures_take_a_hundredth_of_the_time_until_the_final_one(tmp_path, monkeypatch):
    clock, drawn = [1000.0], []

    def draw(rows, path):
        drawn.append(clock[0])
        clock[0] += 0.5

    monkeypatch.setattr(run_folder, "draw_losses", draw)
    monkeypatch.setattr(run_folder.time, "monotonic", lambda: clock[0])
    folder = RunFolder(tmp_path)
    for second in (1000, 1001, 1050, 1051, 1052):
        clock[0] = second
        folder.draw(final=False)
    folder.draw()
    assert drawn == [1000, 1051, 1052]


@pytest.mark.parametrize(
    "wrong",
    [
        b"oops", b'{"step": 2, "lo', b"\0\0\0", b"\xff", b"", b"[1]", b"[" * 10**5,
        b'{"loss": 1.0}', b'{"step": "2"}', b'{"step": 2, "loss": "low"}',
    ],
    ids=lambda line: line[:20],
)  # fmt: skip
def test_a_line_that_is_no_row_costs_that_line_alone(folder, wrong):
    path = folder.path / "metrics.jsonl"
    lines = [b'{"step": %d, "loss": 0.5}\n' % step for step in (1, 2, 3)]
    lines[1] = wrong + b"\n"
    path.write_bytes(b"".join(lines))
    metrics = RunFolder(folder.path).metrics
    assert [row["step"] for row in metrics.rows()] == [1, 3]
    assert "metrics.jsonl: left out line 2, which is no row: " in metrics.left_out
    again = RunFolder(folder.path)
    again.draw()
    assert "left out line 2" in again.trouble and (folder.path / "loss.png").exists()
    assert "left out line 2" in again.metrics.cut(3)
    assert path.read_bytes() == lines[0] + lines[2]
    assert again.metrics.cut(3) is None
    again.draw()
    assert again.trouble is None


def test_zeros_at_the_end_do_not_come_to_lie_in_the_middle(folder):
    path = folder.path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n\0\0\0\n')
    assert RunFolder(folder.path).metrics.cut(1) is None
    again = RunFolder(folder.path)
    again.metrics.append({"step": 2})
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'


def test_rows_wait_for_a_disk_that_is_full(folder, monkeypatch):
    folder.metrics.append({"step": 1})
    assert folder.trouble is None
    for n in range(1, 12):
        monkeypatch.setattr(disk, "calls", FailingDisk(n, errno.ENOSPC, for_good=True))
        folder.metrics.append({"step": len(folder.metrics._tail)})
        if not disk.calls.failed:
            break
        assert "metrics.jsonl: rows wait in memory: No space left" in folder.trouble
        with pytest.raises(OSError):
            folder.metrics.sync()
        monkeypatch.setattr(disk, "calls", disk.Calls())
        seen = (folder.path / "metrics.jsonl").read_bytes()
        folder.metrics.append({"step": 0, "again": n})
        assert folder.trouble is None
        after = (folder.path / "metrics.jsonl").read_bytes()
        assert after.startswith(seen[: seen.rfind(b"\n") + 1])
    monkeypatch.setattr(disk, "calls", disk.Calls())
    rows = RunFolder(folder.path).metrics.rows()
    assert [row["again"] for row in rows if "again" in row] == list(range(1, n))
    assert len(rows) == 2 * n


def test_after_a_failed_fsync_the_rows_are_written_again(folder, monkeypatch):
    folder.metrics.append({"step": 1})

    def failing(_):
        raise OSError(errno.EIO, "lost")

    monkeypatch.setattr(disk.Calls, "fsync", staticmethod(failing))
    with pytest.raises(OSError):
        folder.metrics.sync()
    monkeypatch.setattr(disk.Calls, "fsync", staticmethod(lambda _: None))
    (folder.path / "metrics.jsonl").write_bytes(b"\0" * 12)  # what the system kept of it
    folder.metrics.sync()
    assert RunFolder(folder.path).metrics.rows() == [{"step": 1}]


def test_cut_drops_what_comes_after_the_checkpoint(folder):
    for step in range(1, 6):
        folder.metrics.append({"step": step})
    first = (folder.path / "metrics.jsonl").read_bytes().splitlines()[:3]
    again = RunFolder(folder.path)
    again.metrics.cut(3)
    assert (folder.path / "metrics.jsonl").read_bytes().splitlines() == first
    again.metrics.append({"step": 4, "resumed_from": 3})
    assert [row["step"] for row in again.metrics.rows()] == [1, 2, 3, 4]
    RunFolder(folder.path / "nowhere").metrics.cut(3)


def test_write_atomically_keeps_the_old_file_when_the_writer_fails(tmp_path):
    path = tmp_path / "loss.png"
    write_atomically(path, b"old")

    def failing(partial):
        assert partial.suffix == ".png" and partial.parent == tmp_path
        partial.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, failing)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["loss.png"]
    write_atomically(path, lambda partial: partial.write_bytes(b"new"))
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["loss.png"]


def test_a_folder_that_refuses_says_what_would_help(saved, monkeypatch):
    monkeypatch.setattr(disk, "calls", FailingDisk(1, errno.EACCES, for_good=True))
    with pytest.raises(UserError, match=r"train\.json: .* Permission denied; make it readable"):
        saved.read()
    monkeypatch.setattr(disk, "calls", FailingDisk(4, errno.EACCES, for_good=True))
    with pytest.raises(UserError, match="cannot be written: Permission denied; mend that"):
        RunFolder(saved.path).metrics.cut(0)
