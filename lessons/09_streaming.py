# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Streaming weights
#
# **How can a model train that does not fit?**
#
# Lesson 8 counted: AdamW in float32 keeps four numbers of four bytes for every parameter, its
# weight, its gradient, and two averages. Large models need terabytes of that, and no chip has them.
#
# But look at what a chip does at any one moment: it multiplies by *one* matrix. All others are
# idle. They may as well be somewhere large and slow, if each arrives in time. This lesson builds
# that: first with a dictionary for the slow place, then with a thread, then on the package's chip.
#
# ## A layer at a time
#
# The model is a stack of layers. The slow place hands out copies and applies the optimizer's update
# itself, so that nothing but weights has to come to the chip, and nothing but gradients to leave.

# %%
import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import tinygrad_edu as tg
from lessons.figure import BLUE, GREEN, INK, ORANGE, PURPLE, RED, canvas, say, show
from tinygrad_edu import functional as F

tg.set_num_threads(1)  # one core computes, which leaves one to move bytes

DEPTH, WIDTH, ROWS = 10, 384, 256
rng = np.random.default_rng(9)
first = [rng.normal(0, 0.02, (WIDTH, WIDTH)).astype(np.float32) for _ in range(DEPTH)]
x, goal = (tg.Tensor(rng.normal(size=(ROWS, WIDTH)).astype(np.float32)) for _ in range(2))
RATE = 6.0


class SlowMemory:
    """Holds all weights. A fetch gives a copy, and takes its time."""

    def __init__(self, weights, seconds=0.0):
        self.weights = dict(enumerate(w.copy() for w in weights))
        self.seconds = seconds

    def fetch(self, name):
        time.sleep(self.seconds)
        return self.weights[name].copy()

    def update(self, name, grad):
        self.weights[name] -= np.float32(RATE) * grad


def layer(x, w):
    return x + F.gelu(F.linear(x, w))


# %% [markdown]
# Going forward, all that is kept is the input of each layer. Going backward, each weight comes a
# second time, its layer runs again from the kept input, and a tape of one layer is all the tape
# there ever is. `stream` is whoever brings the weights. The simplest one fetches each when it is
# asked for.


# %%
def on_demand(memory, names):
    for name in names:
        yield name, memory.fetch(name)


def streamed_step(memory, stream):
    names, inputs, h = list(memory.weights), [], x
    with tg.no_grad():
        for _, w in stream(memory, names):
            inputs.append(h)
            h = layer(h, tg.Tensor(w))  # the weight of the layer before is gone by now
    h = tg.Tensor(h, requires_grad=True)
    loss = ((h - goal) ** 2).mean()
    loss.backward()
    grad = h.grad
    for name, w in stream(memory, names[::-1]):
        h = tg.Tensor(inputs.pop(), requires_grad=True)
        w = tg.Tensor(w, requires_grad=True)
        layer(h, w).backward(grad)
        memory.update(name, w.grad)
        grad = h.grad  # of this layer's input: what the layer before it gets
    return loss.item()


# %% [markdown]
# It has to do what the same model does with everything in one place. Not nearly: the arithmetic is
# the same, in the same order, so the losses are the same bits.


# %%
def resident_step(weights):
    h = x
    for w in weights:
        h = layer(h, w)
    loss = ((h - goal) ** 2).mean()
    loss.backward()
    for w in weights:
        w.data = w.data - np.float32(RATE) * w.grad
        w.grad = None
    return loss.item()


weights = [tg.Tensor(w, requires_grad=True) for w in first]
resident = [resident_step(weights) for _ in range(4)]
memory = SlowMemory(first)
streamed = [streamed_step(memory, on_demand) for _ in range(4)]

assert streamed == resident
assert all((memory.weights[i] == w.data).all() for i, w in enumerate(weights))
print("losses ", *(f"{loss:.7f}" for loss in streamed))
say(
    f"Four steps, every bit the same, with one matrix of {DEPTH} and its gradient on the chip "
    f"instead of all of them: {2 * first[0].nbytes / 1e6:.1f} MB instead of "
    f"{2 * DEPTH * first[0].nbytes / 1e6:.1f} MB."
)

# %% [markdown]
# ## The price, and a thread
#
# So far the slow memory was not slow. Let a fetch take as long as a layer computes, on the machine
# this runs on, and ask what a step costs.


# %%
def best_of(times, function, *args):
    """Seconds of the least disturbed of some runs."""
    took = []
    for _ in range(times):
        start = time.perf_counter()
        function(*args)
        took.append(time.perf_counter() - start)
    return min(took)


compute_seconds = best_of(5, streamed_step, SlowMemory(first), on_demand)
link = compute_seconds / (2 * DEPTH)  # seconds per fetch
demand_seconds = best_of(5, streamed_step, SlowMemory(first, link), on_demand)

# %% [markdown]
# While a layer computes, the link to the memory has nothing to do; while the link works, the layer
# waits. The order of the layers is no secret, so the cure is one thread: it fetches layer $j + 1$
# while layer $j$ computes. The step does not change by a character; only the stream does.


# %%
def ahead(memory, names):
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(memory.fetch, names[0])
        for name, following in zip(names, [*names[1:], None]):
            weight = coming.result()  # waits, if it is late
            if following is not None:
                coming = thread.submit(memory.fetch, following)
            yield name, weight  # whoever asked computes now, and the thread fetches


memory = SlowMemory(first, link)
assert [streamed_step(memory, ahead) for _ in range(4)] == resident  # the same bits again
ahead_seconds = best_of(5, streamed_step, SlowMemory(first, link), ahead)

hidden = (demand_seconds - ahead_seconds) / (demand_seconds - compute_seconds)
gain = f"The thread hides {hidden:.0%} of the fetching." if hidden > 0 else (
    "This machine was too busy with other things to let the thread hide any of it."
)  # fmt: skip
say(
    f"A step takes {1e3 * compute_seconds:.1f} ms with a memory that is not slow, "
    f"{1e3 * demand_seconds:.1f} ms with fetches on demand, and {1e3 * ahead_seconds:.1f} ms with "
    f"fetches ahead. {gain}"
)

# %% [markdown]
# It cannot hide all of it. On the way forward a layer computes for less time than its fetch takes,
# and at the turn the thread starts anew.
#
# ## What is the best that can be had?
#
# Timings are noisy. Arithmetic is not, so let us work it out. Layer $i$ takes $f_i$ to fetch and
# $c_i$ to compute, and the chip has room for $D$ layers (*slots*). A fetch begins when the one
# before is over and a slot is free; a layer begins when the one before is over and its weights are
# there:
#
# $$\text{arrives}_i = \max(\text{arrives}_{i-1},\ \text{ends}_{i-D}) + f_i \qquad
# \text{ends}_i = \max(\text{ends}_{i-1},\ \text{arrives}_i) + c_i$$


# %%
def clock(fetch, compute, slots):
    """When the last layer ends."""
    ends, arrives = [], 0
    for i, (f, c) in enumerate(zip(fetch, compute)):
        slot_free = ends[i - slots] if i >= slots else 0
        arrives = max(arrives, slot_free) + f
        ends.append(max(ends[-1] if ends else 0, arrives) + c)
    return ends[-1]


# %% [markdown]
# With one slot this is a sum, and with two it is the larger of the two sides, apart from the first
# fetch and the last layer, which have nothing to hide behind:
#
# $$\text{one slot: } n\,(f + c) \qquad\qquad \text{two slots: } f + (n - 1)\max(f, c) + c$$

# %%
for n in (1, 2, 10, 100):
    for f, c in ((5, 2), (2, 5), (4, 4), (0, 3), (3, 0)):
        assert clock([f] * n, [c] * n, slots=1) == n * (f + c)
        assert clock([f] * n, [c] * n, slots=2) == f + (n - 1) * max(f, c) + c

for f, c in ((1, 10), (5, 10), (10, 10), (20, 10), (100, 10)):
    one, two = (clock([f] * 100, [c] * 100, slots) for slots in (1, 2))
    print(f"fetch {f:3}, compute {c}: {one:6} one slot {two:6} two slots, {one / two:.2f} x faster")

# %% [markdown]
# Fetching ahead gains a factor of two at most, where both sides take the same time. That sounds
# modest, until one reads the first lines of the table again: as long as a layer computes longer
# than it takes to fetch, the price of streaming is *one fetch*, however many layers there are.
#
# The package has the same recurrences, with gradients, updates and latencies in them, to plan runs
# on machines that nobody here owns. On a machine that does a FLOP and moves a byte per nanosecond
# it must give the same integers as ours, for layers as uneven as you like:

# %%
from tinygrad_edu.memory.clock import Work, play

toy = tg.memory.Hardware(
    name="toy", peak={"fp32": 1e9}, achieved=1.0, memory=10**9, memory_bandwidth=None,
    bandwidth=1e9, latency=0.0, optimizer_bandwidth=1e9,
)  # fmt: skip
for _ in range(100):
    fetch, compute = rng.integers(1, 1000, (2, rng.integers(1, 30))).tolist()
    works = [
        Work(f"layer {i}", "forward", c, fetch=f) for i, (f, c) in enumerate(zip(fetch, compute))
    ]
    for slots in (1, 2, 3, 8):
        assert play(works, toy, slots=slots, steps=1).step_ns == clock(fetch, compute, slots)
say("A hundred random models with four numbers of slots each: equal, to the nanosecond.")

# %% [markdown]
# ## The real thing
#
# `tg.memory.Chip` does all this to a model that knows nothing of it. Inside `with chip:` parameters
# are born in the external memory, every op borrows the weights it needs, a thread brings them,
# another one takes gradients out, and the update runs where the optimizer's state lives. The model
# and the loop are those of lesson 7; the text is the source code of the package's own memory tier.

# %%
from pathlib import Path

from gpt import GPT, GPTConfig

config = GPTConfig(vocab_size=256, block_size=48, n_layer=10, n_head=4, n_embd=256, bias=False)
source = b"".join(path.read_bytes() for path in sorted(Path(tg.memory.__path__[0]).glob("*.py")))
text = np.frombuffer(source, np.uint8).astype(np.int64)


def batch(step, size):
    starts = np.random.default_rng(step).integers(0, len(text) - 49, size)
    pieces = np.stack([text[at : at + 49] for at in starts])
    return pieces[:, :-1], pieces[:, 1:]


def train(steps, size):
    """Losses, and the seconds of the least disturbed step after the first."""
    model = GPT(config, recompute=True)
    optimizer = tg.optim.AdamW(model.parameters(), lr=1e-3)
    losses, times = [], []
    for step in range(steps):
        start = time.perf_counter()
        _, loss = model(*batch(step, size))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        times.append(time.perf_counter() - start)
    return losses, min(times[1:])


parameters = sum(p.size for p in GPT(config).parameters())
losses, seconds = {}, {}
losses[4], seconds["resident", 4] = train(6, 4)
say(
    f"{parameters / 1e6:.1f} million parameters: {4 * parameters / 1e6:.0f} MB of weights, "
    f"{16 * parameters / 1e6:.0f} MB with gradients and AdamW's state. With everything in memory, "
    f"a step of {4 * config.block_size} tokens takes {1e3 * seconds['resident', 4]:.0f} ms."
)

# %% [markdown]
# How small can the chip be? A *rehearsal* runs a step with the kernels switched off and keeps the
# account. We give the chip what the step needs and room for four layers beside it. And we give it
# a slow link: two passes of all weights take four fifths of the time that a step computes here.


# %%
def memory_for(size):
    """Bytes: what a step needs, and four layers."""
    with tg.memory.Rehearsal() as rehearsal:
        _, loss = GPT(config, recompute=True)(*batch(0, size))
        loss.backward()
    return rehearsal.budget.footprint + 4 * 12 * config.n_embd**2 * 4


bandwidth = 2 * 4 * parameters / (0.8 * seconds["resident", 4])


def make_chip(size):
    external = tg.memory.ExternalMemory(bandwidth=bandwidth, latency=1e-4)
    return tg.memory.Chip(memory_for(size), external)


chip = make_chip(4)
with chip:
    streamed, seconds["ahead", 4] = train(6, 4)

assert streamed == losses[4]  # bit for bit
say(
    f"The same losses, bit for bit, from {losses[4][0]:.4f} to {losses[4][-1]:.4f}, on a chip of "
    f"{chip.memory / 1e6:.0f} MB behind a link of {bandwidth / 1e6:.0f} MB/s: "
    f"{1e3 * seconds['ahead', 4]:.0f} ms per step, "
    f"{seconds['ahead', 4] / seconds['resident', 4]:.2f} times the resident one."
)

# %%
print(chip.report())

# %% [markdown]
# From top to bottom:
#
# - **peak**: what was needed at once, activations first. Weights in use are the smallest item: one
#   matrix, whatever the number of layers. The rest of the budget is **room** for weights that come
#   early or stay for their next use.
# - **fetch**: nearly two passes over the weights per step, forward and backward. Not quite two,
#   because the last layers of the forward pass are the first of the backward pass, and were kept.
# - **drain**: one pass of gradients, in the other direction of the link. **update**: AdamW reads
#   weight, gradient and two averages, and writes back three of them. None of it crosses the link.
# - **compute** and **overlap**: what the chip waited for, and how much of the transfers it did
#   not notice. Waits at the first step are in there, before anything was known about the order.
# - **break-even**: the line this lesson was written for.

# %%
moved = {kind: nbytes / 6 / (4 * parameters) for kind, nbytes in chip.bytes_moved.items()}
assert chip.bytes_moved["update"] == 6 * 7 * 4 * parameters
say(
    f"In passes over all weights, per step: {moved['fetch']:.2f} fetched, {moved['drain']:.2f} "
    f"drained, {moved['update']:.0f} read and written by the optimizer beside the memory."
)

# %% [markdown]
# ## When is streaming free?
#
# Fetching takes the same time for a batch of one as for a thousand, because weights are weights.
# Computing grows with the tokens. So there is a number of tokens per pass from which on fetching
# hides behind computing, whatever the size of the model, and the report says which: tokens, times
# the time that the link was busy, over the time that the chip computed.
#
# Let us raise the batch and look. To see what fetching ahead is worth, a second chip gets a
# recording that never learns: it expects nothing, and so it fetches each weight when an op asks.

# %%
from tinygrad_edu.memory.schedule import Schedule


class Forgetful(Schedule):
    def saw(self, key, need=0):
        pass


chips = {("ahead", 4): chip}
for size in (1, 2, 4, 8):
    for way in ("resident", "ahead", "on demand"):
        if (way, size) in seconds:
            continue
        if way == "resident":
            losses[size], seconds[way, size] = train(6, size)
            continue
        other = chips[way, size] = make_chip(size)
        with other:
            if way == "on demand":
                other.residency.schedule = Forgetful()
            got, seconds[way, size] = train(len(losses[size]), size)
        assert got == losses[size]

tokens = {size: size * config.block_size for size in (1, 2, 4, 8)}
print("tokens per pass, ms per step:  resident   ahead   on demand")
for size, count in tokens.items():
    row = [1e3 * seconds[way, size] for way in ("resident", "ahead", "on demand")]
    print(f"{count:15} {row[0]:23.0f} {row[1]:7.0f} {row[2]:11.0f}")


# %%
totals = chip.timeline.totals()
even = chip.tokens * max(totals["fetch"].busy, totals["drain"].busy) / totals["compute"].busy
assert f"about {even:,.0f} tokens" in chip.report()


def extra(way, size):
    return 1e3 * (seconds[way, size] - seconds["resident", size])


figure, axes = canvas(figsize=(7.6, 4.2))
at, place = list(tokens.values()), 0
top = 1.1e3 * max(seconds.values())
for way, color in (("resident", GREEN), ("ahead", BLUE), ("on demand", RED)):
    times = [1e3 * seconds[way, size] for size in tokens]
    axes.plot(at, times, "o-", color=color, ms=6)
    place = max(times[-1], place + 0.07 * top)
    label = "all in memory" if way == "resident" else f"fetched {way}"
    axes.text(at[-1] + 12, place, label, color=color, va="center", fontsize=11)
axes.axvline(even, color=INK, lw=1, ls=(0, (4, 3)))
axes.text(even + 5, 0.03 * top, f"break-even: {even:.0f} tokens")
axes.set(xlim=(0, 500), ylim=(0, top), xticks=[0, *at])
axes.set(xlabel="tokens per pass (count)", ylabel="time of a step (ms)")
see = (
    "The distance to the green line is the price of streaming: on demand "
    f"{extra('on demand', 1):.0f} ms for the smallest batch and {extra('on demand', 8):.0f} ms for "
    f"the largest, ahead {extra('ahead', 1):.0f} ms and {extra('ahead', 8):.0f} ms."
)
if any(not 0 < extra("ahead", size) < extra("on demand", size) for size in tokens):
    see = (
        "The distance to the green line is the price of streaming; on this machine something else "
        "was running, and moved the lines about, so run it again when it is quiet."
    )
show(figure, see)

# %%
best = min(chips["ahead", 8].timeline.steps()[1:], key=lambda step: step.wall)
transfers = [e for e in chips["ahead", 8].timeline.events if e.step == best.step and e.bytes]
say(
    f"Free is a large word. With {tokens[8]} tokens the chip still waits "
    f"{1e3 * sum(best.stalls.values()):.0f} ms per step, and the last figure will show for what. "
    f"Besides, {len(transfers)} transfers and updates have to be handled, however small the "
    "matrices are that they move."
)

# %% [markdown]
# More tokens per pass need more memory for activations. That is the whole trade: a chip that holds
# enough *tokens* does not have to hold the *model*. Lesson 10 does the sum for machines that exist.
#
# ## What should leave first?
#
# The chip had room for four layers beside the one in use. Which ones should stay? That depends on
# what comes next, and the package knows, because it writes down what is borrowed. A rehearsal
# is enough to see the recordings: of training, and of evaluation.


# %%
def recorded(passes):
    """Layers in the order in which they are borrowed, repetitions left out."""
    with tg.memory.Rehearsal() as rehearsal:
        model = GPT(config, recompute=True)
        model.named_parameters()  # which lets each parameter know its name
        passes(model)
    names = [key[0].name for key in rehearsal.residency.schedule.keys]
    layers = [int(name.split(".")[2]) for name in names if ".h." in name]
    return [a for a, b in zip(layers, [None, *layers]) if a != b]


def training(model):
    model(*batch(0, 4))[1].backward()


@tg.no_grad()
def evaluation(model):
    for step in range(4):
        model(*batch(step, 4))


zigzag, cyclic = recorded(training), recorded(evaluation)
print("training  ", *zigzag)
print("evaluation", *cyclic)

# %% [markdown]
# Training goes to the end and turns back. Evaluation, and generating text, start over each time.
#
# The usual rule for what leaves is *least recently used*: what was touched longest ago will not be
# missed. On a cycle this is the worst of all rules, for what was touched longest ago is exactly
# what comes next. Belady's rule looks the other way: what is *used furthest in the future* leaves.
# Nobody can beat that, and a recording makes it possible.
#
# To be sure of "nobody", the third function below tries everything that can be done.

# %%
from functools import cache


def fetches_lru(order, slots):
    chip, count = [], 0  # the least recently used first
    for unit in order:
        if unit in chip:
            chip.remove(unit)
        else:
            count += 1
            chip = chip[1:] if len(chip) == slots else chip
        chip.append(unit)
    return count


def fetches_package(order, slots):
    """With the package's recording of two earlier times."""
    schedule, chip, count = Schedule(), set(), 0
    for unit in order * 2:
        schedule.saw(unit)
    for unit in order:
        schedule.saw(unit)
        if unit not in chip:
            count += 1
            if len(chip) == slots:
                chip.remove(max(chip, key=schedule.next_use))
            chip.add(unit)
    return count


def fetches_at_least(order, slots):
    @cache
    def least(now, chip):
        if now == len(order):
            return 0
        if order[now] in chip:
            return least(now + 1, chip)
        rooms = [chip] if len(chip) < slots else [chip - {unit} for unit in chip]
        return 1 + min(least(now + 1, room | {order[now]}) for room in rooms)

    return least(0, frozenset())


layers = range(1, config.n_layer + 1)
for order in (cyclic, zigzag):
    for slots in layers:
        assert fetches_package(order, slots) == fetches_at_least(order, slots)
for slots in layers:
    assert fetches_lru(zigzag, slots) == fetches_at_least(zigzag, slots)
    if slots < config.n_layer:
        assert fetches_lru(cyclic, slots) == len(cyclic)  # every single time

figure, both = canvas(1, 2, figsize=(8.6, 3.5))
for axes, order in zip(both, (cyclic, zigzag)):
    axes.axhline(config.n_layer, color=INK, lw=1, ls=(0, (4, 3)))
    lru = [fetches_lru(order, slots) for slots in layers]
    axes.plot(layers, lru, "o-", color=RED, ms=8)
    best = [fetches_package(order, slots) for slots in layers]
    axes.plot(layers, best, "o-", color=BLUE, ms=4.5)
    axes.set(xlabel="room on the chip (layers)", ylim=(0, 1.2 * len(order)), xticks=layers)
both[0].set(ylabel="fetches (layers)", title="evaluation: four times around")
both[1].set(ylabel="fetches (layers)", title="training: there and back")
both[0].text(5, 42.5, "least recently used", color=RED, ha="center")
both[0].text(3.2, 22, "furthest in\nthe future", color=BLUE, ha="center", va="center")
both[0].text(1, 7.5, "each layer once", va="center", fontsize=9.5)
both[1].text(5.6, 16.2, "both rules", color=BLUE)
both[1].text(1, 8.9, "each layer once", va="center", fontsize=9.5)
show(
    figure,
    "On a cycle the least recently used rule gains nothing until everything fits; on the way there "
    "and back it is as good as any.",
)

# %% [markdown]
# Training is kind: on a way that turns back, what was used last *is* what comes next, so the lazy
# rule happens to be the best one. And with every update all copies on the chip are worth nothing,
# so that only the turn can be saved. The recording earns its keep in training by knowing what to
# fetch early, and in evaluation by knowing what to keep.
#
# ## One step, seen from the chip
#
# The chip wrote down what it did and when. Here is one step of the run above, on demand and ahead.

# %%
LANES = {"fetch": BLUE, "compute": GREEN, "drain": PURPLE, "update": ORANGE}


def without(spans, holes):
    """What is left of (start, end) spans where the holes are cut out; both in order."""
    left = []
    for start, end in spans:
        for hole, over in holes:
            if hole < end and over > start:
                left.append((start, hole))
                start = max(start, over)
        left.append((start, end))
    return [(start, end) for start, end in left if end > start]


def draw_step(axes, chip):
    """Draws the least disturbed step that had a recording; its length and its waits (ms)."""
    step = min(chip.timeline.steps()[2:-1], key=lambda step: step.wall).step
    events = [event for event in chip.timeline.events if event.step == step]
    origin = min(event.start for event in events)

    def bars(spans, row, **style):
        pairs = [((start - origin) / 1e6, (end - start) / 1e6) for start, end in spans]
        axes.broken_barh(pairs, (-row - 0.36, 0.72), lw=0, **style)

    waits = sorted((start, end) for _, start, end, at in chip.timeline.stalls if at == step)
    for row, (lane, color) in enumerate(LANES.items()):
        axes.axhspan(-row - 0.36, -row + 0.36, color=INK, alpha=0.08, lw=0)
        axes.text(-0.012, -row, lane, color=color, ha="right", va="center", fontsize=11.5,
                  transform=axes.get_yaxis_transform())  # fmt: skip
        here = [event for event in events if event.lane == lane]
        if lane == "compute":
            spans = without([(event.start, event.end) for event in here], waits)
            bars(spans, row, color=color)
            continue
        for odd in (0, 1):  # neighbouring layers differ in shade
            spans = [
                (event.start, event.end)
                for event in here
                if (int(event.name.split(".")[2]) % 2 if ".h." in event.name else 0) == odd
            ]
            bars(spans, row, color=color, alpha=1 - 0.45 * odd)
    bars(waits, 1, facecolor="none", edgecolor=RED, hatch="//////")
    back = min(event.start for event in events if event.name.endswith("backward"))
    length = max(event.end for event in events) - origin
    turn = (back - origin) / 1e6
    axes.plot([turn, turn], [0.42, 0.8], color=INK, lw=1)
    axes.text(turn - 1.5, 0.47, "forward", ha="right", fontsize=9.5)
    axes.text(turn + 1.5, 0.47, "backward", fontsize=9.5)
    return length / 1e6, sum(end - start for start, end in waits) / 1e6


figure, both = canvas(2, 1, figsize=(9.4, 5.8), sharex=True)
lengths = []
for axes, way in zip(both, ("on demand", "ahead")):
    length, waited = draw_step(axes, chips[way, 4])
    lengths.append(length)
    axes.axvline(length, color=INK, lw=1.2)
    axes.set_title(
        f"fetched {way}: {length:.0f} ms, of which the chip waits {waited:.0f}", loc="left"
    )
    axes.set(yticks=[], ylim=(-3.5, 0.85))
    axes.grid(False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.tick_params(labelleft=False)
if lengths[1] < 0.9 * lengths[0]:
    arrow = {"arrowstyle": "<-", "color": INK, "lw": 1.2, "shrinkA": 2, "shrinkB": 0}
    both[1].annotate("", (lengths[0], -1.5), (lengths[1], -1.5), arrowprops=arrow)
    both[1].text(sum(lengths) / 2, -1.42, f"{lengths[0] - lengths[1]:.0f} ms", ha="center")
both[1].set(xlabel="time since the step began (ms)", xlim=(0, max(lengths) * 1.01))
show(
    figure,
    "One step, twice; shades tell neighbouring layers apart. On demand, the link and the chip take "
    "turns, and the red gaps are the chip waiting; ahead, weights and gradients move while it "
    "computes.",
)
tg.set_num_threads(os.cpu_count())  # all of them again

# %% [markdown]
# Two kinds of waiting are left. One is at the beginning of the step: nothing can be fetched before
# it is updated, and the rows of the embedding not before the tokens are known, so they stand in
# line behind the layers that were ordered already. Lesson 10 meets this wait again, between the
# steps of its plan. The other is in the backward pass: gradients are made faster than the link
# takes them, and the chip keeps only a few before it waits for room.
#
# ## Where to read on
#
# - `tinygrad_edu/memory/residency.py`, function `look_ahead`: what is fetched early, and when it is
#   too early; function `evict_one`: what leaves.
# - `tinygrad_edu/memory/schedule.py`, class `Schedule`: the recording, how it notices that the
#   present repeats the past, and what a wrong guess costs.
# - `tinygrad_edu/memory/streamed.py`, class `StreamedStorage`: a parameter that lives elsewhere,
#   and its update.
# - `tinygrad_edu/memory/clock.py`, function `play`: the recurrences, with everything in them.
#
# ## Exercise
#
# Write the rule. `lessons/exercises/lesson_09.py` has a chip that is one unit over its budget, the
# whole order, and the place in it that has been reached; `evict` says what leaves. Beat the least
# recently used rule on a cycle, and be as good as the best on everything else. Then:
#
# ```sh
# python -m lessons.check 9
# ```

# %%
from lessons.check import check

check(9)
