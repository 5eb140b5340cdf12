"""What this machine reaches, measured with the engine's own kernels in a few seconds.

Five numbers that the virtual clock divides by: how fast products of a GPT's shapes are, how fast a
fused element-wise kernel crosses memory, how fast a second thread copies blocks as the chip's
reader does, how fast AdamW passes over its arrays, and what an op costs when it computes next to
nothing. All are medians. They are kept on disk under the CPU's name, the number of threads and the
versions of NumPy and Numba; a damaged file is measured anew.

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

from .. import functional
from ..kernels import elementwise, launch, update
from ..kernels.matmul import numba_backend
from ..tensor import Tensor
from .hardware import ONE, THIS_MACHINE, Hardware, Source

FORMAT = 1  # raise it when something else is measured under the same name
PRODUCTS = (  # (M, N, K): forward, and the two of backward, of a GPT's linear layers
    (768, 512, 128), (1024, 2304, 768), (1024, 768, 3072), (1024, 768, 2304), (2304, 768, 1024),
    (2048, 1536, 384), (384, 1536, 2048),
)  # fmt: skip
PRODUCT_FLOPS = 1e9  # per measurement: long enough for the clock, short enough for a user
ELEMENTS = 1 << 23  # of float32, beyond any cache
BLOCK = 16 << 20  # bytes that the reader copies at once
TINY_OPS = 400
MEASURED = ("peak", "achieved", "memory_bandwidth", "bandwidth", "optimizer_bandwidth", "overhead")


def median_seconds(call: Callable[[], Any], repeats: int = 5) -> float:
    """The median of `repeats` calls, after one that warms up."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def product_rates() -> list[float]:
    """FLOP/s of each of `PRODUCTS`, float32."""
    rng, rates = np.random.default_rng(0), []

    def repeated(count: int, *operands: np.ndarray) -> None:
        for _ in range(count):
            numba_backend(*operands)

    for m, n, k in PRODUCTS:
        a, b = rng.random((m, k), np.float32), rng.random((k, n), np.float32)
        out = np.empty((m, n), np.float32)
        flops = 2 * m * n * k
        count = math.ceil(PRODUCT_FLOPS / flops)
        seconds = median_seconds(functools.partial(repeated, count, a, b, out))
        rates.append(flops * count / seconds)
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


def op_overhead() -> float:
    """Seconds per op, forward or backward, that computes next to nothing."""
    y = Tensor(np.ones((2, 2), np.float32))

    def chain() -> None:
        x = Tensor(np.ones((2, 2), np.float32), requires_grad=True)
        for _ in range(TINY_OPS // 2):
            x = functional.gelu(x + y, approximate="tanh")
        x.sum().backward()

    return median_seconds(chain) / (2 * TINY_OPS)


def measure() -> dict[str, float]:
    """The numbers of `MEASURED`, now."""
    rates = product_rates()
    return {
        "peak": max(rates),
        "achieved": statistics.median(rates) / max(rates),
        "memory_bandwidth": elementwise_rate(),
        "bandwidth": copy_rate(),
        "optimizer_bandwidth": update_rate(),
        "overhead": op_overhead(),
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
        shared_cores=True,
        sources={
            "peak.fp32": seen("the best rate of any product, which is below the FMA units'"),
            "achieved": seen("the median rate of a GPT's products, by the best one"),
            "memory": memory_source,
            "memory_bandwidth": seen("GELU on 32 MiB"),
            "bandwidth": seen("copies of 16 MiB blocks by a second thread"),
            "latency": Source("assumed: a copy starts at once", False),
            "optimizer_bandwidth": seen("AdamW on 8 million parameters"),
            "overhead": seen("tiny ops, forward and backward"),
            "chips": ONE,
            "shared_cores": Source("this engine updates on the cores that compute", True),
        },
    )
