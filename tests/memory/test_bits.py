"""A chip changes where the numbers are and not one bit of them.

Everything here runs twice, in plain memory and on a chip, and is compared bit for bit. Matrices are
cut into pieces of 32 kB in both, so that most have several, and freed memory is filled with NaN.
"""

import contextlib
import copy
import functools
import re
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import tinygrad_edu as tg
from gpt import GPT, GPTConfig
from gpt.fit import rehearse
from tinygrad_edu import functional as F
from tinygrad_edu import nn
from tinygrad_edu.kernels import blocks
from tinygrad_edu.kernels.matmul import set_num_threads
from tinygrad_edu.memory import Chip, ExternalMemory, external_file
from tinygrad_edu.memory.budget import Budget
from tinygrad_edu.storage import ArrayStorage

ROOT = Path(__file__).parents[2]
CONFIG = GPTConfig(300, 4, 2, 2, 128, dropout=0.1)  # wide matrices, few tokens
WEIGHTS = 4 * sum(p.size for p in GPT(CONFIG).parameters())


@pytest.fixture(autouse=True, scope="module")
def small_pieces():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "UNIT_BYTES", 32768)
        rehearse.cache_clear()
        yield
    rehearse.cache_clear()


@pytest.fixture(autouse=True)
def within_the_limit(monkeypatch):
    """At every block that is handed out: needed + idle + leaving + free <= limit."""
    real = Budget.block

    def block(self, nbytes, kind, what):
        out = real(self, nbytes, kind, what)
        assert self.taken + self.free <= self.limit
        return out

    monkeypatch.setattr(Budget, "block", block)


@pytest.fixture(params=["RAM", "file"])
def place(request, tmp_path):
    return None if request.param == "RAM" else tmp_path / "w"


@contextlib.contextmanager
def on_chip(size="20MB", path=None):
    with Chip(size, ExternalMemory(path), poison=True) as chip:
        yield chip
    assert chip.peak_bytes <= chip.memory


def bits(value):
    """Anything made of arrays and numbers, as something that is equal only bit for bit."""
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [bits(item) for item in value]
    if isinstance(value, tg.Tensor):
        return bits(value.data)
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype, value.tobytes()
    return value


def everywhere(run, path=None, size="20MB"):
    """Runs `run()` in plain memory and on a chip; their results are the same bits."""
    want = bits(run())
    with on_chip(size, path):
        assert bits(run()) == want


def train(recompute=False, clip=True, accumulate=1, steps=10, config=CONFIG):
    """Losses, gradient norms, weights and optimizer state."""
    rng = np.random.default_rng(0)
    model = GPT(config, np.random.default_rng(1), recompute=recompute)
    optimizer = tg.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.1)
    seen = []
    for _ in range(steps):
        optimizer.zero_grad()
        for _ in range(accumulate):
            x, y = rng.integers(0, config.vocab_size, (2, 1, config.block_size))
            _, loss = model(x, y)
            (loss * (1 / accumulate)).backward()
            seen.append(loss.item())
        if clip:
            seen.append(tg.optim.clip_grad_norm_(optimizer.params, 0.5))
        optimizer.step()
    return bits([seen, model.state_dict(), optimizer.state_dict()])


@functools.cache
def resident(clip, accumulate):
    return train(False, clip, accumulate)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("clip", [True, False], ids=["clipped", "not clipped"])
@pytest.mark.parametrize("recompute", [False, True], ids=["stored", "recomputed"])
def test_ten_steps_are_the_same_bits_on_every_chip(place, recompute, clip, accumulate):
    least, want = rehearse(CONFIG, 1, recompute).needed, resident(clip, accumulate)
    assert least < WEIGHTS / 2
    for size in (least, (least + WEIGHTS) // 2, 10 * WEIGHTS):
        with on_chip(size, place) as chip:
            assert train(recompute, clip, accumulate) == want, size
        if size == least:
            assert chip.peak_bytes == least
        if place is not None:
            place.unlink()


def test_the_number_of_threads_changes_nothing():
    results = []
    try:
        for threads in (1, 2):
            set_num_threads(threads)
            with on_chip(10 * WEIGHTS):
                results.append(train(True, steps=3))
    finally:
        set_num_threads(2)
    assert results[0] == results[1] == train(steps=3)


def test_evaluation_and_generation_amid_training(place):
    def run():
        rng = np.random.default_rng(0)
        model = GPT(CONFIG, np.random.default_rng(1))
        optimizer = tg.optim.AdamW(model.parameters(), 1e-2)
        seen = []
        for step in range(6):
            x, y = rng.integers(0, CONFIG.vocab_size, (2, 1, CONFIG.block_size))
            optimizer.zero_grad()
            model(x, y)[1].backward()
            optimizer.step()
            if step % 2:
                model.eval()
                with tg.no_grad():
                    seen += [model(x, y)[1].item(), model(x)[0]]
                model.train()
                prompt, draws = np.array([[1, 2, 3]]), np.random.default_rng(step)
                seen += [model.generate(prompt, 6, 0.8, top_k=20, rng=draws)]
                seen += [model.generate(prompt[:, :1], 3, temperature=0.0)]
        return seen

    everywhere(run, place, size=WEIGHTS // 2)


class Net(nn.Module):
    """A network as anybody writes one, with a layer that is used twice."""

    def __init__(self):
        rng = np.random.default_rng(3)
        self.body = nn.Sequential(nn.Linear(30, 70, rng=rng), tg.Tensor.relu, nn.LayerNorm(70))
        self.tied = nn.Linear(70, 70, rng=rng)
        self.scale = nn.Parameter(1.5)
        self.unused = nn.Parameter(np.ones((2, 2), np.float32))
        self.out = nn.Linear(70, 5, bias=False, rng=rng)

    def forward(self, x):
        x = self.tied(self.tied(self.body(x)).tanh()) * self.scale
        return self.out(x)


def net_step(net, optimizer, seed):
    x = np.random.default_rng(seed).standard_normal((9, 30)).astype(np.float32)
    loss = F.cross_entropy(net(x), np.arange(9) % 5)
    loss.backward()
    norm = tg.optim.clip_grad_norm_(optimizer.params, 1.0)
    optimizer.step()
    return loss.item(), norm


OPTIMIZERS = [
    functools.partial(tg.optim.AdamW, lr=0.05),
    functools.partial(tg.optim.SGD, lr=0.05),
    functools.partial(tg.optim.SGD, lr=0.05, momentum=0.9, weight_decay=0.1),
]


@pytest.mark.parametrize("make", OPTIMIZERS, ids=["AdamW", "SGD", "momentum"])
def test_a_network_of_ones_own_with_a_tied_layer(place, make):
    def run():
        net = Net()
        optimizer, seen = make(net.parameters()), []
        for step in range(5):
            optimizer.zero_grad()
            seen.append(net_step(net, optimizer, step))
        assert net.unused.grad is None
        return seen, net.state_dict(), optimizer.state_dict()

    everywhere(run, place, size="150kB")


def test_gradients_add_up_over_backward_passes_until_they_are_dropped(place):
    def run():
        net, seen = Net(), []
        for step in range(4):
            x = np.full((3, 30), 0.1 * step, np.float32)
            net(x).sum().backward()
            (net(x) ** 2).sum().backward()
            seen.append(bits([p.grad for p in net.parameters()]))
            if step % 2:
                net.zero_grad()
                assert all(p.grad is None for p in net.parameters())
        return seen

    everywhere(run, place)


USES = {
    "x @ w": lambda w, x: x @ w,
    "x @ w.T": lambda w, x: x @ w.T,
    "w * 2": lambda w, x: w * 2,
    "2 / w": lambda w, x: 2 / w,
    "w + w": lambda w, x: w + w,
    "w * w": lambda w, x: w * w,
    "w ** 2 + x": lambda w, x: w**2 + x,
    "w[1:3]": lambda w, x: w[1:3],
    "w.sum": lambda w, x: w.sum(axis=0),
    "softmax": lambda w, x: w.softmax(axis=-1),
    "reshape": lambda w, x: w.reshape(-1).exp(),
    "concatenate": lambda w, x: tg.concatenate([w, x, w], axis=0),
    "einsum": lambda w, x: tg.einsum("ij,kj->ik", w, x),
    "where": lambda w, x: tg.where(x > 0, w, x),
    "linear(w, w)": lambda w, x: F.linear(w, w),
    "linear(x, w.T)": lambda w, x: F.linear(x, w.T),
    "embedding(w)": lambda w, x: F.embedding([[0, 3, 3], [1, 0, 2]], w),
    "embedding(w * 2)": lambda w, x: F.embedding([0, 3, 3], w * 2),
    "embedding + linear": lambda w, x: F.linear(F.embedding([2, 2, 0], w), w),
    "checkpoint": lambda w, x: tg.checkpoint(lambda y: (y @ w).tanh() @ w, x),
    "checkpoint(w)": lambda w, x: tg.checkpoint(lambda v, y: y @ v + v, w, x),
    "no op": lambda w, x: w,
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("use", USES)
def test_a_parameter_is_an_operand_like_any_other(use, dtype):
    def run():
        values = np.random.default_rng(0).standard_normal((2, 70, 70)).astype(dtype)
        w, x = nn.Parameter(values[0]), tg.Tensor(values[1])
        optimizer, seen = tg.optim.AdamW([w], 0.1), []
        for _ in range(3):
            optimizer.zero_grad()
            y = USES[use](w, x)
            y.backward(np.linspace(-1, 1, y.size).reshape(y.shape))
            seen += [bits(y), bits(w.grad)]
            assert w.dtype == w.grad.dtype == dtype
            optimizer.step()
        return seen, w.data, optimizer.state_dict()

    everywhere(run)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (5,), (0, 3), (3, 0), (2, 3, 4)], ids=str)
def test_parameters_of_every_shape(place, shape):
    def run():
        w = nn.Parameter(np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape))
        optimizer, seen = tg.optim.AdamW([w], 0.1), []
        for _ in range(3):
            optimizer.zero_grad()
            (w * w).sum().backward()
            seen += [bits(w.grad), tg.optim.clip_grad_norm_([w], 0.5), bits(w.grad)]
            optimizer.step()
        return seen, w.data, optimizer.state_dict()

    everywhere(run, place)


def test_an_embedding_of_nothing_and_of_width_nothing():
    def run():
        rng = np.random.default_rng(0)
        none, narrow = nn.Embedding(4, 3, rng=rng), nn.Embedding(4, 0, rng=rng)
        a, b = none(np.zeros((2, 0), np.int64)), narrow([1, 2])
        (a.sum() + b.sum()).backward()
        return a, b, none.weight.grad, narrow.weight.grad

    everywhere(run)


def test_weights_and_state_go_from_memory_to_a_chip_and_back(place):
    def fresh(seed):
        net = Net()
        optimizer = tg.optim.AdamW(net.parameters(), 0.05)
        net_step(net, optimizer, seed)
        return net, optimizer

    net, optimizer = fresh(1)
    state, more = net.state_dict(), optimizer.state_dict()
    want = [net_step(net, optimizer, 7), net.state_dict(), optimizer.state_dict()]
    with on_chip("1MB", place):
        net, optimizer = fresh(2)
        net.load_state_dict(state)
        optimizer.load_state_dict(more)
        net.zero_grad()
        assert bits([net.state_dict(), optimizer.state_dict()]) == bits([state, more])
        state, more = net.state_dict(), optimizer.state_dict()
        net_step(net, optimizer, 3)  # copies: they do not follow
    net, optimizer = fresh(3)
    net.load_state_dict(state)
    optimizer.load_state_dict(more)
    net.zero_grad()
    reference, by = fresh(1)
    reference.zero_grad()
    got = [net_step(net, optimizer, 7), net.state_dict(), optimizer.state_dict()]
    assert bits(got) == bits([net_step(reference, by, 7), reference.state_dict(), by.state_dict()])
    assert bits(want[0][0]) == bits(got[0][0])


def test_data_and_grad_are_read_only_copies_and_assignment_writes_through(place):
    with on_chip("1MB", place):
        w = nn.Parameter(np.arange(6, dtype=np.float32).reshape(2, 3))
        (w * 3).sum().backward()
        for copy in (w.data, w.grad):
            with pytest.raises(ValueError, match="read-only"):
                copy += 1
        before = w.data
        w.data = np.ones((2, 3), np.float32)
        w.grad = np.full((2, 3), 7.0)
        assert before[1, 2] == 5 and (w.data == 1).all() and (w.grad == 7).all()
        assert ((w + 0).data == 1).all()
        (w * 3).sum().backward()
        assert (w.grad == 10).all() and w.grad.dtype == np.float32
        w.assign(iter([np.zeros(4), np.ones(2)]))
        assert w.tolist() == [[0, 0, 0], [0, 1, 1]] and (w + 0).tolist() == w.tolist()
        w.grad = None
        assert w.grad is None
        with pytest.raises(ValueError, match="shape"):
            w.data = np.zeros((3, 2))
        with pytest.raises(TypeError, match="float32"):
            w.data = np.zeros((2, 3))


def test_a_graph_that_needs_the_old_weights_raises_after_an_update(place):
    def run():
        net = Net()
        optimizer = tg.optim.SGD(net.parameters(), 0.1)
        x = np.ones((2, 30), np.float32)
        stale = net(x).sum()
        net(x).sum().backward()
        optimizer.step()
        with pytest.raises(RuntimeError, match=r"\.data was replaced") as error:
            stale.backward()
        stale = net(x).sum()
        net.out.weight.data = net.out.weight.data * 2
        with pytest.raises(RuntimeError, match=r"\.data was replaced"):
            stale.backward()
        return str(error.value)

    everywhere(run, place)


def test_a_copy_of_a_model_is_one_of_its_own(place):
    """As an average of the weights is made with; and with its optimizer, to go on from there."""

    def run():
        net = Net()
        optimizer = tg.optim.AdamW(net.parameters(), 0.05)
        net_step(net, optimizer, 0)
        twin, twins = copy.deepcopy((net, optimizer))
        seen = [net_step(net, optimizer, 1), bits([p.grad for p in twin.parameters()])]
        seen += [net_step(twin, twins, seed) for seed in (2, 3)]
        return [*seen, net.state_dict(), twin.state_dict(), twins.state_dict()]

    everywhere(run, place)


def test_a_copy_of_a_model_of_a_closed_chip_is_in_plain_memory():
    with on_chip():
        net = Net()
        net.scale.grad = 2.0
    twin = copy.deepcopy(net)
    assert bits(twin.state_dict()) == bits(net.state_dict())
    twin(np.ones((1, 30), np.float32)).sum().backward()
    assert twin.scale.grad != 2.0 and type(twin.scale.storage) is ArrayStorage


def test_what_is_lent_keeps_its_numbers_across_an_update(place):
    with on_chip("1MB", place) as chip:
        w = nn.Parameter(np.arange(12, dtype=np.float32).reshape(3, 4))
        old = w.T  # looks into the copy on the chip
        optimizer = tg.optim.SGD([w], 1.0)
        w.sum().backward()
        optimizer.step()
        assert (old.data == np.arange(12).reshape(3, 4).T).all()
        assert ((w + 0).data == np.arange(12).reshape(3, 4) - 1).all()
        del old
        assert chip.budget.held["weights"] == 0


def test_parameters_made_outside_stay_in_plain_memory():
    w = nn.Parameter(np.ones((3, 3), np.float32))
    with on_chip():
        v = nn.Parameter(np.ones((3, 3), np.float32))
        (v @ w).sum().backward()
        assert isinstance(w.storage, ArrayStorage) and not isinstance(v.storage, ArrayStorage)
        assert (w.grad == 3).all() and (v.grad == 3).all()
    assert isinstance(nn.Parameter(1.0).storage, ArrayStorage)


WORDS = r"chip|streamed|streaming|extern|fetch|residen|evict|budget|tier|drain|offload"
UNAWARE = [
    *(ROOT / "tinygrad_edu" / f"{name}.py" for name in ("nn", "functional", "tape", "tensor")),
    *(ROOT / "tinygrad_edu" / f"{name}.py" for name in ("optim", "recompute")),
    *sorted((ROOT / "tinygrad_edu/ops").glob("*.py")),
    *(ROOT / "gpt" / f"{name}.py" for name in ("model", "decode")),
]


@pytest.mark.parametrize("path", UNAWARE, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_word_about_tiers(path):
    found = re.findall(rf"\b\w*(?:{WORDS})\w*\b", path.read_text(), re.IGNORECASE)
    assert found == []


PLACES = [None, ExternalMemory, "file"]


def on(place, tmp_path):
    """No chip, a chip beside RAM, or beside a file."""
    if place is None:
        return contextlib.nullcontext()
    return Chip("16MB", ExternalMemory(tmp_path / "external" if place == "file" else None))


def numbers_of(parameters):
    return [array for p in parameters for array in (p.numpy(), np.array(p.grad))]


@pytest.mark.parametrize("place", PLACES[1:], ids=["RAM", "file"])
def test_a_gradient_that_was_clipped_stays_clipped_after_a_step(place, tmp_path):
    """The next step without zero_grad, and the next backward, go on from it."""

    def steps(where):
        with on(where, tmp_path):
            w = nn.Parameter(np.ones((40_000, 2), np.float32))
            optimizer, seen = tg.optim.SGD([w], 0.1), []
            (w * 3).sum().backward()
            tg.optim.clip_grad_norm_([w], 1.0)
            for _ in range(2):
                optimizer.step()
                seen += numbers_of([w])
            (w * 2).sum().backward()
            return [*seen, tg.optim.clip_grad_norm_([w], 0.5), *numbers_of([w])]

    found, expected = steps(place), steps(None)
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("place", PLACES[1:], ids=["RAM", "file"])
def test_an_optimizer_of_parameters_in_different_places(place, tmp_path):
    """Norms add up in parameter order, all are scaled, and each is updated as it would be."""
    rng = np.random.default_rng(3)
    arrays = [rng.standard_normal(s).astype(np.float32) for s in ((70, 300), (9,), (5, 4), (33,))]

    def train(streamed):
        chip = on(place if streamed else None, tmp_path)
        resident = [nn.Parameter(array) for array in arrays[::2]]
        with chip:
            others = [nn.Parameter(array) for array in arrays[1::2]]
            mixed = [p for pair in zip(resident, others, strict=True) for p in pair]
            optimizer = tg.optim.AdamW(mixed, 0.1)
            for _ in range(2):
                optimizer.zero_grad()
                sum((p * p * i).sum() for i, p in enumerate(mixed, 1)).backward()
                norm = tg.optim.clip_grad_norm_(mixed, 1.0)
                optimizer.step()
            return [norm, *numbers_of(mixed)]

    assert all(np.array_equal(a, b) for a, b in zip(train(True), train(False), strict=True))


@pytest.mark.parametrize("place", PLACES, ids=["no chip", "RAM", "file"])
def test_a_function_may_use_its_memory_again(place, tmp_path):
    """The gradient of one call is not overwritten by the next one's."""

    class Square(tg.Function):
        buffer = np.zeros(3, np.float32)

        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            return np.multiply(grad, 2 * x, out=Square.buffer)

    with on(place, tmp_path):
        parameters = [nn.Parameter(np.full(3, i, np.float32)) for i in range(1, 7)]
        between = [p * 1.0 for p in parameters]  # and results, whose gradients wait in the walk
        sum(Square.apply(x).sum() for x in (*parameters, *between)).backward()
        assert [p.grad.tolist() for p in parameters] == [[4.0 * i] * 3 for i in range(1, 7)]


@pytest.mark.parametrize("place", PLACES, ids=["no chip", "RAM", "file"])
def test_an_assignment_that_fails_halfway_is_seen_by_all_or_none(place, tmp_path):
    with on(place, tmp_path):
        w = nn.Parameter(np.zeros(600_000, np.float32))
        total = (w * w).sum()
        with pytest.raises(ValueError, match="600000 needed"):
            w.assign(iter([np.ones(500_000, np.float32)]))
        assert (w * 1.0).sum().item() == w.data.sum()
        if w.data.any():  # and a graph from before notices
            with pytest.raises(RuntimeError, match="was replaced"):
                total.backward()


@pytest.mark.parametrize("place", PLACES, ids=["no chip", "RAM", "file"])
def test_after_an_interrupted_update_ops_see_the_numbers_that_are_there(
    place, tmp_path, monkeypatch
):
    """Some may be of the step, some of the one before: whoever catches it may go on."""

    class SlowToWrite(external_file.Calls):
        @staticmethod
        def write(*arguments):
            if threading.current_thread().name == "chip writer":
                time.sleep(0.05)
            return external_file.Calls.write(*arguments)

    monkeypatch.setattr(external_file, "calls", SlowToWrite())
    calls = []

    def interrupted(data, grad):
        calls.append(data)
        for each in data if isinstance(data, list) else [data]:
            each += 1.0
        if len(calls) > 1 or place != PLACES[-1]:  # a file is updated in pieces
            raise KeyboardInterrupt

    with on(place, tmp_path):
        weight = nn.Parameter(np.ones(600_000, np.float32))
        weight.grad = np.ones(600_000, np.float32)
        assert weight.sum().item() == 600_000
        with pytest.raises(KeyboardInterrupt):
            weight.storage.update(interrupted, ())
        assert weight.sum().item() == weight.data.sum() > 600_000
