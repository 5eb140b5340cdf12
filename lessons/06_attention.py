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
# # Attention
#
# **How does a token look things up among those before it?**
#
# Python has a fine way to look things up. This program reads tokens, which are the pieces of a text
# (here its letters), one by one and says, at each of them, what came after it last time:


# %%
def look_up(tokens, unknown="."):
    """At each token, the one that followed it last time, or `unknown`."""
    after, answers = {}, []
    for i, token in enumerate(tokens):
        if i > 0:
            after[tokens[i - 1]] = token  # the key is a token, the value the one behind it
        answers.append(after.get(token, unknown))
    return answers


twister = "shesellsseashellsbytheseashore"
print(twister)
print("".join(look_up(twister)))

# %% [markdown]
# As a guess of what comes next, that is not bad where the same things come again and again, as in
# programs:

# %%
import inspect
import re
import textwrap

from lessons.figure import BLUE, INK, ORANGE, canvas, say, show

tokens = re.findall(r"\w+|[^\w\s]", inspect.getsource(textwrap))
hits = sum(guess == token for guess, token in zip(look_up(tokens), tokens[1:]))
say(
    f"In the source of Python's `textwrap`, {len(tokens):,} tokens long, it guesses "
    f"{hits / len(tokens):.0%} of them, having learned nothing beforehand."
)

# %% [markdown]
# But nobody trained it, and nobody could. A key is equal or it is not; nudge it a little, and the
# answer stays the same until it jumps. There is no slope to descend.
#
# This lesson rebuilds the dictionary from parts that have slopes. At its end a small network will
# have *learned* the program above from examples, and we shall see where it looks.
#
# ## A lookup with slopes
#
# Let keys be vectors, and let a query be compared with *all* of them. The dot product says how
# alike two vectors are, and `softmax` turns any numbers into shares that add up to one. The answer
# is the average of all values, each with its share.

# %%
import numpy as np


def softmax(x):
    """Along the last axis. Subtracting the maximum changes nothing, and exp cannot overflow."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def soft_lookup(query, keys, values, sharpness):
    shares = softmax(sharpness * (keys @ query))
    return shares, shares @ values


rng = np.random.default_rng(0)
keys = rng.normal(size=(5, 8))
keys /= np.linalg.norm(keys, axis=1, keepdims=True)
values = np.array([2.0, 7.0, 1.0, 8.0, 3.0])
query = keys[3] + 0.05 * rng.normal(size=8)  # nearly the fourth key: no dictionary would find it

for sharpness in (0, 1, 4, 16):
    shares, answer = soft_lookup(query, keys, values, sharpness)
    print(f"sharpness {sharpness:2}   shares {shares.round(2)}   answer {answer:.2f}")

# %% [markdown]
# At sharpness 0 everybody gets the same share. As it grows, the nearest key takes everything, and
# the lookup becomes a dictionary's, which finds keys even when they are not quite equal. In between
# it has slopes in every query, key and value. So all three can be *learned*: made from the tokens
# by matrices, which gradient descent turns until the right token is found.
#
# ## All tokens ask at once
#
# Every token asks its own question, so the queries are a matrix, one row per token, and one product
# compares all of them with all keys. How sharp should it be? Vectors of `D` random numbers, of size
# one or so and either sign, have dot products that grow with the root of `D`:

# %%
rows = []
for d in (4, 64, 1024):
    many = rng.normal(size=(1000, d)) @ rng.normal(size=(d, 32))
    raw, scaled = softmax(many).max(axis=1).mean(), softmax(many / np.sqrt(d)).max(axis=1).mean()
    rows.append(f"| {d} | {many.std():.1f} | {raw:.0%} | {scaled:.0%} |")
say(
    "| D | typical dot product | largest of 32 shares | the same, scores divided by √D |\n"
    "|--:|--:|--:|--:|\n" + "\n".join(rows)
)

# %% [markdown]
# Left alone, a lookup among long vectors is all but a dictionary before it has learned anything,
# and has no slopes again. Divided by $\sqrt{D}$, these *scores* start out of the same size at every
# width, and training finds the sharpness it wants by making queries longer.
#
# One more rule: a token looks among those *before* it (and at itself). A network that is to guess
# the next token must not see it. The scores of later keys become $-\infty$, whose share is zero.


# %%
def attention(q, k, v):
    """q (..., T, D), k (..., T, D), v (..., T, E) -> (..., T, E), and the shares (..., T, T)"""
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    past = np.tri(scores.shape[-1], dtype=bool)  # row i: True up to column i
    shares = softmax(np.where(past, scores, -np.inf))
    return shares @ v, shares


q, k, v = rng.normal(size=(3, 5, 8))
out, shares = attention(q, k, v)
print(np.round(shares, 2))

# %% [markdown]
# The first token can only look at itself; the last one has a choice of five.
#
# ## Many heads
#
# One lookup finds one thing. A token in a program may want to know the last open bracket *and* the
# type of a variable. So its `C` numbers are split among `H` heads of `C / H` numbers each, which
# look things up independently, and what they find is laid side by side again. It costs two
# reshapes, as `attention` above works for any leading axes.


# %%
def split_heads(x, heads):
    """(T, C) -> (H, T, C / H)"""
    t, c = x.shape
    return x.reshape(t, heads, c // heads).swapaxes(0, 1)


def merge_heads(x):
    """(H, T, D) -> (T, H D)"""
    h, t, d = x.shape
    return x.swapaxes(0, 1).reshape(t, h * d)


T, C, HEADS = 50, 24, 3
q, k, v = rng.normal(size=(3, T, C))
out, shares = attention(*(split_heads(x, HEADS) for x in (q, k, v)))
merge_heads(out).shape, shares.shape

# %% [markdown]
# That is all of it. The package's own must give the same, and the same gradients. For those we
# write the lines above once more, with Tensors, and let the tape work.

# %%
import tinygrad_edu as tg


def written_out_attention(q, k, v):
    t, d = q.shape[-2:]
    scores = q @ k.transpose(-1, -2) / d**0.5
    return tg.where(np.tri(t, dtype=bool), scores, -np.inf).softmax(-1) @ v


def packaged_attention(q, k, v):
    return tg.functional.scaled_dot_product_attention(q, k, v, is_causal=True)


given = [split_heads(x, HEADS).astype(np.float32) for x in (q, k, v)]
cotangent = rng.normal(size=out.shape).astype(np.float32)
ours, theirs = ([tg.Tensor(x, requires_grad=True) for x in given] for _ in range(2))
written_out, packaged = written_out_attention(*ours), packaged_attention(*theirs)
written_out.backward(cotangent)
packaged.backward(cotangent)

assert written_out.dtype == packaged.dtype
np.testing.assert_allclose(written_out.data, out, atol=1e-5)
np.testing.assert_allclose(packaged.data, out, atol=1e-5)
for a, b in zip(theirs, ours):
    np.testing.assert_allclose(a.grad, b.grad, atol=1e-5)
say(f"The outputs differ by {abs(packaged.data - out).max():.0e} at most: float32's rounding.")

# %% [markdown]
# ## The matrix that nobody stores
#
# They give the same and are not made the same way. The scores are a `T` by `T` matrix *per head and
# sequence*, and backward needs the shares again. A `Rehearsal`, of which lesson 8 has more to tell,
# counts what both need, here for a single sequence in a single layer of GPT-2's size:


# %%
def peak_megabytes(function, context, heads=12, width=64):
    with tg.memory.Rehearsal() as chip:
        q, k, v = (
            tg.nn.Parameter(np.empty((1, heads, context, width), np.float32)) for _ in range(3)
        )
        function(q, k, v).sum().backward()
    return chip.peak_bytes / 1e6


contexts = (128, 256, 512, 1024)
table = [
    (t, peak_megabytes(written_out_attention, t), peak_megabytes(packaged_attention, t))
    for t in contexts
]
say(
    "| tokens of context | written out (MB) | the package's (MB) |\n|--:|--:|--:|\n"
    + "\n".join(f"| {t} | {a:,.1f} | {b:,.1f} |" for t, a, b in table)
)
say(
    f"Twice the context takes {table[-1][1] / table[-2][1]:.1f} times the memory when it is "
    f"written out, and {table[-1][2] / table[-2][2]:.1f} times the memory in the package."
)

# %% [markdown]
# The trick (Dao and others, FlashAttention, arXiv 2205.14135): read the keys in *tiles* and never
# have more than one tile of scores. What stands in the way is the softmax, which needs the largest
# score of a row, and the sum, before it can give the first share. But both can be had on the way.
# Keep the largest score *so far*, and what was summed in units of it; when a larger one turns up,
# everything summed so far fades by $e^{\text{old} - \text{new}}$.


# %%
def attention_in_tiles(q, k, v, tile=16):
    """One head: q, k (T, D), v (T, E) -> (T, E), and the log of each row's sum (T,)"""
    t, d = q.shape
    out, total, top = np.zeros((t, v.shape[1])), np.zeros((t, 1)), np.full((t, 1), -np.inf)
    for start in range(0, t, tile):
        scores = q @ k[start : start + tile].T / np.sqrt(d)  # (T, tile)
        columns = start + np.arange(scores.shape[1])
        scores = np.where(columns <= np.arange(t)[:, None], scores, -np.inf)
        new_top = np.maximum(top, scores.max(axis=1, keepdims=True))
        fade, p = np.exp(top - new_top), np.exp(scores - new_top)
        out = out * fade + p @ v[start : start + tile]
        total = total * fade + p.sum(axis=1, keepdims=True)
        top = new_top
    return out / total, (np.log(total) + top)[:, 0]


q, k, v = given
for h in range(HEADS):
    tiled, lse = attention_in_tiles(q[h], k[h], v[h])
    np.testing.assert_allclose(tiled, packaged.data[h], atol=1e-5)

# %% [markdown]
# Besides the output, one number per query is worth keeping: `lse`, the logarithm of the sum of
# `exp(score)` over the keys it sees. With it, any share can be made again from its score alone,
# without its row. That is all that backward needs:

# %%
_, shares = attention(q[h], k[h], v[h])
past = np.tri(T, dtype=bool)
scores = q[h] @ k[h].T / np.sqrt(q.shape[-1])
again = np.exp(scores - lse[:, None])
np.testing.assert_allclose(again[past], shares[past], atol=1e-5)

# %% [markdown]
# The package's kernel cuts the matrix the other way: a block of queries against all keys they see.
# Then a row of scores is whole and needs no fading, and a block is all that exists at a time. Keys
# after the last query of a block are not masked but skipped, which in a long text is nearly half of
# the work.
#
# ## Where does a trained head look?
#
# Now the network that shall learn the dictionary program. It sees random letters, and is told at
# each what `look_up` would say (and nothing where that does not know).
#
# It is made of layers, which are functions with weights. `Embedding` is a table with a row of
# numbers for each letter, `Linear` a product with a matrix, and `LayerNorm` brings each row to mean
# zero and spread one. `cross_entropy` makes the scores shares, by a softmax, and is the negative
# logarithm of the share that the right answer got: the loss. `AdamW` turns each weight a little
# against its gradient.

# %%
F, nn = tg.functional, tg.nn
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SILENT = -100  # the loss leaves these places out
CONTEXT, WIDTH = 32, 64


def examples(count, rng):
    """Random letters (count, CONTEXT), and the dictionary's answers."""
    ids = np.empty((count, CONTEXT), np.int64)
    for row in ids:
        some = rng.permutation(26)[: rng.integers(4, 17)]  # few different ones, so they come again
        row[:] = rng.choice(some, CONTEXT)
    return ids, np.array([look_up(row, SILENT) for row in ids])


class Attention(nn.Module):
    """One head, as wide as the network."""

    def __init__(self, rng):
        self.norm = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False, rng=rng)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False, rng=rng)

    def queries_keys_values(self, x):
        return self.qkv(self.norm(x)).split(WIDTH, axis=-1)

    def forward(self, x):
        q, k, v = self.queries_keys_values(x)
        return x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True))


class Reader(nn.Module):
    """Nothing but attention: B texts of T letters (B, T) -> scores of the answers (B, T, 26)"""

    def __init__(self, layers, rng):
        self.letter = nn.Embedding(26, WIDTH, rng=rng, init=nn.normal(0.1))
        self.place = nn.Embedding(CONTEXT, WIDTH, rng=rng, init=nn.normal(0.1))
        self.layers = nn.ModuleList(Attention(rng) for _ in range(layers))
        self.norm = nn.LayerNorm(WIDTH)
        self.answer = nn.Linear(WIDTH, 26, bias=False, rng=rng)

    def embed(self, ids):
        return self.letter(ids) + self.place(np.arange(ids.shape[1]))

    def forward(self, ids):
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.answer(self.norm(x))


STEPS = 300


def trained(layers):
    rng = np.random.default_rng(1)
    model = Reader(layers, rng)
    optimizer = tg.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    for _ in range(STEPS):
        ids, answers = examples(32, rng)
        loss = F.cross_entropy(model(ids).reshape(-1, 26), answers.reshape(-1), ignore_index=SILENT)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def agreement(model):
    """How often the model's likeliest answer is the dictionary's, on letters it has not seen."""
    ids, answers = examples(500, np.random.default_rng(2))
    with tg.no_grad():
        best = model(ids).data.argmax(axis=-1)
    return (best == answers)[answers != SILENT].mean()


one, two = trained(layers=1), trained(layers=2)
say(
    f"After {STEPS} steps, one layer of attention agrees with the dictionary in "
    f"{agreement(one):.0%} of the places, and two layers in {agreement(two):.0%}."
)
assert agreement(two) > 0.9 > agreement(one)

# %% [markdown]
# Two layers learn it, one does not, and there is a reason. The dictionary finds a letter by the one
# that stood *before* it. But a key is made from what its own position knows, which at first is only
# its own letter and place. So somebody must carry each letter to its right-hand neighbour first;
# then a letter can be asked for by its predecessor. The first layer is free to do the one, and the
# second the other. Does it come out so? We make both layers' shares, with this lesson's
# `attention`, for a text that no training example resembles:

# %%
ids = np.array([[LETTERS.index(letter) for letter in twister]])
looks = []
with tg.no_grad():
    x = two.embed(ids)
    for layer in two.layers:
        looks.append(attention(*(part.data for part in layer.queries_keys_values(x)))[1][0])
        x = layer(x)
    best = "".join(LETTERS[i] for i in two(ids).data[0].argmax(axis=-1))

answers = "".join(look_up(twister))
print(f"text        {twister}")
print(f"dictionary  {answers}")
print(f"network     {''.join('.' if a == '.' else b for a, b in zip(answers, best))}")

# %%
previous = {i: i - 1 for i in range(1, len(twister))}
found = {}  # where the dictionary's answer stands: behind the last place with the same letter
for i, letter in enumerate(twister):
    before = twister.rfind(letter, 0, i)
    if before >= 0:
        found[i] = before + 1

from matplotlib.colors import LinearSegmentedColormap, to_rgb

figure, panels = canvas(1, 2, figsize=(10.4, 5.6), sharey=True)
parts = zip(panels, looks, (BLUE, ORANGE), (previous, found), ("the letter before", "the answer"))
for number, (axes, shares, color, goal, what) in enumerate(parts, 1):
    fading = LinearSegmentedColormap.from_list("", [(*to_rgb(color), 0), (*to_rgb(color), 1)])
    axes.imshow(shares, cmap=fading, vmin=0, vmax=1)
    axes.plot(*zip(*((j, i) for i, j in goal.items())), "s", ms=12, mfc="none", mec=INK, mew=1.2)
    part = np.mean([shares[i, j] for i, j in goal.items()])
    axes.set_title(f"layer {number}: {part:.0%} of its attention on {what} (outlined)", color=color)
    axes.set_xlabel("key: where it looks (position, as a letter)")
    axes.set_xticks(range(len(twister)), twister, fontsize=8.5)
    axes.set_yticks(range(len(twister)), twister, fontsize=8.5)
    axes.tick_params(length=0)
    axes.grid(False)
line = {"arrowstyle": "-", "color": INK, "shrinkB": 8, "relpos": (0.1, 1)}
row = twister.index("h", 2)  # the second h
panels[1].annotate(
    "this h finds the e that\nfollowed the first h", (found[row], row), (0.8, 27.2), arrowprops=line
)
panels[0].set_ylabel("query: who asks (position, as a letter)")
show(
    figure,
    "The first layer looks one letter back, so that every position learns what stood before it; "
    "the second one then looks for the position that stood behind the same letter last time. The "
    "outlines mark where a perfect dictionary would look.",
)

# %% [markdown]
# Nobody told it to divide the work like that. Such a pair is called an *induction head*, and large
# language models grow them, too (Olsson and others, arXiv 2209.11895).
#
# ## Where to read on
#
# - `tinygrad_edu/kernels/attention.py`, function `attention_task`: forward by blocks of queries;
#   `attention_backward_task` makes the shares again from `lse`.
# - `tinygrad_edu/kernels/naive.py`, function `attention`: the same in plain loops, which the tests
#   believe.
# - `tinygrad_edu/functional.py`, function `scaled_dot_product_attention`: what it takes.
# - `gpt/model.py`, class `Attention`: many heads, on the way to lesson 7.
#
# ## Exercise
#
# Write the middle of such a kernel: a block of scores comes in, a block of shares goes out, in the
# same memory, with the mask and the softmax fused into one pass and no mask ever made. The block's
# first query stands at position `first`, and not all of its queries need see a key. Open
# `lessons/exercises/lesson_06.py`. Then:
#
# ```sh
# python -m lessons.check 6
# ```

# %%
from lessons.check import check

check(6)
