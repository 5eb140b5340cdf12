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
# # From 1M to 175B by changing numbers
#
# **How long is a step, what does it cost, and when is streaming free?**
#
# A machine that streams its weights runs the same program for a model of any size. So the questions
# that are left are about numbers, and numbers can be had before anything runs. This lesson derives
# them, has them confirmed by the planner, and ends with a model that trains although it does not
# fit on its chip.
#
# ## How large is a model?
#
# Each layer of width $d$ has four $d \times d$ matrices in attention and two of $d \times 4d$ in
# the MLP: $12 d^2$ weights. Norms and biases are crumbs beside them.

# %%
import numpy as np

from gpt import GPT, GPTConfig, scaling
from gpt.config import load_preset
from lessons.figure import BLUE, GREEN, INK, ORANGE, RED, canvas, say, show

NAMES = ("default", "shakespeare-char", "gpt2-124m", "1.3b", "13b", "70b", "175b")
configs = {}
for name in NAMES:
    preset = load_preset(name)
    configs[name] = preset.model(preset.vocab_size or 256)

print(f"{'':18}{'layers':>7}{'width':>7}{'12 L d^2':>11}{'with all':>11}")
for name, c in configs.items():
    layers_alone, everything = 12 * c.n_layer * c.n_embd**2, scaling.count_parameters(c)
    print(
        f"{name:18}{c.n_layer:7}{c.n_embd:7}{layers_alone / 1e6:10,.0f}M{everything / 1e6:10,.0f}M"
    )

counted = sum(p.size for p in GPT(configs["default"]).parameters())
assert counted == scaling.count_parameters(configs["default"])

# %% [markdown]
# ## How much work is a token?
#
# Each weight is used once per token on the way forward, for one multiplication and one addition. On
# the way back it is used twice, for the gradient of the input and for its own. That is six
# operations per weight and token. Attention adds $12 L d T$ for a context of $T$ tokens: queries
# times keys, and shares times values, with $2 d T$ operations each, forward once and back twice.


# %%
def work_per_token(c):
    return 6 * scaling.count_parameters(c) + 12 * c.n_layer * c.n_embd * c.block_size


for c in configs.values():
    assert work_per_token(c) == scaling.flops_per_step(c, scaling.count_parameters(c), tokens=1)

gpt3 = configs["175b"]
say(f"A token of the 175B model costs {work_per_token(gpt3) / 1e12:.2f} trillion operations.")

# %% [markdown]
# ## When is streaming free?
#
# A weight of $b$ bytes takes $b / \text{bandwidth}$ to arrive. While it is there, each token on the
# chip spends two operations on it. The weight's successor arrives unnoticed if those take as long:
#
# $$ \frac{2 \cdot \text{tokens}}{\text{FLOP/s}} = \frac{b}{\text{bandwidth}}
# \quad\Rightarrow\quad \text{tokens} = \frac{b \cdot \text{FLOP/s}}{2 \cdot \text{bandwidth}} $$
#
# Look at what is not in it: the size of the model. Twice as many weights take twice as long to
# arrive and twice as long to use. (The way back does twice the work on a weight, so half the tokens
# hide it there. The way forward decides.)
#
# Three machines: Cerebras' CS-2, a chip as large as a wafer; the A100, a GPU; and a laptop. A
# number takes two bytes in bf16, four in fp32.

# %%
from tinygrad_edu.memory.hardware import hardware

MACHINES = {"cs2": ("bf16", BLUE), "a100": ("bf16", ORANGE), "laptop": ("fp32", GREEN)}
BYTES = {"bf16": 2, "fp32": 4}
needed = {}
for name, (precision, _) in MACHINES.items():
    machine = hardware(name)
    rate = machine.peak_of(precision) * machine.achieved
    needed[name] = BYTES[precision] * rate / (2 * machine.bandwidth)
    assert np.isclose(
        needed[name], scaling.break_even_tokens(BYTES[precision], rate, machine.bandwidth)
    )
    print(f"{name:7} {rate / 1e12:7.1f} TFLOP/s, {machine.bandwidth / 1e9:4.0f} GB/s, {precision}:"
          f"{needed[name]:8,.0f} tokens needed")  # fmt: skip

# %% [markdown]
# (The rates are what products are taken to achieve, below the peak; every number of a machine says
# where it comes from in `hardware(name).sources`.)
#
# ## How many tokens fit?
#
# Tokens need room: their activations stay on the chip until backward has used them. With recompute,
# lesson 8 counted one array of width $d$ for each layer, and 16 + 5 for the layer at hand. So about
# $\text{memory} / (b\,(L + 21)\,d)$ tokens fit. To know exactly, the package *rehearses* the step:
# the real model runs with its kernels switched off, and every byte that it would hold is counted.

# %%
from gpt.plan_works import need


def about(config, name):
    """How many by hand."""
    machine, value = hardware(name), BYTES[MACHINES[name][0]]
    return machine.memory // (value * (config.n_layer + 16 + 5) * config.n_embd)


def tokens_that_fit(config, name):
    """How many tokens one chip can hold at once, with recompute; 0 if not even one sequence."""
    precision, _ = MACHINES[name]
    machine = hardware(name)
    n = 2**15 // config.block_size  # with few tokens the peak lies elsewhere
    some, twice = (need(config, k, True, precision, machine).nbytes for k in (n, 2 * n))
    return max(0, n + (machine.memory - some) * n // (twice - some)) * config.block_size


fitting = {name: [tokens_that_fit(c, name) for c in configs.values()] for name in MACHINES}
print(f"{'tokens that fit':18}" + "".join(f"{name:>12}" for name in MACHINES) + "   cs2 by hand")
for i, (name, c) in enumerate(configs.items()):
    print(f"{name:18}" + "".join(f"{fitting[m][i]:12,}" for m in MACHINES)
          + f"{about(c, 'cs2'):14,}")  # fmt: skip
    for machine in MACHINES:
        whole = about(c, machine) // c.block_size * c.block_size
        assert 0.95 * whole <= fitting[machine][i] <= whole

# %% [markdown]
# The larger the model, the fewer tokens fit, while as many are needed as ever. Where the two meet,
# streaming stops being free.
#
# ## How long is a step?
#
# First by hand. The 175B model trains on batches of 1,472 sequences, here on 64 chips. A chip takes
# its share in passes, as many tokens at a time as fit.

# %%
CHIPS = 64
sequences = load_preset("175b").batch_size
wafers = hardware(f"cs2x{CHIPS}")
rate = wafers.peak_of("bf16") * wafers.achieved
size = scaling.count_parameters(gpt3)

per_pass = fitting["cs2"][-1]
forward = 2 * size * per_pass / rate
arrival = BYTES["bf16"] * size / wafers.bandwidth
step = sequences * gpt3.block_size * work_per_token(gpt3) / (CHIPS * rate)
with_recompute = step * 4 / 3  # forward runs twice: 2 + 2 + 4 operations per weight, not 2 + 4
say(
    f"The batch is {sequences:,} sequences, on {CHIPS} chips. A pass of {per_pass:,} tokens "
    f"computes for {forward:.1f} s on the way forward, and its weights take {arrival:.1f} s to "
    f"arrive. Products alone take {with_recompute:.0f} s per step."
)
assert (forward < arrival) == (per_pass < needed["cs2"])

# %% [markdown]
# The planner does not estimate: it puts every fetch, product, gradient and update of the rehearsed
# step on a virtual clock. There the chip can wait for a weight (fetch), for one of its few buffers
# to fetch into (slots), for gradients to leave (drain), for a weight that is not updated yet
# (update), and between steps for the last gradient, its update, and the first weights. The MFU
# (model FLOPs utilisation) is the work of the model, recompute not counted, as a part of what the
# chips could do at their peak.

# %%
import time

from gpt.planner import Job, plan

job = Job(gpt3, sequences, tokens=300e9, precision="bf16")
began = time.perf_counter()
planned = plan(job, wafers)
took = time.perf_counter() - began

played = planned.playback
waits = {**played.stall_seconds, "between steps": played.bubble_seconds}
print(f"compute         {played.compute_seconds / played.step_seconds:6.1%}")
for cause, seconds in waits.items():
    print(f"wait: {cause:14}{seconds / played.step_seconds:6.1%}")
faster = plan(job, wafers.but(bandwidth=1.5 * wafers.bandwidth))
say(
    f"A step takes {planned.step_seconds:.1f} s in {planned.passes} passes, with an MFU of "
    f"{planned.mfu:.1%}. (Planning it took {took:.1f} s.) Links half as fast again would make it "
    f"{faster.step_seconds:.1f} s."
)
assert planned.tokens_resident == per_pass and planned.break_even_tokens == needed["cs2"]

# %% [markdown]
# ## How much does it cost?
#
# Days times chips times a price. Here the same training runs on other machines.

# %%
print(f"{'':10}{'tokens/pass':>12}{'needed':>8}{'step':>9}{'MFU':>7}{'days':>7}{'dollars':>13}")
plans = {name: plan(job, hardware(name)) for name in (wafers.name, "a100x64", "a100x1024")}
for name, p in plans.items():
    cost = "unknown" if p.cost_dollars is None else f"{p.cost_dollars:,.0f}"
    print(f"{name:10}{p.tokens_resident:12,}{p.break_even_tokens:8,.0f}{p.step_seconds:8.1f}s"
          f"{p.mfu:7.1%}{p.days:7,.0f}{cost:>13}")  # fmt: skip
few, many = plans["a100x64"], plans["a100x1024"]
say(
    f"{many.hardware.chips // few.hardware.chips} times the GPUs are only "
    f"{few.days / many.days:.1f} times as fast and cost {many.cost_dollars / few.cost_dollars:.1f} "
    f"times as much: the batch is shared out so thinly that {many.tokens_resident:,} tokens are "
    f"left for a chip, and {many.break_even_tokens:,.0f} would hide the stream."
)
price, source = few.hardware.dollars_per_hour, few.hardware.sources["dollars_per_hour"]
say(
    f"A price is an argument like any other. The preset has {price} dollars per GPU and hour "
    f'("{source.text}", {"" if source.confirmed else "not "}confirmed), and none for a wafer: '
    "give yours with `but(dollars_per_hour=...)`."
)

# %% [markdown]
# The same arithmetic judges what others say. MosaicML publishes what LLM Foundry achieves
# (`mosaicml/llm-foundry`, `scripts/train/benchmarking/README.md`): a model of 32 layers, 4096 wide,
# on eight A100, takes 37,130 tokens per second, which they call an MFU of 64.23 %. And suppose
# somebody boasts that the same GPUs do sixty thousand.

# %%
import dataclasses

from gpt.claims import Claim, judge

published = Claim(
    parameters=scaling.parameters(layers=32, width=4096, vocab=50368, positions=2048),
    layers=32, width=4096, context=2048,
    peak=hardware("a100").peak_of("bf16"), chips=8, tokens_per_second=37_130,
)  # fmt: skip
boast = dataclasses.replace(published, tokens_per_second=60_000)
say(
    f"{published.layers} layers of {published.width}, {published.tokens_per_second:,} tokens per "
    f"second: recomputed, the MFU is {100 * judge(published).mfu:.2f} %."
)
say(f"The boast is {judge(boast).impossible}.")
assert abs(judge(published).mfu - 0.6423) < 1.1e-4 and judge(boast).mfu > 1

# %% [markdown]
# ## A model larger than its chip
#
# Now for real, and small. The training loop below knows nothing of chips. It runs twice: with
# everything in memory, and on a chip too small for the model. How small may it be? The rehearsal
# that planned 175B says so before the first step.

# %%
import contextlib

import tinygrad_edu as tg

config = GPTConfig(vocab_size=256, block_size=64, n_layer=6, n_head=4, n_embd=256)
BATCH = 4


def train(where, steps=4):
    losses = []
    with where:
        model = GPT(config, recompute=True)
        optimizer = tg.optim.AdamW(model.parameters(), lr=1e-3)
        rng = np.random.default_rng(0)
        for _ in range(steps):
            ids = rng.integers(0, 64, (BATCH, config.block_size + 1))
            optimizer.zero_grad()
            _, loss = model(ids[:, :-1], ids[:, 1:])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


foreseen = need(config, BATCH, True, "fp32", hardware("laptop")).nbytes
chip = tg.memory.Chip(foreseen + 2**20)  # and a little to fetch ahead
in_memory, streamed = train(contextlib.nullcontext()), train(chip)
model_bytes = 16 * scaling.count_parameters(config)  # weight, gradient and AdamW's two, in float32

print("step     ", *(f"{i:<10}" for i in range(len(streamed))))
print("in memory", *(f"{loss:.6f}  " for loss in in_memory))
print("on a chip", *(f"{loss:.6f}  " for loss in streamed))
say(
    f"The model and its optimizer take {model_bytes / 1e6:.1f} MB, the chip has "
    f"{chip.memory / 1e6:.1f} MB. It was foreseen to need {foreseen / 1e6:.2f} MB and needed "
    f"{chip.peak_bytes / 1e6:.2f} MB, and the losses are the same to the last bit."
)
assert streamed == in_memory
assert chip.peak_bytes <= chip.memory < model_bytes / 4
assert abs(chip.peak_bytes / foreseen - 1) < 0.03

# %% [markdown]
# Nothing in the loop changes on the way from here to 175B. A configuration and a machine do.
#
# ## Needed against resident
#
# All of it in one picture, for three machines: what fits, what is needed, and the room between.

# %%
sizes = np.array([scaling.count_parameters(c) for c in configs.values()])
between = np.geomspace(sizes[0], sizes[-1], 400)
figure, panels = canvas(1, len(MACHINES), figsize=(10, 4.2), sharey=True)
for axes, (name, (_, color)) in zip(panels, MACHINES.items()):
    machine, tokens, least = hardware(name), np.array(fitting[name]), needed[name]
    curve = np.exp(np.interp(np.log(between), np.log(sizes), np.log(tokens)))
    axes.fill_between(between, least, curve, where=curve >= least, color=color, alpha=0.17, lw=0)
    axes.fill_between(between, least, curve, where=curve < least, color=RED, alpha=0.55, lw=0)
    axes.loglog(between, curve, color=color)
    free = tokens >= least
    axes.plot(sizes[free], tokens[free], "o", color=color, ms=6)
    axes.plot(sizes[~free], tokens[~free], "o", color=RED, ms=6)
    axes.axhline(least, color=color, lw=1.4, ls="--")
    axes.text(1e6, least / 1.25, f"{least:,.0f} are needed", color=color, va="top")
    axes.text(1e8, tokens[0] / 1.1, "tokens that fit", color=color)
    middle = np.sqrt(least * np.interp(1e8, between, curve))
    axes.text(6e7, middle, "streaming is free", color=INK, style="italic", ha="center", va="center")
    if not free.all():
        axes.text(sizes[-1], tokens[-1] / 1.7, "it waits", color=RED, ha="center", va="top")
    axes.set(xlabel="size of the model (parameters)", xlim=(4e5, 6e11), ylim=(30, 3e7))
    axes.set_title(f"{name}: {machine.memory / 1e9:.0f} GB, {machine.bandwidth / 1e9:.0f} GB/s")
    axes.set_xticks([1e6, 1e8, 1e10, sizes[-1]], ["1M", "100M", "10B", "175B"])
    axes.minorticks_off()
panels[0].set_ylabel("tokens on one chip (count)")
show(
    figure,
    "What fits on a chip falls as models grow, what hides the stream does not: in the shaded room "
    "between the two, external memory costs no time, and a CS-2 leaves it just below 175B.",
)

# %% [markdown]
# ## Where to read on
#
# - `gpt/planner.py`, function `plan`: how a step is cut into passes and put on the clock.
# - `gpt/scaling.py`, function `break_even_tokens`: the formula above, with its source.
# - `gpt/claims.py`, function `judge`: a claim held against the peak.
# - `tinygrad_edu/memory/clock.py`, function `play`: what happens when a fetch comes late.
#
# `python -m gpt.plan 175b --hardware cs2 --chips 64` asks from the command line, and `--verify`
# plans steps and then takes them, on your machine.
#
# ## Exercise
#
# You have so many dollars. Open `lessons/exercises/lesson_10.py` and plan the best run they buy.
#
# ```sh
# python -m lessons.check 10
# ```

# %%
from lessons.check import check

check(10)
