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
from lessons.figure import BLUE, GREEN, INK, ORANGE, canvas, say, show

NAMES = ("default", "gpt2-124m", "1.3b", "13b", "175b")
configs = {}
for name in NAMES:
    preset = load_preset(name)
    configs[name] = preset.model(preset.vocab_size or 256)

print(f"{'':12}{'layers':>7}{'width':>7}{'12 L d^2':>11}{'with all':>11}")
for name, c in configs.items():
    layers_alone, everything = 12 * c.n_layer * c.n_embd**2, scaling.count_parameters(c)
    print(
        f"{name:12}{c.n_layer:7}{c.n_embd:7}{layers_alone / 1e6:10,.0f}M{everything / 1e6:10,.0f}M"
    )

counted = sum(p.size for p in GPT(configs["default"]).parameters())
assert counted == scaling.count_parameters(configs["default"])

# %% [markdown]
# ## How much work is a token?
#
# Each weight is used once per token on the way forward, for one multiplication and one addition. On
# the way back it is used twice, for the gradient of the input and for its own. That is six
# operations per weight and token, and attention adds $12 L d T$ for a context of $T$ tokens.


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
# arrive and twice as long to use.

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
    print(f"{name:7} {rate / 1e12:7.1f} TFLOP/s, {machine.bandwidth / 1e9:4.0f} GB/s from outside:"
          f"{needed[name]:8,.0f} tokens needed")  # fmt: skip

# %% [markdown]
# (The rates are what products are taken to achieve, below the peak; every number of a machine says
# where it comes from in `hardware(name).sources`.)
#
# ## How many tokens fit?
#
# Tokens need room: their activations stay on the chip until backward has used them. With recompute
# that is one array of width $d$ per layer, plus the layer at hand. The package *rehearses* the step
# to know: the real model runs with its kernels switched off, and every byte is counted.

# %%
from gpt.plan_works import need


def tokens_that_fit(config, name):
    """How many tokens one chip can hold at once, with recompute; 0 if not even one sequence."""
    precision, _ = MACHINES[name]
    machine = hardware(name)
    one, two = (need(config, n, True, precision, machine).nbytes for n in (1, 2))
    if one > machine.memory:
        return 0
    return (1 + (machine.memory - one) // (two - one)) * config.block_size


fitting = {name: [tokens_that_fit(c, name) for c in configs.values()] for name in MACHINES}
print(f"{'':12}" + "".join(f"{name:>14}" for name in MACHINES))
for i, name in enumerate(configs):
    print(f"{name:12}" + "".join(f"{fitting[machine][i]:14,}" for machine in MACHINES))

# %% [markdown]
# The larger the model, the fewer tokens fit, while as many are needed as ever. Where the two meet,
# streaming stops being free.
#
# ## How long, how much?
#
# A plan puts all of it together: it plays the step's work on a virtual clock, with fetches, updates
# and waits. Here are three machines for the same job.

# %%
from gpt.planner import Job, plan

job = Job(configs["13b"], sequences=1080, tokens=20 * scaling.count_parameters(configs["13b"]))
print(f"{'':10}{'step':>9}{'tokens/s':>11}{'MFU':>7}{'days':>8}{'dollars':>12}  limited by")
for name in ("cs2x16", "a100x64", "h100x64"):
    found = plan(Job(job.model, job.sequences, job.tokens, "bf16"), hardware(name))
    cost = "unknown" if found.cost_dollars is None else f"{found.cost_dollars:,.0f}"
    print(f"{name:10}{found.step_seconds:8.1f}s{found.tokens_per_second:11,.0f}{found.mfu:7.1%}"
          f"{found.days:8,.0f}{cost:>12}  {found.limited_by}")  # fmt: skip

# %% [markdown]
# The same arithmetic judges what others say. Suppose somebody trains the 13B model on eight GPUs
# and reports a hundred thousand tokens per second:

# %%
claimed = scaling.mfu(100_000, work_per_token(configs["13b"]), hardware("a100").peak_of("bf16"), 8)
say(f"That would take {claimed:.0%} of the GPUs' peak. {'Impossible.' if claimed > 1 else ''}")
assert claimed > 1

# %% [markdown]
# ## A model larger than its chip
#
# Now for real. The training loop below knows nothing of chips. It runs twice: with everything in
# memory, and on a chip too small for the model.

# %%
import contextlib

import tinygrad_edu as tg

config = GPTConfig(vocab_size=256, block_size=64, n_layer=6, n_head=4, n_embd=256)


def train(where, steps=4):
    losses = []
    with where:
        model = GPT(config, recompute=True)
        optimizer = tg.optim.AdamW(model.parameters(), lr=1e-3)
        rng = np.random.default_rng(0)
        for _ in range(steps):
            ids = rng.integers(0, 64, (4, 65))
            optimizer.zero_grad()
            _, loss = model(ids[:, :-1], ids[:, 1:])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


chip = tg.memory.Chip("16MB", external=tg.memory.ExternalMemory())
in_memory, streamed = train(contextlib.nullcontext()), train(chip)
model_bytes = 16 * scaling.count_parameters(config)  # weight, gradient and AdamW's two, in float32
say(
    f"The model and its optimizer take {model_bytes / 1e6:.0f} MB, the chip needed "
    f"{chip.peak_bytes / 1e6:.1f} MB, and the losses are the same bits: {streamed[-1]:.6f} and "
    f"{in_memory[-1]:.6f}."
)
assert streamed == in_memory and chip.peak_bytes < model_bytes / 4

# %% [markdown]
# ## Needed against resident

# %%
sizes = [scaling.count_parameters(c) for c in configs.values()]
figure, axes = canvas(figsize=(8.8, 5))
for name, (_, color) in MACHINES.items():
    tokens = np.array(fitting[name])
    free = tokens >= needed[name]
    axes.loglog(sizes, tokens, color=color, lw=1.8)
    axes.plot(np.array(sizes)[free], tokens[free], "o", color=color, ms=7)
    axes.plot(np.array(sizes)[~free], tokens[~free], "o", color=color, ms=7, mfc="none")
    axes.axhline(needed[name], color=color, lw=1.2, ls="--")
    axes.annotate(f"{name} needs {needed[name]:,.0f}", (7e5, needed[name]), color=color,
                  fontsize=9, xytext=(0, 4), textcoords="offset points")  # fmt: skip
    axes.annotate(
        f"fit on {name}",
        (sizes[0], tokens[0]),
        color=color,
        fontsize=9,
        xytext=(10, -16 + 22 * (name == "a100")),
        textcoords="offset points",
    )
for name, size in zip(configs, sizes):
    axes.annotate(name, (size, 14), color=INK, fontsize=9, ha="center")
axes.set(
    xlabel="size of the model (parameters)", ylabel="tokens on one chip (count)",
    xlim=(5e5, 6e11), ylim=(10, 3e7),
)  # fmt: skip
show(
    figure,
    "The tokens that a chip holds (lines) fall as models grow, the tokens that hide the stream "
    "(dashed) do not: streaming is free where a dot is filled.",
)

# %% [markdown]
# ## Where to read on
#
# - `gpt/planner.py`, function `plan`: how a step is cut into passes and put on the clock.
# - `gpt/scaling.py`, function `break_even_tokens`: the formula above, with its source.
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
