"""What this machine reaches, measured with the engine's own kernels in a few seconds.

The numbers that the virtual clock divides by: how fast products of a GPT's shapes are, how fast a
fused element-wise kernel crosses memory, how fast a second thread copies blocks as the chip's
reader does, how fast AdamW passes over its arrays, how fast the operating system gives memory, and
what an op and a transfer cost when they compute and move next to nothing. All are medians. They are
kept on disk under the CPU's name, the number of threads and the versions of NumPy and Numba; a
damaged file is measured anew.

The peak is the best rate that any product reached, not that of the FMA units, so a fraction of it
says how much worse other products are. Give `peak=` to have it otherwise.
"""

import contextlib
import functools
import hashlib
import json
import math
import os
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .. import functional, nn, optim
from ..kernels import elementwise, launch, update
from ..kernels.matmul import numba_backend
from ..tensor import Tensor
from .budget import LARGE, mapped_block
from .chip import Chip
from .hardware import ONE, THIS_MACHINE, Hardware, Source
from .rehearsal import Rehearsal

FORMAT = 3  # raise it when something else is measured under the same name
PRODUCTS = (  # (M, N, K): forward, and the two of backward, of a GPT's linear layers
    (768, 512, 128), (1024, 2304, 768), (1024, 768, 3072), (1024, 768, 2304), (2304, 768, 1024),
    (2048, 1536, 384), (384, 1536, 2048),
)  # fmt: skip
TURNS = 64 << 20  # bytes of operands that take turns: more than a cache holds
PRODUCT_FLOPS = 1e9  # per measurement: long enough for the clock, short enough for a user
ELEMENTS = 1 << 23  # of float32, beyond any cache
BLOCK = 16 << 20  # bytes that the reader copies at once
FRESH = 64 << 20  # bytes asked of the operating system, in blocks of a megabyte
TINY = (6, 32, 2, 16)  # layers, width, heads and rows of a model with next to nothing to compute
MEASURED = (
    "peak", "achieved", "memory_bandwidth", "bandwidth", "optimizer_bandwidth", "overhead",
    "transfer_overhead", "mapping_bandwidth",
)  # fmt: skip


def median_seconds(call: Callable[[], Any], repeats: int = 5) -> float:
    """The median of `repeats` calls, after one that warms up."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def product_rates(memory_bandwidth: float) -> list[float]:
    """FLOP/s of each of `PRODUCTS`, float32, beside the time in which operands cross memory.

    Operands take turns, so that they are as far away as those of a step are.
    """
    rng, rates = np.random.default_rng(0), []

    def repeated(count: int, sets: list[tuple[np.ndarray, ...]]) -> None:
        for i in range(count):
            numba_backend(*sets[i % len(sets)])

    for m, n, k in PRODUCTS:
        flops, nbytes = 2 * m * n * k, 4 * (m * k + k * n + m * n)
        count = math.ceil(PRODUCT_FLOPS / flops)
        sets = [
            (rng.random((m, k), np.float32), rng.random((k, n), np.float32),
             np.empty((m, n), np.float32))
            for _ in range(-(-TURNS // nbytes))
        ]  # fmt: skip
        seconds = median_seconds(functools.partial(repeated, count, sets)) / count
        rates.append(flops / (seconds - nbytes / memory_bandwidth))
    return rates


def elementwise_rate() -> float:
    """Bytes/s, read plus written, of GELU."""
    x = np.ones(ELEMENTS, np.float32)
    return 2 * x.nbytes / median_seconds(lambda: elementwise.gelu(x, True))


def copy_rate() -> float:
    """Bytes/s that arrive when a second thread copies one block after the other."""
    source = np.ones((8, BLOCK), np.uint8)  # more than a cache holds
    target = np.empty(BLOCK, np.uint8)

    def in_a_thread() -> None:
        mover = threading.Thread(target=lambda: [np.copyto(target, block) for block in source])
        mover.start()
        mover.join()

    return source.nbytes / median_seconds(in_a_thread)


def update_rate() -> float:
    """Bytes/s, read plus written, of AdamW: 28 per parameter."""
    w, grad, m, v = (np.ones(ELEMENTS, np.float32) for _ in range(4))
    numbers = dict(lr=1e-3, beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.1, step=10)
    return 7 * w.nbytes / median_seconds(lambda: update.adamw(w, grad, m, v, **numbers))


def mapping_rate() -> float:
    """Bytes/s of memory that was not there before, touched once."""

    def touch() -> None:
        for _ in range(FRESH // LARGE):
            mapped_block(LARGE).fill(1)

    return FRESH / median_seconds(touch, 3)


def tiny_step() -> Callable[[], None]:
    """One step of a transformer so small that it computes next to nothing."""
    layers, width, heads, rows = TINY
    parts = [
        (nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width))
        for _ in range(layers)
    ]
    optimizer = optim.AdamW([p for part in parts for layer in part for p in layer.parameters()])
    start = np.ones((1, rows, width), np.float32)

    def step() -> None:
        optimizer.zero_grad()
        x = Tensor(start)
        for norm, into, out in parts:
            q, k, v = (
                part.reshape(1, rows, heads, width // heads).transpose(1, 2)
                for part in into(norm(x)).split(width, axis=2)
            )
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            y = out(y.transpose(1, 2).reshape(1, rows, width))
            x = x + functional.gelu(y, approximate="tanh")
        x.sum().backward()
        optimizer.step()

    return step


def overheads() -> tuple[float, float]:
    """Seconds per op in RAM, and what each transfer adds to it on a chip."""
    with Rehearsal() as chip:
        tiny_step()()
    ops = sum(work.ops for work in chip.works)
    transfers = sum(work.transfers for work in chip.works)
    in_ram = median_seconds(tiny_step(), 25)
    with Chip(256 << 20):
        on_chip = median_seconds(tiny_step(), 25)
    return in_ram / ops, max(0.0, on_chip - in_ram) / transfers


def measure() -> dict[str, float]:
    """The numbers of `MEASURED`, now."""
    memory_bandwidth = elementwise_rate()
    rates = product_rates(memory_bandwidth)
    per_op, per_transfer = overheads()
    return {
        "peak": max(rates),
        "achieved": statistics.median(rates) / max(rates),
        "memory_bandwidth": memory_bandwidth,
        "bandwidth": copy_rate(),
        "optimizer_bandwidth": update_rate(),
        "overhead": per_op,
        "transfer_overhead": per_transfer,
        "mapping_bandwidth": mapping_rate(),
    }


# What was measured, on disk.


def cache_folder() -> Path:
    """$TINYGRAD_EDU_CACHE, $XDG_CACHE_HOME/tinygrad_edu, or ~/.cache/tinygrad_edu."""
    if own := os.environ.get("TINYGRAD_EDU_CACHE"):
        return Path(own)
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(caches, "tinygrad_edu")


def cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def machine_key() -> list:
    """What the numbers depend on, as far as it is known beforehand."""
    import numba

    return [FORMAT, cpu_name(), launch.threads(), np.__version__, numba.__version__]


def check_of(content: list) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def load(file: Path, key: list) -> dict[str, float] | None:
    """What `save` wrote there; None if it is missing, damaged, or of another machine."""
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        found = kept["measured"]
        if kept["key"] == key and kept["check"] == check_of([key, found]):
            return {name: float(found[name]) for name in MEASURED}
    except (OSError, ValueError, TypeError, KeyError):
        pass
    return None


def save(file: Path, key: list, measured: dict[str, float]) -> None:
    """Whoever looks sees the old file or all of this one. Without a folder to write to: nothing."""
    content = {"key": key, "measured": measured, "check": check_of([key, measured])}
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor, partial = tempfile.mkstemp(prefix=f".{file.name}-", dir=file.parent)
        try:
            with open(descriptor, "w", encoding="utf-8") as opened:
                json.dump(content, opened)
                opened.flush()
                os.fsync(opened.fileno())
            os.replace(partial, file)
        except BaseException:
            os.unlink(partial)
            raise


def this_machine(again: bool = False) -> Hardware:
    """This machine as `Hardware`; measured if it never was, or `again`."""
    key = machine_key()
    file = cache_folder() / f"machine-{check_of(key)[:16]}.json"
    measured = None if again else load(file, key)
    if measured is None:
        measured = measure()
        save(file, key, measured)
    return as_hardware(measured)


def installed_memory() -> tuple[int, Source]:
    """Bytes of RAM."""
    try:
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
        return pages * size, Source("RAM, from the operating system", True)
    except (AttributeError, ValueError, OSError):  # Windows
        return 8 * 10**9, Source("assumed: the operating system does not say", False)


def as_hardware(measured: dict[str, float]) -> Hardware:
    """The record that the measured numbers make."""
    memory, memory_source = installed_memory()

    def seen(how: str) -> Source:
        return Source(f"measured here: {how}", True)

    return Hardware(
        name=THIS_MACHINE,
        peak={"fp32": measured["peak"]},
        achieved=measured["achieved"],
        memory=memory,
        memory_bandwidth=measured["memory_bandwidth"],
        bandwidth=measured["bandwidth"],
        latency=0.0,
        optimizer_bandwidth=measured["optimizer_bandwidth"],
        overhead=measured["overhead"],
        transfer_overhead=measured["transfer_overhead"],
        mapping_bandwidth=measured["mapping_bandwidth"],
        shared_cores=True,
        sources={
            "peak.fp32": seen("the best rate of any product, which is below the FMA units'"),
            "achieved": seen("the median rate of a GPT's products, by the best one"),
            "memory": memory_source,
            "memory_bandwidth": seen("GELU on 32 MiB"),
            "bandwidth": seen("copies of 16 MiB blocks by a second thread"),
            "latency": Source("assumed: a copy starts at once", False),
            "optimizer_bandwidth": seen("AdamW on 8 million parameters"),
            "overhead": seen("a step with next to nothing to compute"),
            "transfer_overhead": seen("what the same step takes longer on a chip"),
            "mapping_bandwidth": seen("blocks of a megabyte, new from the operating system"),
            "chips": ONE,
            "shared_cores": Source("this engine updates on the cores that compute", True),
        },
    )
