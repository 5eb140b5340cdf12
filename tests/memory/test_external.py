"""The external file: whose it is, what is found wrong with it, and what a chip does about it."""

import contextlib
import errno
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
import weakref
from pathlib import Path

import numpy as np
import pytest

import tinygrad_edu as tg
from tinygrad_edu import nn
from tinygrad_edu.memory import (
    Chip,
    ChipMemoryError,
    ExternalMemory,
    ExternalMemoryError,
    budget,
    external,
    external_file,
)
from tinygrad_edu.memory.external_file import PAGE

from .doubles import (
    ROOMY,
    Dawdling,
    Medium,
    Stuttering,
    Tiny,
    live_threads,
    train,
    train_on_chip,
    within,
)

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "preadv"), reason="positional reads"),
    pytest.mark.filterwarnings("ignore:.*was left live"),
]


@pytest.fixture(autouse=True)
def nothing_hangs_and_nothing_stays():
    with within(60):
        yield
    assert live_threads() == [] and Chip._open is None


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.bin"


@pytest.fixture
def closed(path):
    """A file that was closed in good order."""
    train_on_chip(path)
    return path


def opened(path):
    with Chip(ROOMY, ExternalMemory(path)):
        pass


def refused(path, match, number=None):
    """Opening raises one line that matches, and changes nothing."""
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(ExternalMemoryError, match=match) as caught:
        opened(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert number is None or caught.value.errno == number
    assert before is None or path.read_bytes() == before


def blobs_of(path):
    """What a closed file holds: (kind, name, start, bytes)."""
    header = json.loads(path.read_bytes()[:PAGE].rstrip(b"\0"))
    table = path.read_bytes()[header["table"] : header["table"] + header["table_bytes"]]
    return [(e["kind"], e["name"], e["start"], e["bytes"]) for e in json.loads(table)]


def flip(path, position, bit=1):
    data = bytearray(path.read_bytes())
    data[position] ^= bit
    path.write_bytes(data)


# Whose file it is.


@pytest.mark.parametrize(
    "content", [b"my notes", b"\0" * 5000, b"[" * 9000, b'{"magic": 3}', b"\xff", b"null"]
)
def test_a_file_that_is_not_ours_is_refused_and_left_alone(path, content):
    path.write_bytes(content)
    refused(path, "is not an external memory: it will not be overwritten; choose another path")


def test_an_empty_file_is_taken(path):
    path.touch()
    assert train_on_chip(path) == train()


def test_another_version_is_refused(closed):
    closed.write_bytes(closed.read_bytes().replace(b'"version": 1', b'"version": 7', 1))
    refused(closed, "has version 7, this program writes version 1: remove it")


def test_a_file_of_the_same_model_is_used_again(closed):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert train_on_chip(closed) == train()


def test_a_file_of_another_model_is_refused(closed):
    before = closed.read_bytes()
    with pytest.raises(
        ExternalMemoryError,
        match=r"is of another model: where it has embedding\.weight of float32 \(16, 4\), this one "
        r"has float32 \(16, 8\): remove it .* or choose another path",
    ):
        train_on_chip(closed, width=8)
    assert closed.read_bytes() == before and list(closed.parent.iterdir()) == [closed]


def parameters(path, optimizer, **shapes):
    """A chip on the file for a model with these parameters."""
    with Chip(ROOMY, ExternalMemory(path)):
        model = nn.Module()
        for name, shape in shapes.items():
            setattr(model, name, nn.Parameter(np.ones(shape, np.float32)))
        named = model.parameters()
        if optimizer:
            tg.optim.AdamW(named)


@pytest.mark.parametrize("optimizer", [False, True])
@pytest.mark.parametrize(
    "shapes, words",
    [
        ({"a": (2, 3), "b": (5, 4)}, r"where it has b of float32 \(4, 5\), .* has .* \(5, 4\)"),
        (
            {"a": (2, 3), "c": (4, 5)},
            r"where it has b of float32 \(4, 5\), .* has c of .* \(4, 5\)",
        ),
        ({"a": (2, 3), "b": (4, 5), "c": ()}, r"where it has nothing, this one has float32 \(\)"),
        ({"a": (2, 3)}, r"where it has b of float32 \(4, 5\), this one has nothing"),
    ],
    ids=["shape", "name", "more", "less"],
)
def test_a_refused_file_is_left_byte_for_byte_as_it_was(path, shapes, words, optimizer):
    parameters(path, True, a=(2, 3), b=(4, 5))
    before = path.read_bytes()
    with pytest.raises(ExternalMemoryError, match=f"another model: {words}: remove it"):
        parameters(path, optimizer, **shapes)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
    parameters(path, optimizer, a=(2, 3), b=(4, 5))
    assert list(path.parent.iterdir()) == [path]


def test_a_smaller_model_is_refused_before_it_is_trained(path):
    """By its names: as long as it may still grow, its shapes could be the first ones there."""
    parameters(path, True, a=(2, 3), b=(4, 5))
    with (
        pytest.raises(ExternalMemoryError, match=r"where it has a of .*, this one has c of"),
        Chip(ROOMY, ExternalMemory(path)),
    ):
        model = nn.Module()
        model.c = nn.Parameter(np.ones((2, 3), np.float32))
        tg.optim.AdamW(model.parameters())
        pytest.fail("it would be trained by now")


def test_a_closed_file_is_whole_until_its_model_is_there_again(path):
    """Whatever ends a chip before: an error, nothing at all, a kill."""
    parameters(path, True, a=(2, 3), b=(4, 5))
    before = path.read_bytes()
    opened(path)
    assert path.read_bytes() == before
    with pytest.raises(KeyError), Chip(ROOMY, ExternalMemory(path)):
        nn.Parameter(np.ones((2, 3), np.float32))
        raise KeyError
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
    code = ELSEWHERE.replace("np.ones(3,", "np.ones((2, 3),")
    with elsewhere(path, code) as process:
        assert path.read_bytes() == before
        refused(path, "is in use by process unknown")
        process.kill()
    parameters(path, True, a=(2, 3), b=(4, 5))
    assert list(path.parent.iterdir()) == [path]


def test_a_link_to_a_closed_file_stays_a_link(path, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(path)
    parameters(link, True, a=(2, 3))
    path.chmod(0o600)
    parameters(link, True, a=(2, 3))
    assert link.is_symlink() and set(tmp_path.iterdir()) == {link, path}
    assert path.stat().st_mode & 0o777 == 0o600
    opened(path)


def test_a_file_beside_a_closed_one_that_is_not_ours_is_left_alone(closed):
    before, notes = closed.read_bytes(), closed.with_name(closed.name + ".new")
    notes.write_bytes(b"my notes")
    with pytest.raises(ExternalMemoryError, match=f"{notes} is not an external memory"):
        train_on_chip(closed)
    assert closed.read_bytes() == before and notes.read_bytes() == b"my notes"


def test_a_closed_file_beside_another_is_not_emptied_for_it(path):
    beside = path.with_name(f"{path.name}.new")
    for each in (beside, path):
        parameters(each, True, a=(2, 3))
    before = path.read_bytes(), beside.read_bytes()
    with pytest.raises(ExternalMemoryError, match=f"{beside} is a closed .* in the way of another"):
        parameters(path, True, a=(2, 3))
    assert (path.read_bytes(), beside.read_bytes()) == before
    parameters(beside, True, a=(2, 3))


@pytest.mark.parametrize(
    "place, words",
    [("no/such/folder", "No such file or directory"), ("", "Is a directory")],
)
def test_a_place_that_cannot_hold_a_file_is_named(tmp_path, place, words):
    refused(tmp_path / place, f"cannot be opened as external memory: {words}")


def test_a_read_only_place_is_named(closed, monkeypatch):
    def open_read_only(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(external_file.Calls, "open", staticmethod(open_read_only))
    refused(closed, "cannot be opened as external memory: Read-only file system", errno.EROFS)


ELSEWHERE = """
import sys
import numpy as np
from tinygrad_edu import nn
from tinygrad_edu.memory import Chip, ExternalMemory
with Chip("1MB", ExternalMemory(sys.argv[1])):
    nn.Parameter(np.ones(3, np.float32))
    print("ready", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def elsewhere(path, code=ELSEWHERE):
    """Another process that has a chip on the file."""
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    ) as process:  # fmt: skip
        assert process.stdout.readline() == b"ready\n"
        yield process
        process.kill()


@pytest.fixture
def other(path):
    with elsewhere(path) as process:
        yield process


def test_a_file_in_use_names_the_process_that_uses_it(path, other):
    refused(path, f"is in use by process {other.pid}: wait for it, or choose another", errno.EBUSY)
    other.communicate(b"")  # it ends in good order
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened(path)


def test_a_file_in_use_in_this_process_is_refused_too(path):
    with Chip(ROOMY, ExternalMemory(path)):
        again = ExternalMemory(path)
        with pytest.raises(ExternalMemoryError, match=f"in use by process {os.getpid()}"):
            again.open()


def test_what_a_killed_process_left_live_is_volatile_and_made_anew(path, other):
    other.send_signal(signal.SIGKILL)
    other.wait()
    with pytest.warns(UserWarning, match=rf"left live by process {other.pid}.* is volatile"):
        assert train_on_chip(path) == train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened(path)


def test_a_memory_in_use_serves_no_second_chip_but_serves_one_later(path):
    memory, expected = ExternalMemory(path), train()
    for _ in range(3):
        with Chip(ROOMY, memory):
            assert train() == expected
            with pytest.raises(RuntimeError, match="already serves a chip"):
                memory.open()
        assert len(blobs_of(path)) == len(memory.blobs) == 12


# Damage.


def test_a_flipped_byte_in_the_header_is_found(closed):
    data = closed.read_bytes()
    used = len(data[:PAGE].rstrip(b"\0"))
    for position in [*range(used), used, PAGE // 2, PAGE - 1]:
        for bit in (1, 64):
            flip(closed, position, bit)
            refused(closed, "corrupted in its header|not an external memory|has version")
            closed.write_bytes(data)
    flip(closed, used - 70)  # in the checksum
    refused(closed, "is corrupted in its header: remove it .* or choose another path", errno.EIO)


def test_a_flipped_byte_in_the_table_is_found(closed):
    data = closed.read_bytes()
    header = json.loads(data[:PAGE].rstrip(b"\0"))
    for position in range(header["table"], header["table"] + header["table_bytes"], 97):
        flip(closed, position)
        refused(closed, "is corrupted in its table: remove it", errno.EIO)
        closed.write_bytes(data)


def test_a_flipped_byte_in_a_weight_or_in_optimizer_state_names_the_tensor(closed):
    data = closed.read_bytes()
    found = set()
    for kind, name, start, size in blobs_of(closed):
        for position in (start, start + size // 2, start + size - 1):
            flip(closed, position, 128)
            if kind == "gradient":  # scratch, even in a closed file
                continue
            refused(closed, f"is corrupted in the {kind} of {name}, near byte 0", errno.EIO)
            closed.write_bytes(data)
            found.add((kind, name))
    kinds, names = ("weight", "m", "v"), ("embedding.weight", "layer.weight", "layer.bias")
    assert found == {(kind, name) for kind in kinds for name in names}


def test_a_flipped_byte_in_a_gradient_harms_nobody(closed):
    for kind, _, start, _ in blobs_of(closed):
        if kind == "gradient":
            flip(closed, start)
    opened(closed)


def test_a_truncated_file_is_refused(closed):
    data = closed.read_bytes()
    table = json.loads(data[:PAGE].rstrip(b"\0"))["table"]
    for size in (len(data) - 1, table + 1, table, table - 1, 3 * PAGE, PAGE + 1, PAGE):
        closed.write_bytes(data[:size])
        refused(closed, rf"is truncated: {size} bytes of {len(data)}, the table of its tensors")


@pytest.mark.parametrize("kind", ["weight", "m", "v"])
@pytest.mark.parametrize("name", ["embedding.weight", "layer.bias"])
def test_a_flip_between_steps_is_found_at_the_checkpoint(path, kind, name):
    with pytest.raises(ExternalMemoryError, match=f"is corrupted in the {kind} of {name}"):
        with Chip(ROOMY, ExternalMemory(path)) as chip:

            def checkpoint(model, step):
                storage = dict(model.named_parameters())[name].storage
                if step == 1:
                    chip.settle()  # what is on its way would mend it
                    flip_live(path, storage.blobs[kind].start)
                for each in ("weight", "m", "v"):
                    b"".join(piece.tobytes() for piece in storage.chunks(each))

            train(3, each_step=checkpoint)


def flip_live(path, position):
    with open(path, "r+b") as file:
        file.seek(position)
        (byte,) = file.read(1)
        file.seek(position)
        file.write(bytes([byte ^ 1]))


def test_after_damage_the_chip_does_not_go_on(path):
    def damaged():
        return pytest.raises(ExternalMemoryError, match=r"corrupted in the weight of embedding")

    with damaged(), Chip(ROOMY, ExternalMemory(path)):
        model = Tiny()
        (weight, *_) = model.parameters()
        flip_live(path, weight.storage.blobs["weight"].start)
        for use in (lambda: weight.data, lambda: weight.sum(), lambda: model.layer.weight.data):
            with damaged():
                use()
    with pytest.warns(UserWarning, match="left live"):  # not closed as if it were whole
        opened(path)


# Bytes that come and go as they like.


@pytest.mark.parametrize("most", [1, 7, 100])
def test_short_reads_and_writes_change_no_bit(path, monkeypatch, most):
    monkeypatch.setattr(external_file, "calls", Stuttering(most))
    for _ in range(2):
        assert train_on_chip(path) == train()


def test_a_file_that_ends_early_is_said_to_be_truncated(path, monkeypatch):
    for ends_at in range(1, 1000):
        stuttering = Stuttering(64, ends_at)
        monkeypatch.setattr(external_file, "calls", stuttering)
        try:
            assert train_on_chip(path) == train()
            break
        except ExternalMemoryError as error:
            assert f"{path} cannot be read (" in str(error) and "truncated" in str(error)
    assert 50 < ends_at < 999


@pytest.mark.parametrize("seed", range(6))
def test_however_the_threads_interleave_the_bits_are_the_same(path, monkeypatch, seed):
    with Chip(ROOMY) as chip:
        train(3)
    monkeypatch.setattr(external_file, "calls", Dawdling(seed))
    for memory in (chip.peak_bytes, ROOMY):
        assert train_on_chip(path, memory, poison=True, steps=3) == train(3)


@pytest.mark.parametrize("seed", range(3))
def test_updates_in_many_chunks_change_no_bit_however_slow(path, monkeypatch, seed):
    from tinygrad_edu.memory import file_update, streamed

    cell = 1 << 14  # elements or bytes: a whole number of the pieces that norms are summed by
    for module in (external, file_update, streamed):
        monkeypatch.setattr(module, "GRID", cell)
    monkeypatch.setattr(external_file, "calls", Dawdling(seed))
    assert train_on_chip(path, poison=True, width=160) == train(width=160)
    opened(path)


@pytest.mark.parametrize("where", ["RAM", "file"])
def test_bandwidth_and_latency_are_waited_for(path, where):
    nbytes, bandwidth, latency = 4 * 10_000, 400_000, 0.05
    memory = ExternalMemory(path if where == "file" else None, bandwidth, latency)
    with Chip(ROOMY, memory):
        weight = nn.Parameter(np.ones(10_000, np.float32))
        start = time.perf_counter()
        loss = weight.sum()
        assert time.perf_counter() - start >= nbytes / bandwidth + latency
        start = time.perf_counter()
        loss.backward()
        assert weight.grad.sum() == 10_000  # there once it has left the chip and come through
        assert time.perf_counter() - start >= nbytes / bandwidth + latency


def test_an_update_waits_for_the_last_gradient_to_arrive_and_memory_for_none():
    latency = 0.5
    with Chip("100MB", ExternalMemory(latency=latency)) as chip:
        weights = [nn.Parameter(np.ones(2**18, np.float32)) for _ in range(10)]
        optimizer = tg.optim.SGD(weights)
        grad = np.ones(2**18, np.float32)
        start = time.perf_counter()
        for weight in weights:  # gradients of a megabyte, one by one
            weight.grad = grad
        optimizer.step()
        assert time.perf_counter() - start >= latency
        assert chip.timeline.stall_seconds()["drain"] > latency / 2


def test_a_slow_link_does_not_hold_up_the_end(path):
    memory = ExternalMemory(path, bandwidth=1000)
    with pytest.raises(KeyboardInterrupt), within(5), Chip(ROOMY, memory):
        weight = nn.Parameter(np.ones(100_000, np.float32))
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with interrupting_alarm():
            weight.sum()


class interrupting_alarm:
    """SIGALRM is a Ctrl-C inside."""

    def __enter__(self):
        self.before = signal.signal(signal.SIGALRM, signal.default_int_handler)

    def __exit__(self, *_):
        signal.signal(signal.SIGALRM, self.before)


@pytest.mark.parametrize(
    "options",
    [
        {"bandwidth": 0},
        {"bandwidth": -1},
        {"bandwidth": "fast"},
        {"bandwidth": float("nan")},
        {"bandwidth": True},
        {"bandwidth": [1]},
        {"latency": -1},
        {"latency": float("nan")},
        {"latency": 1e9},
        {"latency": "1s"},
        {"latency": True},
    ],
)
def test_a_link_that_makes_no_sense_is_refused(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=name) as caught:
        ExternalMemory(**options)
    assert repr(value) in str(caught.value)


def test_a_path_in_place_of_a_memory_says_what_to_write(path):
    with pytest.raises(TypeError, match="write ExternalMemory"):
        Chip(ROOMY, path)


# What the chip itself refuses.


def test_what_does_not_fit_is_itemised_and_the_chip_closes(path):
    inputs = tg.Tensor(np.ones((16, 64), np.float32))
    huge = tg.Tensor(np.ones((10_000, 64), np.float32))
    with Chip("50kB", ExternalMemory(path)):
        layer = nn.Linear(64, 64, rng=np.random.default_rng(0))
        x = layer(inputs)
        with pytest.raises(ChipMemoryError) as caught:
            layer(huge)
        np.testing.assert_array_equal(layer(inputs).data, x.data)  # the chip goes on
    first, *holders, last = str(caught.value).splitlines()
    assert first.startswith("a chip of 50.0 kB has no room for another 2.62 MB")
    assert any(line.endswith("activations (Linear 4.10 kB)") for line in holders)
    assert any("weights in use ((64, 64) 16.4 kB, (64,) 256 B)" in line for line in holders)
    assert 'give the chip at least "3MB"' in last
    opened(path)  # in good order


def test_a_budget_that_is_named_is_enough():
    x = np.ones((100, 100), np.float32)
    with pytest.raises(ChipMemoryError) as caught, Chip("60kB"):
        (tg.Tensor(x) + 1) * 2
    named = str(caught.value).split('at least "')[1].split('"')[0]
    with Chip(named):
        (tg.Tensor(x) + 1) * 2


def test_a_chip_that_ends_in_an_error_lets_go_of_everything(path):
    with pytest.raises(ChipMemoryError), Chip("5kB", ExternalMemory(path)):
        train(width=64)
    with pytest.warns(UserWarning, match="left live"):
        assert train_on_chip(path) == train()


def test_chips_do_not_nest_and_are_not_used_twice(path):
    with Chip(ROOMY) as chip:
        for other in (chip, Chip(ROOMY, ExternalMemory(path))):
            with pytest.raises(RuntimeError, match="open already: one at a time"), other:
                pass
    assert not path.exists()
    with pytest.raises(RuntimeError, match="has been used: make a new one"), chip:
        pass


def test_parameters_of_a_closed_chip_say_so(path):
    models = []
    for memory in (ExternalMemory(), ExternalMemory(path)):
        with Chip(ROOMY, memory):
            model = Tiny()
            optimizer = tg.optim.AdamW(model.parameters())
            model(np.array([1]), np.array([2])).backward()
            values = {name: p.data.copy() for name, p in model.named_parameters()}
        models.append(model)
        closed = pytest.raises(RuntimeError, match="of a chip that is closed: compute inside")
        with closed:
            model(np.array([1]), np.array([2]))
        with closed:
            optimizer.step()
    in_ram, in_file = models
    for name, array in in_ram.state_dict().items():  # as the message promises
        np.testing.assert_array_equal(array, values[name])
    with Chip(ROOMY, ExternalMemory(path)):  # another chip's file is not theirs
        Tiny()
        for use in (
            in_file.state_dict,
            lambda: in_file.layer.weight.grad,
            lambda: in_file.load_state_dict(values),
            lambda: in_file(np.array([1]), np.array([2])),
        ):
            with pytest.raises(RuntimeError, match="of a chip that is closed: compute inside"):
                use()


def test_calls_are_made_in_the_order_that_survives_a_power_cut(path, monkeypatch):
    medium = Medium()
    monkeypatch.setattr(external_file, "calls", medium)
    train_on_chip(path)
    log = medium.log
    # Marked live, and that flushed, before anything is changed; closed only once all is flushed.
    first_change = min(log.index("truncate"), log.index("allocate"))
    assert log[:first_change].count("fsync") == 1 and log.count("fsync") == 3
    assert log[-4:] == ["write", "fsync", "write", "fsync"]  # table, header


def test_a_memory_that_served_other_models_in_between_takes_its_own_again(path):
    memory = ExternalMemory(path)

    def serve(*shapes):
        with Chip(ROOMY, memory):
            return [nn.Parameter(np.ones(shape, np.float32)) for shape in shapes]

    serve((2, 3), (4, 5))
    with pytest.raises(KeyError), Chip(ROOMY, memory):
        nn.Parameter(np.ones((2, 3), np.float32))
        raise KeyError
    serve((2, 3), (4, 5))


@pytest.mark.parametrize("started", [0, 1])
def test_a_chip_that_gets_no_thread_leaves_nothing_behind(path, monkeypatch, started):
    memory, before = ExternalMemory(path), live_threads()
    start, count = threading.Thread.start, iter(range(9))

    def failing(thread):
        if next(count) == started:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", failing)
    with pytest.raises(RuntimeError, match="start new thread"), Chip(ROOMY, memory):
        pass
    monkeypatch.undo()
    with within(5):
        while live_threads() != before:
            time.sleep(0.01)
    with Chip(ROOMY, memory):
        nn.Parameter(np.ones(3, np.float32))


def test_after_a_chip_weights_can_be_set_whatever_was_on_its_way():
    """Fetches for the next step, which nobody took, are neither counted nor waited for."""
    for _ in range(5):
        with Chip("10MB", ExternalMemory(bandwidth="50MB")) as chip:
            layers = [nn.Linear(200, 200) for _ in range(12)]
            for _ in range(3):
                x = tg.Tensor(np.ones((4, 200), np.float32))
                for layer in layers:
                    x = layer(x)
                x.sum().backward()
        moved = sum(e.bytes for e in chip.timeline.events if e.lane == "fetch")
        assert chip.bytes_moved["fetch"] == moved
        for layer in layers:
            layer.load_state_dict({k: v + 1 for k, v in layer.state_dict().items()})


def test_a_closed_chip_keeps_no_memory_however_long_it_is_held(monkeypatch):
    """Whoever wants its report holds it, and with it the blocks that wait to be used again."""
    blocks = []

    def mapped(nbytes):
        block = budget.mapped_block(nbytes)
        blocks.append(weakref.ref(block))
        return block

    with Chip("20MB") as chip:
        chip.budget.new_mapping = mapped
        weight = nn.Parameter(np.ones((400, 500), np.float32))
        lent, kept = weight.T, weight * 2.0
        (weight * 3.0).sum().backward()
    assert len(blocks) == 3 and chip.budget.free == 0
    assert lent.sum().item() == 200_000 and kept.sum().item() == 400_000
    lent = kept = None
    assert [block() for block in blocks] == [None] * 3 and chip.budget.free == 0
    assert "chip of 20.0 MB" in chip.report()


def test_a_model_that_is_dropped_leaves_the_memory():
    """At the next parameter that is born; even if no garbage is collected, and in mid-flight."""
    inputs = tg.Tensor(np.ones((4, 100), np.float32))
    gc.disable()
    try:
        with Chip("10MB", ExternalMemory(bandwidth="50MB")) as chip:
            sizes = []
            for _ in range(4):
                model = optimizer = None
                model = nn.Sequential(*(nn.Linear(100, 100) for _ in range(4)))
                blobs = [weakref.ref(blob.array) for blob in chip.external.blobs]
                optimizer = tg.optim.AdamW(model.parameters())
                for _ in range(3):
                    optimizer.zero_grad()
                    loss = model(inputs).sum()
                    loss.backward()
                    optimizer.step()
                    loss = None
                sizes.append((len(chip.external.blobs), chip.external.nbytes))
                model(inputs)
            assert sizes == [sizes[0]] * 4
            lent = model(inputs).sum()
            model = optimizer = None
            kept = nn.Parameter(np.ones(3, np.float32))
            assert len(chip.external.blobs) == 4 * 8 + 1
            lent.backward()  # a graph keeps what it needs
            lent = None
            chip.settle()
            assert [blob() for blob in blobs] == [None] * 8 and len(chip.external.blobs) == 1
            assert len(chip.residency.units) == 0 and chip.budget.needed == 0
        most = sizes[0][1] + kept.data.nbytes
        del kept
        assert chip.external.blobs == [] and chip.external.nbytes == most
    finally:
        gc.enable()


def test_a_file_keeps_the_layout_of_models_that_were_dropped(path):
    def several():
        with Chip(ROOMY, ExternalMemory(path)):
            for shape in ((2, 3), (4, 5)):
                nn.Parameter(np.ones(shape, np.float32))

    several()
    assert len(blobs_of(path)) == 2
    several()
