"""What this machine reaches, measured with the engine's own kernels in a few seconds.

The numbers that the virtual clock divides by: how fast products of a GPT's shapes are, how fast a
fused element-wise kernel crosses memory, how fast a second thread copies blocks as the chip's
reader does, how fast AdamW passes over its arrays, how fast the operating system gives memory, and
what an op and a transfer cost beside all that. What else a machine does comes and goes, so all of
it is measured in some turns that lie seconds apart: of rates, the median counts, as long steps have
their share of disturbances; of short steps, the best, as most of them fall between. The numbers are
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

FORMAT = 5  # raise it when something else is measured under the same name
PRODUCTS = (  # (M, N, K): forward, and the two of backward, of a GPT's linear layers
    (768, 512, 128), (1024, 2304, 768), (1024, 768, 3072), (1024, 768, 2304), (2304, 768, 1024),
    (2048, 1536, 384), (384, 1536, 2048),
)  # fmt: skip
OPERANDS = 64 << 20  # bytes of those that take turns: more than a cache holds
PRODUCT_FLOPS = 1e9  # per measurement: long enough for the clock, short enough for a user
ELEMENTS = 1 << 23  # of float32, beyond any cache
BLOCK, COPIES = 16 << 20, 8  # bytes that the reader copies at once, and how often
FRESH = 64 << 20  # bytes asked of the operating system, in blocks of a megabyte
STEPS = {"in RAM": None, "on a chip": 256 << 20}  # where small steps are taken
TURNS = 5
SMALL = (4, 64, 4, 4, 64)  # layers, width, heads, sequences and context of a small transformer
MEASURED = (
    "peak", "achieved", "memory_bandwidth", "bandwidth", "optimizer_bandwidth", "overhead",
    "transfer_overhead", "mapping_bandwidth",
)  # fmt: skip


def timed(call: Callable[[], Any], repeats: int) -> list[float]:
    """The seconds of `repeats` calls, after one that warms up."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


def median_seconds(call: Callable[[], Any], repeats: int = 5) -> float:
    return statistics.median(timed(call, repeats))


def product_seconds(m: int, n: int, k: int) -> float:
    """(m, k) @ (k, n), float32.

    Operands take turns, so that they are as far away as those of a step are.
    """
    rng = np.random.default_rng(0)
    sets = [
        (rng.random((m, k), np.float32), rng.random((k, n), np.float32),
         np.empty((m, n), np.float32))
        for _ in range(-(-OPERANDS // operand_bytes(m, n, k)))
    ]  # fmt: skip
    count = math.ceil(PRODUCT_FLOPS / (2 * m * n * k))

    def repeated() -> None:
        for i in range(count):
            numba_backend(*sets[i % len(sets)])

    return median_seconds(repeated, 3) / count


def operand_bytes(m: int, n: int, k: int) -> int:
    return 4 * (m * k + k * n + m * n)


def elementwise_seconds() -> float:
    """GELU: 8 bytes per element, read and written."""
    x = np.ones(ELEMENTS, np.float32)
    return median_seconds(lambda: elementwise.gelu(x, True))


def copy_seconds() -> float:
    """A second thread copies COPIES blocks, one after the other."""
    source = np.ones((COPIES, BLOCK), np.uint8)  # more than a cache holds
    target = np.empty(BLOCK, np.uint8)

    def in_a_thread() -> None:
        mover = threading.Thread(target=lambda: [np.copyto(target, block) for block in source])
        mover.start()
        mover.join()

    return median_seconds(in_a_thread)


def update_seconds() -> float:
    """AdamW: 28 bytes per element, read and written."""
    w, grad, m, v = (np.ones(ELEMENTS, np.float32) for _ in range(4))
    numbers = dict(lr=1e-3, beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.1, step=10)
    return median_seconds(lambda: update.adamw(w, grad, m, v, **numbers))


def mapping_seconds() -> float:
    """FRESH bytes of memory that was not there before, touched once."""

    def touch() -> None:
        for _ in range(FRESH // LARGE):
            mapped_block(LARGE).fill(1)

    return median_seconds(touch, 3)


def small_step() -> Callable[[], None]:
    """One step of a transformer that computes little, but enough to sweep Python out of caches."""
    layers, width, heads, batch, context = SMALL
    blocks = [
        (nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width),
         nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width))
        for _ in range(layers)
    ]  # fmt: skip
    optimizer = optim.AdamW([p for block in blocks for part in block for p in part.parameters()])
    start = np.ones((batch, context, width), np.float32)

    def step() -> None:
        optimizer.zero_grad()
        x = Tensor(start)
        for norm_1, into, out, norm_2, up, down in blocks:
            x = out(functional.self_attention(into(norm_1(x)), heads, is_causal=True), x)
            x = down(functional.gelu(up(norm_2(x)), approximate="tanh"), x)
        x.sum().backward()
        optim.clip_grad_norm_(optimizer.params, 1.0)
        optimizer.step()

    return step


def step_seconds(chip: int | None) -> float:
    """The small step in RAM, or on a chip of so many bytes."""
    with contextlib.nullcontext() if chip is None else Chip(chip):
        return median_seconds(small_step(), 15)


def taken_in_turns() -> dict[Any, float]:
    """What is measured -> seconds, over all turns."""
    clocks: dict[Any, Callable[[], float]] = {
        "elementwise": elementwise_seconds,
        "copy": copy_seconds,
        "update": update_seconds,
        "mapping": mapping_seconds,
    }
    clocks |= {where: functools.partial(step_seconds, chip) for where, chip in STEPS.items()}
    clocks |= {shape: functools.partial(product_seconds, *shape) for shape in PRODUCTS}
    turns = [{what: clock() for what, clock in clocks.items()} for _ in range(TURNS)]
    return {
        what: (min if what in STEPS else statistics.median)(turn[what] for turn in turns)
        for what in clocks
    }


def measure() -> dict[str, float]:
    """The numbers of `MEASURED`, now."""
    seconds = taken_in_turns()
    memory_bandwidth = 8 * ELEMENTS / seconds["elementwise"]
    rates = [
        2 * m * n * k / (seconds[m, n, k] - operand_bytes(m, n, k) / memory_bandwidth)
        for m, n, k in PRODUCTS
    ]
    with Rehearsal() as chip:
        small_step()()
    flops, touched, ops, transfers = (
        sum(getattr(work, what) for work in chip.works)
        for what in ("flops", "touched", "ops", "transfers")
    )
    accounted = flops / statistics.median(rates) + touched / memory_bandwidth
    return {
        "peak": max(rates),
        "achieved": statistics.median(rates) / max(rates),
        "memory_bandwidth": memory_bandwidth,
        "bandwidth": COPIES * BLOCK / seconds["copy"],
        "optimizer_bandwidth": 28 * ELEMENTS / seconds["update"],
        "overhead": max(0.0, seconds["in RAM"] - accounted) / ops,
        "transfer_overhead": max(0.0, seconds["on a chip"] - seconds["in RAM"]) / transfers,
        "mapping_bandwidth": FRESH / seconds["mapping"],
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
            "overhead": seen("what a small transformer's step takes beside its products and bytes"),
            "transfer_overhead": seen("what the same step takes longer on a chip"),
            "mapping_bandwidth": seen("blocks of a megabyte, new from the operating system"),
            "chips": ONE,
            "shared_cores": Source("this engine updates on the cores that compute", True),
        },
    )
