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
# # A GPT that writes Python
#
# **What happens between the first step and the first readable line?**
#
# Everything so far was preparation: gradients that can be trusted, products that are fast,
# attention that looks things up. Here they become a model that reads the source code of your own
# Python and writes something like it, after a minute or so of training.
#
# ## The text
#
# A language model guesses the next token of a text. Ours are bytes, so there are as many tokens as
# a byte has values, and the text is the standard library that came with this Python. Every tenth
# file is held out: what the model has never seen tells whether it learned or memorised.

# %%
import tempfile
from pathlib import Path

import numpy as np

import tinygrad_edu as tg
from gpt.data import batch, open_data
from lessons.figure import BLUE, GREEN, INK, ORANGE, canvas, say, show

CONTEXT = 96
folder = tempfile.TemporaryDirectory()
data = open_data(None, "byte", block_size=CONTEXT, cache=Path(folder.name))
x, y = batch(data.train, np.random.default_rng(4), 1, CONTEXT)
print(repr(data.tokenizer.decode(x[0])))
assert np.array_equal(x[0, 1:], y[0, :-1])
say(f"{len(data.train):,} bytes to learn from, {len(data.val):,} held out.")

# %% [markdown]
# The targets are the inputs, moved by one: at every position the model guesses what follows, so a
# text of some length is as many exercises at once.
#
# ## The model, from its pieces
#
# - a **token embedding** and a **position embedding**: what is here, and where;
# - **blocks** that each read, look back (attention, lesson six), and think (an MLP: two products,
#   with a bent function, GELU, between them), adding what they find to the stream that passes
#   through;
# - a last norm, and the token table once more: which token does the result resemble most?

# %%
from gpt import GPTConfig
from tinygrad_edu import functional as F
from tinygrad_edu import nn


class Block(nn.Module):
    def __init__(self, width, heads):
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.c_attn, self.c_proj = (
            nn.Linear(width, 3 * width, False),
            nn.Linear(width, width, False),
        )
        self.c_fc = nn.Linear(width, 4 * width, False)
        self.mlp_proj = nn.Linear(4 * width, width, False)

    def look_back(self, x):
        b, t, c = x.shape
        q, k, v = (
            part.reshape(b, t, self.heads, c // self.heads).transpose(1, 2)
            for part in self.c_attn(x).split(c, axis=2)
        )
        found = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(found.transpose(1, 2).reshape(b, t, c))

    def think(self, x):
        return self.mlp_proj(F.gelu(self.c_fc(x), approximate="tanh"))

    def forward(self, x):
        x = x + self.look_back(self.ln_1(x))
        return x + self.think(self.ln_2(x))


class TinyGPT(nn.Module):
    def __init__(self, c):
        self.wte, self.wpe = (
            nn.Embedding(c.vocab_size, c.n_embd),
            nn.Embedding(c.block_size, c.n_embd),
        )
        self.blocks = nn.ModuleList(Block(c.n_embd, c.n_head) for _ in range(c.n_layer))
        self.ln_f = nn.LayerNorm(c.n_embd, bias=False)

    def forward(self, ids, targets):
        x = self.wte(ids) + self.wpe(np.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return F.linear_cross_entropy(self.ln_f(x), self.wte.weight, targets)


# %% [markdown]
# ## The same from the package
#
# `gpt.GPT` is this model with GPT-2's names, a cache for writing, and dropout (numbers set to 0 by
# chance while it trains, which is off here). Give ours its weights, and the losses have to be the
# same bits.

# %%
from gpt import GPT

config = GPTConfig(256, CONTEXT, n_layer=3, n_head=4, n_embd=128)
model, ours = GPT(config, np.random.default_rng(1)), TinyGPT(config)
names = {"wte": "wte", "wpe": "wpe", "ln_f": "ln_f", "blocks": "h", "ln_1": "ln_1", "ln_2": "ln_2",
         "c_attn": "attn.c_attn", "c_proj": "attn.c_proj", "c_fc": "mlp.c_fc",
         "mlp_proj": "mlp.c_proj"}  # fmt: skip
theirs = model.state_dict()
ours.load_state_dict({
    name: theirs["transformer." + ".".join(names.get(part, part) for part in name.split("."))]
    for name in ours.state_dict()
})  # fmt: skip
x, y = batch(data.train, np.random.default_rng(0), 4, CONTEXT)
first_loss = model(x, y)[1].item()
assert ours(x, y).item() == first_loss
say(
    f"{sum(p.size for p in model.parameters()) / 1e6:.2f}M parameters. The first loss is "
    f"{first_loss:.2f}, and the logarithm of {config.vocab_size} is {np.log(256):.2f}."
)

# %% [markdown]
# That is no accident. The loss is the negative logarithm of the probability given to the right
# token (the natural logarithm, in *nats*). A model that knows nothing gives all of them the
# same, and whoever starts far above that has made a mistake.
#
# ## Training
#
# The loop is always the same: a batch (some pieces of the text), forward, backward, clip (shorten
# all gradients together, if as one vector they are longer than 1), update. The learning rate, which
# says how far an update goes, warms up while gradients are wild, and cools down towards the end.

# %%
import time

STEPS, BATCH, PEAK = 1000, 12, 3e-3
LOOK_AT = (1, 30, 100, 300, STEPS)


def write(tokens=48):
    """What the model makes of `def `, with the same dice every time."""
    prompt = np.array([data.tokenizer.encode("def ")])
    ids = model.generate(prompt, tokens, 0.6, rng=np.random.default_rng(7))
    return data.tokenizer.decode(ids[0])


def held_out(batches=8):
    rng = np.random.default_rng(5)
    with tg.no_grad():
        losses = [model(*batch(data.val, rng, BATCH, CONTEXT))[1].item() for _ in range(batches)]
    return float(np.mean(losses))


optimizer = tg.optim.AdamW(model.parameters(), PEAK, (0.9, 0.99), weight_decay=0.1)
schedule = tg.optim.WarmupCosine(PEAK, 50, STEPS, PEAK / 15)
rng = np.random.default_rng(2)
losses, tested, samples = [], {}, {}
start = time.perf_counter()
for step in range(1, STEPS + 1):
    optimizer.lr = schedule(step - 1)
    optimizer.zero_grad()
    _, loss = model(*batch(data.train, rng, BATCH, CONTEXT))
    loss.backward()
    tg.optim.clip_grad_norm_(optimizer.params, 1.0)
    optimizer.step()
    losses.append(loss.item())
    if step in LOOK_AT or step in (3, 10, 17) or step % 100 == 0:
        tested[step] = held_out()
    if step in LOOK_AT:
        samples[step] = write()
        print(f"step {step:5}  held-out loss {tested[step]:.3f}  {samples[step][:60]!r}")
seconds = time.perf_counter() - start
say(
    f"{STEPS} steps took {seconds:.0f} s, "
    f"{BATCH * CONTEXT * STEPS / seconds:,.0f} tokens per second."
)
assert tested[STEPS] < 2.3 and losses[0] > 5

# %% [markdown]
# First it learns which bytes occur at all, then how often, then which follow which. Words come, and
# indentation; then names after `def`, brackets that close, and `self`. Nobody told it any of that.
#
# ## When a run goes wrong
#
# A run that hits an infinity, or a number that is not one (NaN), goes on, and soon everything it
# touches is NaN, too. The place to look is the first one: `tg.detect_nan()` stops there and names
# the operation.


# %%
def risky(scores):
    """The logarithm of the probabilities, as a formula has it."""
    e = scores.exp()
    return (e / e.sum(axis=-1, keepdims=True)).log()


scores = tg.Tensor(np.array([[0.0, 50.0, 800.0]]), requires_grad=True)
with np.errstate(all="ignore"):
    print(risky(scores).data)
    try:
        with tg.detect_nan():
            risky(scores)
    except ArithmeticError as error:
        print("detect_nan:", error)
print(scores.log_softmax(axis=-1).data)  # the same function, made to last

# %% [markdown]
# ## From noise to Python

# %%
figure, axes = canvas(figsize=(9.4, 5.6))
steps = np.arange(1, STEPS + 1)
axes.plot(steps, losses, color=BLUE, lw=0.7, alpha=0.5)
axes.plot(list(tested), list(tested.values()), "o-", color=ORANGE, ms=4)
axes.axhline(np.log(256), color=INK, lw=1, ls=":")
axes.annotate("every byte equally likely", (STEPS, np.log(256)), color=INK, ha="right", fontsize=9,
              xytext=(0, 5), textcoords="offset points")  # fmt: skip
axes.annotate("training", (6, 5.05), color=BLUE, fontsize=9)
axes.annotate("held out", (200, tested[200]), color=ORANGE, fontsize=9, ha="center",
              xytext=(0, 12), textcoords="offset points")  # fmt: skip


def on_one_line(text):
    shown = "".join(c if c.isprintable() and ord(c) < 0x250 else " " for c in text)
    return " ".join(shown.split())[:44]


for row, (step, text) in enumerate(samples.items()):
    height = 5.0 - 0.42 * row
    axes.annotate(f"{step:>5}  {on_one_line(text)}".replace("$", r"\$"), (40, height), color=GREEN,
                  family="monospace", fontsize=9)  # fmt: skip
axes.set(
    xscale="log", xlabel="step (count, logarithmic)", ylabel="loss (nats per byte)",
    xlim=(0.9, STEPS * 1.15), ylim=(1.2, 6),
)  # fmt: skip
show(
    figure,
    "The loss falls from that of blind guessing, and what the model writes after `def ` (green, by "
    "step) turns from noise into lines that look like Python.",
)
folder.cleanup()

# %% [markdown]
# ## Where to read on
#
# - `gpt/model.py`, class `GPT`: this model, with dropout, recompute and `generate`.
# - `gpt/train.py`: the loop with checkpoints that survive a power cut. `python -m gpt.train` trains
#   a larger model for two minutes, and `--data` takes your own text.
# - `tinygrad_edu/tape.py`, function `check_finite`: how the first NaN is caught.
#
# ## Exercise
#
# `lessons/exercises/lesson_07.py` is a training run that goes NaN. It has more than one reason to.
# Repair it, so that it computes the same function wherever the original was finite.
#
# ```sh
# python -m lessons.check 7
# ```

# %%
from lessons.check import check

check(7)
