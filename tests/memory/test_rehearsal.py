"""The account: what a rehearsal says, what a chip counts, and what the process really takes."""

import functools
import gc
import json
import subprocess
import sys
import textwrap
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import tinygrad_edu as tg
from gpt import GPT, GPTConfig
from tinygrad_edu import functional as F
from tinygrad_edu import kernels, nn
from tinygrad_edu.kernels import blocks
from tinygrad_edu.kernels.attention import QUERIES
from tinygrad_edu.memory import Chip, ChipMemoryError, Rehearsal
from tinygrad_edu.memory.flops import op_bytes, op_flops, whole_blocks

ROOT = Path(__file__).parents[2]
UNIT = 8192


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(blocks, "UNIT_BYTES", UNIT)


def step(config, recompute, batch, steps=1):
    """Gives what is left of the last loss, as a training loop would."""
    model = GPT(config, np.random.default_rng(0), recompute=recompute)
    optimizer = tg.optim.AdamW(model.parameters())
    count = batch * config.block_size
    ids = (np.arange(count) % config.vocab_size).reshape(batch, -1)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = None
        loss = model(ids, ids)[1]
        loss.backward()
        tg.optim.clip_grad_norm_(optimizer.params, 1.0)
        optimizer.step()


MODELS = {
    "small": (GPTConfig(65, 32, 3, 2, 32), 2),
    "wide": (GPTConfig(300, 4, 2, 4, 128), 1),
    "no bias": (GPTConfig(65, 16, 2, 2, 64, bias=False), 3),
    "dropout": (GPTConfig(100, 24, 2, 2, 48, dropout=0.2), 2),
    "one layer": (GPTConfig(1000, 8, 1, 1, 40), 1),
    "one text": (GPTConfig(65, 64, 1, 1, 32), 1),
    "few rows": (GPTConfig(65, 4, 1, 1, 256, bias=False), 1),
    "long": (GPTConfig(20, 200, 1, 2, 32), 1),
}


@pytest.mark.parametrize("recompute", [False, True], ids=["stored", "recomputed"])
@pytest.mark.parametrize("name", MODELS)
def test_the_rehearsed_peak_is_the_smallest_budget(name, recompute):
    config, batch = MODELS[name]
    with Rehearsal() as rehearsed:
        step(config, recompute, batch)
    least = rehearsed.peak_bytes
    with Chip("50MB", poison=True) as ample:
        step(config, recompute, batch, steps=2)
    assert ample.peak_bytes == least
    with Chip(least, poison=True) as exact:
        step(config, recompute, batch, steps=3)
    assert exact.peak_bytes == least
    with pytest.raises(ChipMemoryError) as error, Chip(least - 4096):
        step(config, recompute, batch)
    assert "no room" in str(error.value)
    assert ample.bytes_moved["drain"] == 2 * rehearsed.bytes_moved["drain"]
    assert ample.bytes_moved["update"] == 2 * rehearsed.bytes_moved["update"]
    totals = ample.timeline.totals()["compute"]
    assert totals.flops == 2 * rehearsed.timeline.totals()["compute"].flops


def test_a_gradient_that_others_hold_is_needed_although_it_leaves():
    """Backward of the sum gives one array to the parameter and to the product below it."""

    def product_and_sum():
        first, second, third = (nn.Parameter(np.ones(s, np.float32)) for s in shapes)
        ((first * 2.0) @ second + third).tanh().sum().backward()

    shapes = [(8, 4000), (4000, 512), (8, 512)]
    with Rehearsal() as rehearsed:
        product_and_sum()
    with Chip("50MB", poison=True) as ample:
        product_and_sum()
    assert rehearsed.peak_bytes == ample.peak_bytes
    with Chip(ample.peak_bytes, poison=True):
        product_and_sum()


def moved(chip, work):
    """What `work()` moves."""
    before = dict(chip.bytes_moved)
    work()
    chip.settle()
    return {kind: count - before[kind] for kind, count in chip.bytes_moved.items()}


@pytest.mark.parametrize("distinct", [1, 5, 16])
def test_with_room_for_all_a_step_fetches_every_weight_once(distinct):
    """The tied table is fetched once for the output; a lookup fetches the rows that occur."""
    config = GPTConfig(50, 8, 2, 2, 32)
    ids = (np.arange(16) % distinct).reshape(2, 8)
    with Chip("50MB", poison=True) as chip:
        model = GPT(config)
        optimizer = tg.optim.AdamW(model.parameters())
        count = sum(p.size for p in model.parameters())

        def work():
            optimizer.zero_grad()
            model(ids, ids)[1].backward()
            optimizer.step()

        row, position = 4 * 32, config.block_size * 4 * 32
        rows = distinct * row + position  # looked up, of either table
        work()
        work()  # after it, what it fetches for the next step is what the one before fetched for it
        for _ in range(3):
            assert moved(chip, work) == {
                # of the table of positions nothing but the rows is ever used
                "fetch": 4 * count - position + rows,
                # whole gradients, but of lookups the rows
                "drain": 4 * count - position + rows,
                "update": 28 * count,  # read w, g, m, v; write w, m, v
            }


class MLP(nn.Module):
    def __init__(self, layers, width):
        rng = np.random.default_rng(0)
        self.layers = [nn.Linear(width, width, bias=False, rng=rng) for _ in range(layers)]

    def forward(self, x):
        for layer in self.layers:
            x = layer(x).tanh()
        return x


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD", "momentum"])
@pytest.mark.parametrize("room", [1, 2, 4, 6])
def test_with_room_for_some_weights_those_that_turn_around_stay(monkeypatch, room, optimizer):
    """There and back through 6 layers, with room for `room` of them: the rest comes twice.

    The first layer's input needs no gradient, so backward asks for 5.
    """
    monkeypatch.setattr(blocks, "UNIT_BYTES", 1 << 24)
    layers, width, tokens = 6, 128, 1
    x = tg.Tensor(np.ones((tokens, width), np.float32))
    make, reads_and_writes = {
        "AdamW": (tg.optim.AdamW, 7),
        "SGD": (tg.optim.SGD, 3),
        "momentum": (functools.partial(tg.optim.SGD, momentum=0.9), 5),
    }[optimizer]
    weight = 4 * width * width

    def steps(chip):
        model = MLP(layers, width)
        run = make(model.parameters(), lr=0.1)

        def work():
            run.zero_grad()
            model(x).sum().backward()
            run.step()

        for _ in range(3):
            work()
        return [moved(chip, work) for _ in range(2)]

    with Rehearsal() as rehearsed:
        steps(rehearsed)
    with Chip(rehearsed.peak_bytes + (room - 1) * weight) as chip:
        found = steps(chip)
    # gradients and activations take turns with idle weights, which costs some at the turn
    least, most = (2 * layers - 1 - room) * weight, (2 * layers - 1) * weight
    for one in found:
        assert least <= one["fetch"] <= most and one["fetch"] % weight == 0
        assert one["drain"] == layers * weight
        assert one["update"] == reads_and_writes * layers * weight
    if room == layers:
        assert found[0]["fetch"] == layers * weight


def test_recomputed_a_layer_costs_its_input_and_nothing_more(monkeypatch):
    """Blocks without rounding: 64 tokens x 512 x 4 bytes are 128 KiB."""
    monkeypatch.setattr(blocks, "UNIT_BYTES", 1 << 24)
    peaks = {}
    for layers in (4, 8, 24):
        with Rehearsal() as chip:
            step(GPTConfig(64, 64, layers, 4, 512), True, 1)
        peaks[layers] = chip.peak_bytes
    # beside its input a layer keeps 8-byte numbers, in blocks of 64 bytes, one each
    per_layer = 64 * 512 * 4
    for layers in (8, 24):
        grown = peaks[layers] - peaks[4]
        assert 0 <= grown - (layers - 4) * per_layer <= (layers - 4) * 128


def test_flops_are_those_of_the_formula():
    """6 per parameter of a matrix and token, and attention, and once more the logits."""
    config, batch = GPTConfig(96, 16, 3, 2, 32), 2
    with Rehearsal() as chip:
        step(config, False, batch)
    c, t, layers, vocab = 32, 16, 3, 96
    tokens = batch * t
    matrices = layers * 12 * c * c
    attention = 2 * tokens * t * c  # causal: half of 4 t c per token
    expected = 6 * tokens * matrices + 2 * tokens * vocab * c * 4 + layers * attention * 3.5
    assert chip.timeline.totals()["compute"].flops == expected


@pytest.mark.parametrize(
    ("op", "shapes", "forward"),
    [
        ("Linear", ((5, 7, 3), (4, 3), None), 2 * 35 * 3 * 4),
        ("Matmul", ((5, 3), (3, 4)), 2 * 5 * 3 * 4),
        ("Matmul", ((3,), (3,)), 2 * 3),
        ("Matmul", ((2, 1, 5, 3), (6, 3, 4)), 2 * 12 * 5 * 3 * 4),
        ("Attention", ((2, 3, 8, 4), (2, 3, 8, 4), (2, 3, 8, 4), None), 6 * 8 * 8 * 8),
        ("SelfAttention", ((2, 8, 36), None), 6 * 8 * 8 * 8),  # the same, side by side
        ("LinearCrossEntropy", ((6, 3), (9, 3), None), 2 * 6 * 3 * 9),
        ("Add", ((5, 3), (5, 3)), 0),
    ],
)
def test_flops_of_an_op(op, shapes, forward):
    assert op_flops(op, "forward", shapes) == forward
    times = {"Attention": 2.5, "SelfAttention": 2.5, "LinearCrossEntropy": 3}.get(op, 2)
    assert op_flops(op, "backward", shapes) == times * forward
    kept = 2 if op == "LinearCrossEntropy" else times
    assert op_flops(op, "backward", shapes, keeps_logits=True) == kept * forward


@pytest.mark.parametrize("make", [Rehearsal, lambda: Chip("1MB")], ids=["rehearsed", "real"])
@pytest.mark.parametrize(
    "name", ["Attention", "Embedding", "Linear", "LinearCrossEntropy", "Matmul", "SelfAttention"]
)
def test_a_function_of_ones_own_may_be_called_like_an_op(name, make):
    """Its inputs are others, so nothing is known of its FLOPs."""

    class Square(tg.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, grad):
            return 2 * ctx.saved_tensors[0] * grad

    Square.__name__ = name
    with make() as chip:
        Square.apply(nn.Parameter(np.ones(3, np.float32))).sum().backward()
    events = [event for event in chip.timeline.events if event.name.startswith(f"{name} ")]
    assert [event.flops for event in events] == [0, 0] and chip.tokens == 0


@pytest.mark.parametrize(
    ("op", "shapes", "values"),
    [
        ("Linear", ((5, 7, 3), (4, 3), None), 35 * 3 + 4 * 3 + 35 * 4),
        ("Matmul", ((5, 3), (3, 4)), 15 + 12 + 20),
        ("Matmul", ((0, 0), (0, 4)), 0),
        ("Attention", ((2, 3, 8, 4), (2, 3, 9, 4), (2, 3, 9, 5), None), 6 * (32 + 36 + 45 + 40)),
        ("SelfAttention", ((2, 8, 36), None), 6 * 4 * 32),
        ("LinearCrossEntropy", ((6, 3), (9, 3), (6,)), 18 + 27 + 2 * 54),
    ],
)
def test_products_read_their_operands_and_write_their_result(op, shapes, values):
    assert op_bytes(op, "forward", shapes) == 4 * values
    assert op_bytes(op, "backward", shapes) == 8 * values


def test_a_residual_is_read_once_more_and_heads_are_views():
    plain, with_residual = ((5, 3), (4, 3), None, None), ((5, 3), (4, 3), None, (5, 4))
    more = op_bytes("Linear", "forward", with_residual) - op_bytes("Linear", "forward", plain)
    assert more == 4 * 20
    assert op_bytes("Linear", "backward", with_residual) == op_bytes("Linear", "backward", plain)
    for op in ("SplitHeads", "MergeHeads"):
        assert op_bytes(op, "forward", ((2, 3, 4, 5),)) == 0


def test_attention_computes_whole_blocks_of_queries():
    def shapes(t, s):
        return (1, 1, t, 4), (1, 1, s, 4), (1, 1, s, 4)

    q = QUERIES
    assert whole_blocks("Attention", shapes(q, q)) == 2.0  # one block: nothing is left out
    assert whole_blocks("Attention", shapes(2 * q, 2 * q)) == 2 * (q * q + q * 2 * q) / (2 * q) ** 2
    assert whole_blocks("Attention", shapes(1, 1)) == 2 * q  # one query costs as much as a block
    assert whole_blocks("Attention", shapes(q, 3 * q)) == 2.0
    assert 1 < whole_blocks("Attention", shapes(100 * q, 100 * q)) < 1.02
    assert whole_blocks("Attention", shapes(0, 0)) == 1.0
    together = whole_blocks("SelfAttention", ((1, 2 * q, 12), None))
    assert together == whole_blocks("Attention", shapes(2 * q, 2 * q))


def test_works_count_ops_transfers_and_the_memory_that_is_mapped():
    config = GPTConfig(64, 32, 4, 2, 64)
    ids = np.arange(64).reshape(2, 32) % 64

    def step(model, optimizer):
        optimizer.zero_grad()
        _, loss = model(ids, ids)
        (loss * 1.0).backward()
        optimizer.step()

    def run(chip):
        seen = []
        with chip:
            model = GPT(config)
            optimizer = tg.optim.AdamW(model.parameters())
            for _ in range(3):
                before = chip.budget.mapped
                step(model, optimizer)
                seen.append(chip.budget.mapped - before)
        return seen[-1], len(list(model.parameters()))

    ample = Rehearsal()
    _, parameters = run(ample)
    least = ample.peak_bytes
    ops = [work for work in ample.works if work.phase != "update"]
    computed = [e for e in ample.timeline.events if e.lane == "compute"]
    assert sum(work.ops for work in ops) == len(computed)
    updates = [work for work in ample.works if work.phase == "update"]
    assert [work.transfers for work in updates] == [1] * 3 * parameters
    lent_and_drained = sum(work.transfers for work in ops) / 3
    assert lent_and_drained >= 2 * parameters  # once lent, once drained; more for pieces

    scarce = Rehearsal(least)
    mapped, _ = run(scarce)
    third = len(scarce.works) * 2 // 3
    assert sum(work.fresh for work in scarce.works[third:]) == mapped
    assert mapped > 0
    real, _ = run(tg.memory.Chip(least))
    assert real == mapped


def test_nothing_is_drawn_and_nothing_moves():
    drawn = []

    def init(rng, shape):
        drawn.append(shape)
        return rng.standard_normal(shape, dtype=np.float32)

    init.by_rows = True
    with Rehearsal() as chip:
        layer = nn.Linear(300, 400, init=init)
        F.linear(np.ones((2, 300), np.float32), layer.weight).sum().backward()
    assert drawn == []
    assert chip.bytes_moved["fetch"] == chip.bytes_moved["drain"] == 4 * 300 * 400


def in_a_process(code, *arguments, timeout=100):
    """The JSON that `code` prints last."""
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
PEAK = """
def peak_rss():
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM"))
"""


@linux
@pytest.mark.parametrize("recompute", [True, False], ids=["recomputed", "stored"])
def test_13_billion_parameters_are_rehearsed_in_hardly_any_memory(recompute):
    grown, needed = in_a_process(
        PEAK
        + """
import json, sys
from gpt import config, fit
shape = config.parse(["13b"]).model(50257)
before = peak_rss()
step = fit.rehearse(shape, 1, sys.argv[1] == "True")
print(json.dumps([peak_rss() - before, step.needed]))
""",
        recompute,
    )
    assert grown < 300e6
    assert needed > (20e9 if not recompute else 2e9)


BIG = (
    PEAK
    + """
import json, sys
import numpy as np
import tinygrad_edu as tg
from tinygrad_edu import kernels, nn

class Model(nn.Module):
    def __init__(self, layers):
        rng = np.random.default_rng(0)
        self.layers = [nn.Linear(WIDTH, WIDTH, rng=rng) for _ in range(layers)]
    def forward(self, x):
        for layer in self.layers:
            x = layer(x).tanh()
        return x

WIDTH = 256
x = np.ones((64, 2560), np.float32)
def train(layers, steps):
    model = Model(layers)
    optimizer = tg.optim.AdamW(model.parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x[:, :WIDTH]) ** 2).mean().backward()
        tg.optim.clip_grad_norm_(optimizer.params, 1.0)
        optimizer.step()

train(2, 1)  # compiles the kernels
with tg.memory.Chip("20MB", tg.memory.ExternalMemory(sys.argv[2])):
    train(2, 1)
WIDTH = 2560
before = peak_rss()
with tg.memory.Chip(sys.argv[1], tg.memory.ExternalMemory(sys.argv[3])) as chip:
    train(10, 2)
print(json.dumps([peak_rss() - before, chip.memory, chip.external.nbytes, chip.peak_bytes]))
"""
)


@linux
def test_the_process_takes_no_more_than_the_budget_and_a_little(tmp_path):
    """10 matrices of 26 MB with gradients and state, over 1 GB, on a chip of 200 MB."""
    grown, budget, external, peak = in_a_process(BIG, "200MB", tmp_path / "a", tmp_path / "b")
    assert external > 5 * budget and peak < budget
    assert grown < 1.1 * budget + 32e6


@pytest.mark.parametrize("extra", range(4))
def test_what_is_fetched_ahead_is_not_crowded_out_by_weights_that_come_back(monkeypatch, extra):
    """A pass there and back needs each weight twice at most, and the last ones once."""
    monkeypatch.setattr(blocks, "UNIT_BYTES", 16 << 20)
    config, ids = GPTConfig(256, 128, 10, 4, 256), np.zeros((4, 128), int)

    def fetched(chip):
        """Of the last of three steps, in times the weights."""
        with chip:
            model = GPT(config, recompute=True)
            optimizer = tg.optim.AdamW(model.parameters())
            for _ in range(3):
                before = chip.bytes_moved["fetch"]
                optimizer.zero_grad()
                model(ids, ids)[1].backward()
                optimizer.step()
            weights = 4 * sum(p.size for p in model.parameters())
            return (chip.bytes_moved["fetch"] - before) / weights

    ample = Rehearsal()
    fetched(ample)
    layer = 4 * 12 * config.n_embd**2
    assert fetched(Rehearsal(ample.budget.footprint + extra * layer)) < 1.9


def test_garbage_is_let_go_of_before_memory_is_said_to_be_short():
    """Numba's errors, which it catches, hold the frames of whoever had a kernel compiled."""
    with Chip("1MB"):
        gc.disable()
        try:
            held = [kernels.empty((150_000,), np.float32)]
            held.append(held)
            del held
            again = kernels.empty((150_000,), np.float32)
            with pytest.raises(ChipMemoryError, match="602 kB  activations"):
                kernels.empty((150_000,), np.float32)
        finally:
            gc.enable()
    assert again.size == 150_000


def unary(name, *arguments):
    return lambda x: getattr(x, name)(*arguments)


OPS = {
    **{name: unary(name) for name in (
        "tanh", "sigmoid", "relu", "exp", "log", "sqrt", "gelu", "softmax", "log_softmax",
    )},
    "abs": abs, "negate": lambda x: -x, "subtract": lambda x: x - x.exp(),
    "multiply": lambda x: x * x.exp(), "divide": lambda x: 1 / x, "power": lambda x: x**1.5,
    "clip": unary("clip", 0, 1), "maximum": lambda x: tg.maximum(x, x * 2),
    "max": lambda x: x.max(axis=-1, keepdims=True) * x,
    "softmax of columns": unary("softmax", 0), "variance of columns": unary("var", 0),
}  # fmt: skip


@pytest.mark.parametrize("name", OPS)
def test_ops_take_their_memory_from_the_chip_and_rehearse_without_touching_it(name):
    """What NumPy allocates beside the chip's account stays far below one activation."""
    x, computed = np.ones((1024, 64), np.float32), {}
    with np.errstate(invalid="ignore"):  # roots of negative numbers; this loads the kernels
        (OPS[name](nn.Linear(64, 4096)(x)) * 1.0).sum().backward()
    for chip in (Chip("200MB"), Rehearsal()):
        with chip:
            layer = nn.Linear(64, 4096, rng=np.random.default_rng(0))  # activations of 16 MB
            tracemalloc.start()
            with np.errstate(invalid="ignore"):
                y = OPS[name](layer(x))
                (y * 1.0).sum().backward()
            computed[type(chip)] = tracemalloc.get_traced_memory()[1], chip.peak_bytes
            tracemalloc.stop()
    (beside, peak), (_, rehearsed) = computed[Chip], computed[Rehearsal]
    assert beside < 3e6 and peak == rehearsed


@pytest.mark.parametrize("place", [Rehearsal, lambda: Chip("10MB")], ids=["rehearsal", "chip"])
@pytest.mark.parametrize(
    "use",
    [lambda x: tg.einsum("ij,ij->ij", x, x), lambda x: x[np.arange(300) % 7]],
    ids=["einsum", "an index with arrays"],
)
def test_what_numpy_computes_is_counted_too(place, use):
    with place() as chip:
        x = tg.Tensor(np.ones((300, 300), np.float32), requires_grad=True)
        y = use(x)
        assert chip.peak_bytes >= 2 * 300 * 300 * 4
        y.backward(np.ones(y.shape, np.float32))
        assert chip.peak_bytes >= 3 * 300 * 300 * 4  # x is here, and its gradient, as y is
