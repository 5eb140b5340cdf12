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
# # The roofline of your machine
#
# **How fast can a kernel be here, at best?**
#
# Before making a piece of code faster, it helps to know whether it can get faster at all. A
# processor does two things: it computes, and it moves numbers between memory and the place where it
# computes. Both have a speed limit, both limits can be measured in a second, and together they say
# how long any kernel must take at least.

# %%
import numpy as np

from gpt import machine
from lessons.figure import BLUE, INK, ORANGE, canvas, say, show
from tinygrad_edu.kernels import elementwise, launch
from tinygrad_edu.memory.calibrate import median_seconds

threads = launch.threads()
peak = machine.fma_peak(threads, repeats=5, rounds=3_000_000)
first, second = np.ones(1 << 24, np.float32), np.ones(1 << 24, np.float32)
seconds = median_seconds(lambda: elementwise.add(first, second, out=first))
bandwidth = 3 * first.nbytes / seconds  # two arrays are read, one is written
say(
    f"On {threads} threads this machine computes at most **{peak / 1e9:,.0f} GFLOP/s** in float32, "
    f"and moves at most **{bandwidth / 1e9:,.1f} GB/s** to and from memory."
)

# %% [markdown]
# The first number comes from a loop that does nothing but multiply and add numbers that never leave
# their registers, the second from adding one array to another, both larger than most caches.
#
# ## How much work comes with a byte?
#
# The two numbers are far apart. In the time in which one float32 arrives from memory, the cores can
# do a good many operations:

# %%
ridge = peak / bandwidth
say(
    f"{ridge:.1f} operations per byte, or {4 * ridge:.0f} per float32. A kernel that does fewer is "
    "waiting for memory; only one that does more is limited by arithmetic."
)

# %% [markdown]
# What a kernel does per byte is its **arithmetic intensity**, and counting is all it takes. (The
# one just computed, at which memory and arithmetic take equally long, is called the ridge.) Adding
# two arrays reads eight bytes and writes four for one addition. A product of matrices,
# $(m, k) \times (k, n)$, does $2 m k n$ operations on $4 (mk + kn + mn)$ bytes: the larger the
# matrices, the more often each number is used once it has arrived.


# %%
def at_best(flops, nbytes):
    """Seconds: computing and moving go on at the same time, so the longer one decides."""
    return max(flops / peak, nbytes / bandwidth)


def product(m, k, n):
    return 2 * m * k * n, 4 * (m * k + k * n + m * n)


for m in (1, 8, 64, 512):
    flops, nbytes = product(m, 768, 3072)
    limit = "memory" if flops / peak < nbytes / bandwidth else "arithmetic"
    print(f"{m:4} rows: {flops / nbytes:6.1f} FLOP per byte, limited by {limit}")

# %% [markdown]
# That is why a language model answers one reader so slowly, and several readers at hardly more
# cost: one row of numbers has to wait for the whole matrix, as eight rows do. (On a GPU, where the
# two limits are farther apart, hundreds of rows do.)
#
# The package counts too, for its timelines and plans. It must come to the same numbers:

# %%
from tinygrad_edu.memory.flops import op_bytes, op_flops

shapes = ((512, 768), (3072, 768), None)  # x, weight, no bias
assert op_flops("Linear", "forward", shapes) == product(512, 768, 3072)[0]
assert op_bytes("Linear", "forward", shapes) == product(512, 768, 3072)[1]

# %% [markdown]
# ## Predict, then measure
#
# Here are kernels of this repository: some that touch each number once, and products with more and
# more rows. (AdamW updates weights by their gradients, layer norm is from lesson 3, and GELU is a
# bent function, as `tanh` is.) For each one the operations per element are counted by hand, as in
# the comments.

# %%
from tinygrad_edu.kernels import normalize, update
from tinygrad_edu.kernels.matmul import numba_backend

rng = np.random.default_rng(0)
size, width = 1 << 23, 1024
x, g, m, v = (rng.random((size // width, width), np.float32) for _ in range(4))
gain = np.ones(width, np.float32)
settings = dict(lr=1e-3, beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.1, step=10)
kernels = {  # name: FLOPs, bytes, call
    "add": (size, 12 * size, lambda: elementwise.add(x, g)),
    "AdamW": (14 * size, 28 * size, lambda: update.adamw(x, g, m, v, **settings)),
    # mean: 1, variance: 3, normalise: 2, gain and bias: 2
    "layer norm": (8 * size, 8 * size, lambda: normalize.layer_norm(x, gain, gain, 1e-5, True)),
    # a cube and its sum: 5, tanh: about 15, the rest: 3
    "GELU": (23 * size, 8 * size, lambda: elementwise.gelu(x, True)),
}
points = []
print(f"{'':16}{'at best':>10}{'measured':>11}{'of the limit':>14}")
for name, (flops, nbytes, run) in kernels.items():
    seconds = median_seconds(run)
    points.append((name, flops / nbytes, flops / seconds, at_best(flops, nbytes) / seconds))
    print(f"{name:16}{at_best(flops, nbytes) * 1e3:8.2f} ms{seconds * 1e3:8.2f} ms"
          f"{points[-1][-1]:14.0%}")  # fmt: skip

# %%
wide = 4096  # a weight of 64 MiB, more than most caches hold
w = rng.random((wide, wide), np.float32)
products = []
for rows in (3, 12, 48, 192):
    a, out = rng.random((rows, wide), np.float32), np.empty((rows, wide), np.float32)
    flops, nbytes = product(rows, wide, wide)
    seconds = median_seconds(lambda a=a, out=out: numba_backend(a, w, out), 3)
    products.append((rows, flops / nbytes, flops / seconds, at_best(flops, nbytes) / seconds))
    print(f"{rows:4} rows{at_best(flops, nbytes) * 1e3:15.2f} ms{seconds * 1e3:8.2f} ms"
          f"{products[-1][-1]:14.0%}")  # fmt: skip

# %% [markdown]
# A kernel may come out above the memory limit, where some of an array is still in a cache; those of
# some servers hold all of these arrays. One that writes its result to a new place stays below it:
# before a processor overwrites a part of memory, it usually fetches what stood there, and nobody
# counted that. A kernel far below both limits is worth a look, because neither is what holds it
# back.
#
# ## The roof

# %%
figure, axes = canvas(figsize=(8.6, 5))
intensity = np.logspace(-1.5, 2.5, 200)
axes.loglog(intensity, np.minimum(peak, intensity * bandwidth) / 1e9, color=INK, lw=2)
axes.axvline(ridge, color=INK, lw=1, ls=":")
axes.annotate(f"{peak / 1e9:,.0f} GFLOP/s of arithmetic", (290, peak / 1e9), color=INK, ha="right",
              xytext=(0, 6), textcoords="offset points")  # fmt: skip
axes.annotate(f"{bandwidth / 1e9:,.1f} GB/s of memory", (0.3, 0.3 * bandwidth / 1e9), color=INK,
              xytext=(-8, 6), textcoords="offset points", ha="right")  # fmt: skip
axes.annotate(f"ridge: {ridge:.1f}", (ridge, 0.55), color=INK, xytext=(5, 0),
              textcoords="offset points")  # fmt: skip
for name, x_, rate, _ in points:
    beside = {"xytext": (9, -12)}
    if name in ("AdamW", "layer norm"):
        beside = {"xytext": (-9, 6) if name == "AdamW" else (16, -30), "ha": "right"}
    axes.plot(x_, rate / 1e9, "o", color=BLUE)
    axes.annotate(name, (x_, rate / 1e9), color=BLUE, textcoords="offset points", **beside)
axes.plot([p[1] for p in products], [p[2] / 1e9 for p in products], "s-", color=ORANGE, lw=1)
for rows, x_, rate, _ in products:
    axes.annotate(f"{rows} rows", (x_, rate / 1e9), color=ORANGE, xytext=(9, -11),
                  textcoords="offset points")  # fmt: skip
axes.set(
    xlabel="arithmetic intensity (FLOP per byte)", ylabel="speed (GFLOP/s)",
    xlim=(0.03, 320), ylim=(0.4, 3 * peak / 1e9),
)  # fmt: skip
show(
    figure,
    "Kernels stay under the roof, give or take a cache: left of the ridge memory decides how fast "
    "one is, and products of more and more rows (orange) climb until arithmetic stops them.",
)

# %% [markdown]
# ## Where to read on
#
# - `gpt/machine.py`, function `fma_peak`: how to keep a core busy with nothing but arithmetic.
# - `gpt/bench_kernels.py`, function `cases`: every kernel of a training step with what it must move
#   or compute. `python -m gpt.bench kernels` prints them against the limits.
# - `tinygrad_edu/memory/clock.py`: the same division by two rates plays a whole training step.
#
# ## Exercise
#
# Open `lessons/exercises/lesson_05.py` and predict three kernels. When the predictions are right,
# the check measures them beside yours.
#
# ```sh
# python -m lessons.check 5
# ```

# %%
from lessons.check import check

check(5)
