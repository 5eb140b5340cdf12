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
# # A matmul faster than BLAS, in Python
#
# **Where do three loops lose a hundredfold, and how is it won back?**
#
# Nearly all the arithmetic of a neural network is in products of matrices. A product is three
# loops, which anybody can write. The libraries that do it for a living, called BLAS, are a hundred
# times as fast and more, and specialists write them in assembly. This lesson climbs
# from one to the other in Python, and at every step asks what was lost: not arithmetic, which never
# changes, but the ways of the numbers to it.
#
# Here is a product as a GPT makes them: `A` holds 256 tokens (pieces of a text), a row of 4096
# numbers each, `B` is a matrix of weights.

# %%
import inspect
import re
import statistics
import time
from collections import OrderedDict

import numba
import numpy as np

from lessons.figure import BLUE, GREEN, INK, ORANGE, PURPLE, canvas, say, show

rng = np.random.default_rng(0)
M, N, K = 256, 4096, 4096
A, B = rng.standard_normal((M, K), np.float32), rng.standard_normal((K, N), np.float32)
say(
    f"`A` is {M} x {K}, `B` {K} x {N} and takes {B.nbytes / 2**20:.0f} MiB. Their product takes "
    f"{M * N * K / 1e9:.1f} billion multiply-adds; each counts as two operations (FLOP), a "
    f"multiplication and an addition, so that is {2 * M * N * K / 1e9:.1f} GFLOP."
)

# %% [markdown]
# ## Three loops
#
# Each number of `C` is a row of `A` times a column of `B`.


# %%
def naive(a, b, c):
    for i in range(a.shape[0]):
        for j in range(b.shape[1]):
            total = c.dtype.type(0)
            for k in range(a.shape[1]):
                total += a[i, k] * b[k, j]
            c[i, j] = total


# %% [markdown]
# Python itself is too slow for this, so we compile it: Numba turns a function of loops over arrays
# into machine code. (`contract` permits to fuse a multiplication and an addition into the one
# instruction that processors have for the pair; `error_model` leaves out checks for divisions by
# zero.)
#
# To compare, let the ways take turns, so that whatever else the machine does disturbs all of them
# alike, and take medians. Rows of `C` do not depend on one another: for slow ways, a few rows will
# do to know the speed.


# %%
def fast(function):
    """The function, compiled by Numba; `.py_func` is still the Python."""
    return numba.njit(error_model="numpy", fastmath={"contract"})(function)


def race(ways, a, b, rounds=3, calls=1, pause=0.0, **rows):
    """Median GFLOP/s of each way to multiply a and b, or the first so many rows of a."""
    c = np.empty((a.shape[0], b.shape[1]), a.dtype)
    few = {name: rows.get(name, len(a)) for name in ways}
    seconds = {name: [] for name in ways}
    for name, way in ways.items():  # once to compile
        way(a[: few[name]], b, c[: few[name]])
    for _ in range(rounds):
        for name, way in ways.items():
            time.sleep(pause)
            for _ in range(calls):
                start = time.perf_counter()
                way(a[: few[name]], b, c[: few[name]])
                seconds[name].append(time.perf_counter() - start)
    work = {name: 2e-9 * few[name] * b.size for name in ways}
    return {name: work[name] / statistics.median(seconds[name]) for name in ways}


def blas(a, b, c):
    np.matmul(a, b, out=c)


small = A[:16, :64], B[:64, :64]
speed = race({"python": naive}, *small)
speed |= race({"naive": fast(naive), "numpy": blas}, A, B, naive=2)
say(
    f"Python runs the loops at {speed['python']:.4f} GFLOP/s. Compiled they make "
    f"{speed['naive']:.2f} GFLOP/s, and `numpy.matmul`, which calls a BLAS, "
    f"{speed['numpy']:.0f} GFLOP/s."
)

# %% [markdown]
# So most of what is lost is *not* lost to Python. Once compiled, these loops are what a C compiler
# would make of them. What is the machine able to do at all? One *kernel*, as compiled loops over
# arrays are called, does nothing but multiply-adds on numbers that are in *registers* already, the
# few places in a core that it computes with (`fma_peak` in `gpt/machine.py`):

# %%
from gpt import machine

cores = numba.config.NUMBA_NUM_THREADS
peak = {n: machine.fma_peak(n) / 1e9 for n in sorted({1, cores})}
MANY = f"{cores} cores" if cores > 1 else "1 core"
shared = peak[cores] < 0.75 * cores * peak[1]  # other work, or two "cores" on the same units
say(
    f"This machine computes at most {peak[1]:.0f} GFLOP/s on one core and {peak[cores]:.0f} on "
    f"{MANY}. The loops reach one part in {peak[1] / speed['naive']:.0f} of what their core could "
    "do."
    + (f" (All cores together make less than {cores} times one: something is shared, with other "
       "programs or among cores, and what follows is disturbed by it, too.)" if shared else "")
)  # fmt: skip

# %% [markdown]
# ## A cache that tells
#
# The multiply-adds must be waiting for something: their numbers. Memory hands out 64 bytes at a
# time, a *cache line* of 16 numbers, and the last lines used are kept in a small fast cache. Let us
# build a toy of it, and arrays that report to it whenever they are read or written. Being plain
# Python, our functions will run on them as they are.

# %%
LINE = 16  # float32 numbers in 64 bytes


class Cache:
    """Keeps the `lines` last used; counts what it has to fetch."""

    def __init__(self, lines):
        self.lines, self.kept, self.fetched, self.touched = lines, OrderedDict(), 0, 0
        self.end = 0  # of the memory given out so far

    def touch(self, place):
        self.touched += 1
        line = place // LINE
        if line not in self.kept:
            self.fetched += 1
            if len(self.kept) == self.lines:
                self.kept.popitem(last=False)
        self.kept[line] = True
        self.kept.move_to_end(line)

    def watch(self, data):
        places = self.end + np.arange(data.size).reshape(data.shape)
        self.end += data.size
        return Watched(data, places, self)


class Watched:
    """An array that tells a cache what is done with it."""

    def __init__(self, data, places, cache):
        self.data, self.places, self.cache = data, places, cache
        self.shape, self.dtype = data.shape, data.dtype

    def __getitem__(self, index):
        found = self.places[index]
        if found.ndim:  # a piece of the array: nobody has looked at its numbers yet
            return Watched(self.data[index], found, self.cache)
        self.cache.touch(int(found))
        return self.data[index]

    def __setitem__(self, index, value):
        for place in np.ravel(self.places[index]):
            self.cache.touch(int(place))
        self.data[index] = value


def watched(multiply, n=48, lines=32, **options):
    """What multiplying two n x n matrices does to a cache of `lines` lines."""
    cache = Cache(lines)
    a, b = (rng.standard_normal((n, n)).astype(np.float32) for _ in range(2))
    c = np.zeros((n, n), np.float32)
    multiply(cache.watch(a), cache.watch(b), cache.watch(c), **options)
    assert np.allclose(c, a @ b, atol=1e-4)
    return cache.touched / n**3, 64 * cache.fetched / (2 * n**3)


counts = {"naive": watched(naive)}
n, lines = 48, 32
say(
    f"With {n} x {n} matrices of {n * n * 4 / 1024:.0f} KiB and a cache of {lines * 64 / 1024:.0f} "
    f"KiB, the three loops fetch **{counts['naive'][1]:.1f} bytes for each operation**. The three "
    f"matrices together have but {3 * n * n * 4 / (2 * n**3):.2f} bytes per operation."
)

# %% [markdown]
# The inner loop walks *down a column* of `B`. Rows lie one after another in memory, so the next
# number of a column is a whole row away, on another line. Of each line one number is used, and when
# its neighbours are wanted, for the next column, the line is gone.
#
# ## Rung one: exchange two loops
#
# Let `k` run outside `j`. Nothing is computed differently, each sum is even added up in the same
# order; but now a row of `B`, times one number of `A`, is added to a row of `C`, and the inner loop
# reads along lines.


# %%
def interchanged(a, b, c):
    c[:, :] = 0
    for i in range(a.shape[0]):
        for k in range(a.shape[1]):
            factor = a[i, k]
            for j in range(b.shape[1]):
                c[i, j] += factor * b[k, j]


counts["interchanged"] = watched(interchanged)
speed |= race({"interchanged": fast(interchanged)}, A, B, interchanged=64)
say(
    f"{counts['naive'][1]:.1f} bytes per operation have become {counts['interchanged'][1]:.1f}, "
    f"and {speed['naive']:.2f} GFLOP/s {speed['interchanged']:.1f}: "
    f"{speed['interchanged'] / speed['naive']:.0f} times as many, for two lines in another order."
)

# %% [markdown]
# There is a second gain in this. Numbers side by side can be computed side by side: the compiler
# uses instructions that multiply and add 8 or 16 numbers at once, *vectors*. A column it had to
# take one by one.
#
# ## Rung two: blocks
#
# What is still fetched? Every row of `A` needs all of `B`, and by the time the next row begins,
# the start of `B` has left the cache. So cut `B` into blocks that fit, and let *all* rows of `A`
# use a block before going on. Straight from the loops above:


# %%
def hasty(a, b, c, block=256):
    c[:, :] = 0
    for k0 in range(0, a.shape[1], block):
        k1 = min(k0 + block, a.shape[1])
        for j0 in range(0, b.shape[1], block):
            j1 = min(j0 + block, b.shape[1])
            for i in range(a.shape[0]):
                for k in range(k0, k1):
                    factor = a[i, k]
                    for j in range(j0, j1):
                        c[i, j] += factor * b[k, j]


counts["hasty"] = watched(hasty, block=16)
hasty_speed = race({"hasty": fast(hasty)}, A, B, hasty=32)["hasty"]
worse = hasty_speed < speed["interchanged"]
say(
    f"The cache is content: {counts['hasty'][1]:.2f} bytes per operation. "
    f"The speed is {hasty_speed:.1f} GFLOP/s, "
    + (f"**{speed['interchanged'] / hasty_speed:.1f} times less than before**." if worse else
       "more than before.")
)  # fmt: skip

# %% [markdown]
# When theory and clock disagree, look at what was compiled. Processors of the x86 family call a
# multiply-add of vectors `vfmadd...ps`, and that of single numbers `vfmadd...ss`. We can count them
# in the machine code, beside the same loops with one change: pieces of rows are taken out first,
# and the inner index starts at 0.


# %%
def blocked(a, b, c, block=256):
    c[:, :] = 0
    for k0 in range(0, a.shape[1], block):
        k1 = min(k0 + block, a.shape[1])
        for j0 in range(0, b.shape[1], block):
            j1 = min(j0 + block, b.shape[1])
            for i in range(a.shape[0]):
                row = c[i, j0:j1]
                for k in range(k0, k1):
                    factor, source = a[i, k], b[k, j0:j1]
                    for j in range(j1 - j0):
                        row[j] += factor * source[j]


def vector_instructions(compiled):
    """Multiply-adds of vectors in the machine code of a function."""
    compiled(*np.ones((3, 4, 4), np.float32))
    return len(re.findall(r"vfmadd\d+ps", "".join(compiled.inspect_asm().values())))


found = {f.__name__: vector_instructions(fast(f)) for f in (interchanged, hasty, blocked)}
counts["blocked"] = watched(blocked, block=16)
speed |= race({"blocked": fast(blocked)}, A, B, blocked=128)
assert counts["blocked"] == counts["hasty"]  # for the cache, nothing has changed
text = ", ".join(f"{count} in `{name}`" for name, count in found.items())
say(f"Instructions on vectors: {text}." if any(found.values()) else
    "This processor is of another family; the clock will tell.")  # fmt: skip
say(
    f"`blocked` makes {speed['blocked']:.1f} GFLOP/s, {speed['blocked'] / hasty_speed:.1f} times "
    f"the hasty one, and {speed['blocked'] / speed['interchanged']:.1f} times `interchanged`."
)

# %% [markdown]
# The reason is a courtesy of Python. Indices may be negative, and then count from the end. For an
# index that starts at 0 the compiler can see that it never does; for one that starts at `j0` it
# cannot, keeps a test in the innermost loop, and gives up vectors. Fast code is code in which the
# compiler can see what you know.
#
# Are blocks worth it, then? That depends on where `B` would lie otherwise. Here is the same race
# for a `B` of 4 MiB, which many a processor keeps in its last cache as a whole:

# %%
square = rng.standard_normal((2, 1024, 1024), np.float32)
ways = {f.__name__: fast(f) for f in (interchanged, blocked)}
near = race(ways, *square, interchanged=256, blocked=256)
gain = {
    "small": near["blocked"] / near["interchanged"],
    "large": speed["blocked"] / speed["interchanged"],
}
say(
    f"Blocks make the product with {B.nbytes / 2**20:.0f} MiB {gain['large']:.1f} times as fast, "
    f"and that with {square[1].nbytes / 2**20:.0f} MiB {gain['small']:.1f} times. "
    + ("A block saves trips to memory, and costs shorter inner loops: no gain where all of `B` was "
       "near already." if gain["small"] < 1.05 < gain["large"] else
       "How much a block saves depends on how far `B` is, and how large the caches are.")
)  # fmt: skip

# %% [markdown]
# Where do they read? These are the first reads of a small `B`, the earliest in blue, the latest in
# orange; boxes are cache lines.

# %%
from matplotlib.colors import LinearSegmentedColormap


class Diary(Cache):
    """Writes down every place that is touched."""

    def __init__(self):
        super().__init__(lines=1)
        self.log = []

    def touch(self, place):
        self.log.append(place)


def first_reads(multiply, count, n=32, **options):
    """When each number of B (n, n) was last read, among the first `count` reads; NaN if never."""
    diary = Diary()
    multiply(np.zeros((n, n)), diary.watch(np.zeros((n, n))), np.zeros((n, n)), **options)
    when = np.full(n * n, np.nan)
    when[diary.log[:count]] = range(count)
    return when.reshape(n, n)


shades = LinearSegmentedColormap.from_list("shades", [BLUE, PURPLE, ORANGE])
figure, panels = canvas(1, 3, figsize=(9, 3.8))
for axes, multiply, count, options in (
    (panels[0], naive, 160, {}),
    (panels[1], interchanged, 160, {}),
    (panels[2], blocked, 640, {"block": 16}),
):
    when = first_reads(multiply, count, **options)
    lines_used = (~np.isnan(when)).reshape(32, 2, LINE).any(axis=2).sum()
    axes.imshow(when, cmap=shades, extent=(0, 32, 32, 0), interpolation="nearest")
    axes.vlines((0, 16, 32), 0, 32, color=INK, lw=1.2)
    axes.hlines(range(33), 0, 32, color=INK, lw=0.35)
    axes.set_title(f"{multiply.__name__}\n{count} reads on {lines_used} lines", fontsize=10.5)
    axes.axis("off")
show(
    figure,
    "The first reads of B: naive loops touch a line for one number; interchanged ones use lines "
    "whole, but march on through all of B; blocks read the same few lines again and again.",
    diagram=True,
)

# %% [markdown]
# ## Rung three: pack
#
# The rows of a block lie far apart in `B`: each on a page of memory of its own, of which a
# processor can only remember so many, and, where the length of a row is a power of two, all of them
# on the same few places of the cache (real caches are not free to put a line anywhere, as our toy
# is). Copy the block to memory of its own first, side by side. The copy is read once and written
# once, and used by every row of `A`.


# %%
def packed(a, b, c, block=256):
    room = np.empty((block, block), b.dtype)
    c[:, :] = 0
    for k0 in range(0, a.shape[1], block):
        k1 = min(k0 + block, a.shape[1])
        for j0 in range(0, b.shape[1], block):
            j1 = min(j0 + block, b.shape[1])
            for k in range(k1 - k0):  # the copy
                for j in range(j1 - j0):
                    room[k, j] = b[k0 + k, j0 + j]
            for i in range(a.shape[0]):
                row = c[i, j0:j1]
                for k in range(k1 - k0):
                    factor, source = a[i, k0 + k], room[k, : j1 - j0]
                    for j in range(j1 - j0):
                        row[j] += factor * source[j]


ways = {"packed": fast(packed), "blocked": fast(blocked)}
speed |= race(ways, A, B, packed=128, blocked=128)
change = speed["packed"] / speed["blocked"]
say(
    f"{speed['packed']:.1f} GFLOP/s packed and {speed['blocked']:.1f} in place, a factor of "
    f"{change:.2f}"
    + (": the copy pays for itself." if change > 1.03 else
       ": no gain by itself here, but the next rungs need their numbers in this order.")
)  # fmt: skip

# %% [markdown]
# These four are the first rungs of `tinygrad_edu.kernels.ladder`. None of them changes the order in
# which a sum is added up, so as plain Python all eight give the same bits, on shapes that no block
# divides. (Compiled ones may round a fused multiply-add once where others round twice.)

# %%
from tinygrad_edu.kernels import ladder

a, b = rng.standard_normal((5, 300)), rng.standard_normal((300, 7))
expected = np.empty((5, 7))
ladder.naive(a, b, expected)
assert np.allclose(expected, a @ b)
for ours in (naive, interchanged, blocked, packed):
    ways = ours, ladder.RUNGS[ours.__name__]
    for way in ways:
        c = np.full_like(expected, np.nan)
        way(a, b, c)
        assert (c == expected).all()
    mine, package = fast(ours), ladder.compiled(ours.__name__)
    c, d = np.empty((2, 8, 1000), np.float32)
    mine(A[:8, :1000], B[:1000, :1000], c), package(A[:8, :1000], B[:1000, :1000], d)
    assert np.allclose(c, d, rtol=1e-4, atol=1e-4)
list(ladder.RUNGS)

# %% [markdown]
# ## Rung four: registers
#
# Look at the inner loop again: `row[j] += factor * source[j]`. For each multiply-add it loads a
# number (or vector) of `B`, loads one of `C` and stores it again.

# %%
say(
    f"Our cache counted it: `interchanged` touches memory {counts['interchanged'][0]:.2f} times "
    f"per multiply-add, `blocked` {counts['blocked'][0]:.2f} times, a cached number or not."
)

# %% [markdown]
# Even the nearest cache cannot keep up with that: a core can begin two multiply-adds in each cycle,
# but not six loads and stores. The way out is the same idea, one level up. The fastest memory of
# all are the registers. Keep a small *tile* of `C` in them for a whole sum. For a tile of `m` rows
# and `v` vectors, each step of `k` loads `v` vectors of `B` and `m` numbers of `A`, and makes
# $m \cdot v$ multiply-adds of them:

# %%
from tinygrad_edu.kernels.gemm.microkernel import CPU

lanes = CPU.vector_bytes // 4
print("tile (rows x vectors)   sums in registers   loads per multiply-add")
for rows, vectors in sorted({(1, 1), (2, 2), (4, 4), (CPU.mr, CPU.nv)}):
    loads = (rows + vectors) / (rows * vectors)
    print(f"{rows:9} x {vectors:<12}{rows * vectors:15}{loads:23.2f}")

# %% [markdown]
# A core can begin about as many loads in a cycle as multiply-adds, so anything below one will do.
# From there on more sums are better: a multiply-add takes some cycles, and meanwhile there must be
# others to begin.
#
# In the ladder's rung `vectorised` a tile is four rows by 64 numbers. Its heart:

# %%
source = inspect.getsource(ladder.tile).split('"""')[2].rstrip()
print(source.split("    for i in range")[0].strip("\n"))

# %%
ways = {"packed": fast(packed), "vectorised": ladder.compiled("vectorised")}
speed |= race(ways, A, B, packed=128, vectorised=128)
say(
    f"`vectorised` makes {speed['vectorised']:.1f} GFLOP/s, {speed['packed']:.1f} were packed. "
    f"That is {speed['vectorised'] / peak[1]:.0%} of what one core can do."
)

# %% [markdown]
# The sums *could* stay in registers. But who decides is the compiler, and compilers do not find
# this schedule in loops: they keep most of the sums in the nearest cache, where they load and
# store them as before. So `tinygrad_edu` takes the decision away from it, and prints the inner loop
# itself, in the compiler's own language. That, too, is Python: a function decorated with Numba's
# `intrinsic` returns not a value but a piece of the program.
#
# ## Rungs five and six: every core, and the last factor
#
# Tiles of `C` have nothing to do with one another, so cores can share them out. If each tile is
# the work of one core from the first number to the last, the bits of the result are the same on
# any number of cores. That is the rung `threaded`.
#
# The package's own product, `gemm`, is all of this once more, done properly: `A` and `B` are both
# packed in the order in which the tile reads them (your exercise), blocks are cut to fit each
# level of the caches, each core makes one part of `C`, and the tile is printed to fit the
# registers.

# %%
say(
    f"On this processor a vector has {lanes} numbers, and the tile {CPU.mr} rows of {CPU.nv} "
    f"vectors: {CPU.mr * CPU.nv} sums that never leave their registers until a panel is done."
)

# %% [markdown]
# To be fair in the race of libraries, note that their threads do not sleep at once when a product
# is done: for a while they spin, waiting for the next one, and take the cores from whoever is up.
# So each gets a pause before its turn.

# %%
import tinygrad_edu as tg
from tinygrad_edu.kernels import gemm


def ours(a, b, c):
    gemm.matmul(a, b, out=c)


assert np.allclose(gemm.matmul(A[:64], B), A[:64] @ B, rtol=1e-3, atol=1e-3)
tg.set_num_threads(1)  # BLAS, too
alone = race({"gemm": ours, "numpy": blas}, A, B)
tg.set_num_threads(cores)
ways = {"threaded": ladder.compiled("threaded"), "gemm": ours, "numpy": blas}
speed |= race(ways, A, B, calls=3, pause=0.3)
say(
    f"On one core, `gemm` makes {alone['gemm']:.0f} GFLOP/s ({alone['gemm'] / peak[1]:.0%} of the "
    f"peak) and NumPy {alone['numpy']:.0f}; on {MANY}, `threaded` {speed['threaded']:.0f}, `gemm` "
    f"{speed['gemm']:.0f} and NumPy {speed['numpy']:.0f}."
)

# %% [markdown]
# ## Is it faster than BLAS?
#
# One shape proves nothing. Here are some products of a GPT's training step, `T` where an operand is
# stored transposed, as the backward pass has it, and an odd one:

# %%
from gpt import bench_matmul

shapes = [(768, 384, 128, "NN"), (1024, 768, 3072, "NN"), (1024, 2304, 768, "NT"),
          (2304, 768, 1024, "TN"), (1000, 333, 517, "NN")]  # fmt: skip


ratios = [speed["gemm"] / speed["numpy"]]
print(f"{'M x N x K':<20}{'stored':>7}{'gemm':>8}{'NumPy':>8}   (GFLOP/s)")
for m, n, k, layout in shapes:
    operands = bench_matmul.operands(m, n, k, layout, rng)
    rates = race({"gemm": ours, "numpy": blas}, *operands, calls=9, pause=0.3)
    ratios.append(rates["gemm"] / rates["numpy"])
    shape = f"{m} x {n} x {k}"
    print(f"{shape:<20}{layout:>7}{rates['gemm']:8.0f}{rates['numpy']:8.0f}")

# %%
library, usual = bench_matmul.blas(), statistics.median(ratios)
name = {"openblas": "OpenBLAS", "mkl": "MKL"}.get(library["name"], library["name"])
name += f" and its kernels for {library['core']}" if library["core"] else ""
won = sum(ratio > 1 for ratio in ratios)
if usual > 1.03:
    verdict = (
        f"**Here the title keeps its word:** `gemm` is {usual:.2f} times as fast in the median"
    )
elif usual > 0.97:
    verdict = f"**Here it is a draw:** `gemm` is {usual:.2f} times as fast in the median"
else:
    verdict = "**Here the title does not keep its word:** "
    verdict += f"`gemm` is {usual:.2f} times as fast in the median"
if shared:
    verdict = "The cores were not free while this was measured, so take it as a guess. " + verdict
say(
    f"NumPy multiplies with {name}. {verdict}, and it is ahead in {won} of {len(ratios)} products, "
    "counting the large one.\n\nThere is no magic on either side: both run into the same peak. "
    "What decides is whose inner loop was made for this processor; ours is printed anew for each."
)

# %%
rungs = ["naive", "interchanged", "blocked", "packed", "vectorised"]
bars = [(rung, speed[rung], BLUE) for rung in rungs]
bars += [("gemm", alone["gemm"], GREEN), ("NumPy", alone["numpy"], ORANGE)]
middle = len(bars) - 0.5
bars += [("threaded", speed["threaded"], BLUE), ("gemm ", speed["gemm"], GREEN)]
bars += [("NumPy ", speed["numpy"], ORANGE)]

figure, axes = canvas(figsize=(9, 5.2))
right = 1.13 * max(peak[cores], *(rate for _, rate, _ in bars))
for y, (_, rate, color) in enumerate(bars):
    axes.barh(y, rate, color=color, height=0.66)
    digits = 2 if rate < 1 else 1 if rate < 10 else 0
    limit = peak[1 if y < middle else cores]  # the number stands clear of its line
    x = rate if not 0 < limit - rate < right / 13 else limit
    axes.text(x + right / 110, y, f"{rate:.{digits}f}", va="center", color=color)
    times = f"{rate / speed['naive']:.0f} x" if y else "naive = 1"
    axes.text(right, y, times, ha="right", va="center", color=color, fontsize=9.5)
halves = (1, -0.6, middle, "one core"), (cores, middle, len(bars) - 0.4, MANY)
for n, top, bottom, where in halves:
    axes.plot([peak[n]] * 2, [top, bottom], color=INK, ls="--", lw=1.4)
    axes.text(peak[n] - right / 90, top + 0.12, f"peak of {where}: {peak[n]:.0f}", ha="right",
              va="top", fontsize=9.5)  # fmt: skip
axes.axhline(middle, color=INK, lw=0.8, ls=":")
axes.set_yticks(range(len(bars)), [title for title, _, _ in bars])
axes.set(ylim=(len(bars) - 0.4, -0.6), xlim=(0, right), xlabel="speed (GFLOP/s)")
axes.set_ylabel("way to multiply (one core, then all)")
axes.grid(axis="y", visible=False)
best = max(speed["gemm"], alone["gemm"])
show(
    figure,
    f"From the textbook's loops to gemm lies a factor of {best / speed['naive']:.0f}. Every row "
    "does the same arithmetic; what differs is the order in which numbers are fetched and kept, "
    "and how many cores take part.",
)

# %% [markdown]
# Read the ladder from the top and the reasons repeat: use all of what you fetch (a line), use it
# again while you have it (a block), put it where it is read in order (packing), keep what you use
# most in the fastest place (registers). Only the size of the place changes. In lesson 9 the place
# is a whole chip, and the same idea trains a model that does not fit.
#
# ## Where to read on
#
# - `tinygrad_edu/kernels/ladder.py`: these rungs, with the reasons beside them;
#   `python -m tinygrad_edu.kernels.ladder` times them.
# - `tinygrad_edu/kernels/gemm/microkernel.py`, function `tile`: the inner loop, printed.
# - `tinygrad_edu/kernels/gemm/blocked.py`, function `blocked`: blocks that fit the caches.
# - `tinygrad_edu/kernels/gemm/gemm.py`, function `matmul`: small, thin and batched products.
#
# ## Exercise
#
# `rows_of_tiles` in the ladder packs panels of `B` as wide as a tile, and copies rows of `A` as
# they lie; `gemm` packs `A` in the order of the steps as well. Write both panels in
# `lessons/exercises/lesson_04.py`: an inner kernel reads them from the first number to the last,
# and they are padded with zeros where a tile hangs over the edge. Then:
#
# ```sh
# python -m lessons.check 4
# ```

# %%
from lessons.check import check

check(4)
