"""Lesson 5: counts are exact, times follow from them, and then they are measured."""

import math
from types import ModuleType
from typing import Any

import numpy as np

from lessons.check import Wrong, call, given

MACHINES = ((1e12, 1e11), (2e11, 2e10), (5e9, 4e10))  # FLOP/s and bytes/s
SIZES = {
    "linear": [(7, 5, 3), (1, 1024, 4096), (512, 768, 3072), (1, 1, 1), (0, 4, 2)],
    "layer_norm": [(2048, 768), (3, 5), (1, 1), (0, 8)],
    "adamw": [(1,), (1000,), (124_439_808,)],
}
PARAMETERS = {"linear": "rows, inputs, outputs", "layer_norm": "rows, width", "adamw": "parameters"}


def counts(name: str, sizes: tuple) -> tuple[int, int]:
    """FLOPs and bytes."""
    if name == "linear":
        m, k, n = sizes
        return 2 * m * k * n, 4 * (m * k + k * n + m * n)
    if name == "layer_norm":
        m, n = sizes
        return 8 * m * n, 4 * (2 * m * n + 2 * n)
    return 14 * sizes[0], 28 * sizes[0]


def check(answer: ModuleType) -> str:
    functions = {
        name: given(answer, name, f"{PARAMETERS[name]}, peak, bandwidth") for name in SIZES
    }
    for name, function in functions.items():
        for sizes in SIZES[name]:
            for peak, bandwidth in MACHINES:
                check_one(name, function, sizes, peak, bandwidth)
    return measured(functions)


def check_one(name: str, function: Any, sizes: tuple, peak: float, bandwidth: float) -> None:
    about = f"{name}{(*sizes, peak, bandwidth)}"
    got = call(function, *sizes, peak, bandwidth, about=about)
    try:
        flops, nbytes, seconds = map(float, got)
    except (TypeError, ValueError):
        raise Wrong(
            f"{about} gives {got!r}, expected three numbers: FLOPs, bytes, seconds"
        ) from None
    right_flops, right_bytes = counts(name, sizes)
    if flops != right_flops:
        raise Wrong(
            f"{about}: {flops:g} FLOPs, expected {right_flops}: "
            f"{why_flops(name, flops, right_flops, right_bytes, sizes)}"
        )
    if nbytes != right_bytes:
        why = why_bytes(name, nbytes, right_bytes, sizes)
        raise Wrong(f"{about}: {nbytes:g} bytes, expected {right_bytes}: {why}")
    compute, memory = flops / peak, nbytes / bandwidth
    if not math.isclose(seconds, max(compute, memory), rel_tol=1e-9, abs_tol=1e-30):
        raise Wrong(
            f"{about}: {seconds:g} s, expected {max(compute, memory):g}: "
            f"{why_seconds(seconds, compute, memory)}"
        )


def why_flops(name: str, given: float, right: float, nbytes: float, sizes: tuple) -> str:
    if given == nbytes:
        return "those are the bytes: FLOPs come first"
    if name != "linear":
        per_one = {"layer_norm": "8 for each element", "adamw": "14 for each parameter"}
        return f"the exercise has {per_one[name]}"
    if given * 2 == right:
        return "a multiply-add is two operations, one multiplication and one addition"
    if given == right - sizes[0] * sizes[2]:
        return "a sum begins at 0, so there are as many additions in it as multiplications"
    return "how many multiplications and additions does one element of the result take?"


def why_bytes(name: str, given: float, right: float, sizes: tuple) -> str:
    if given * 4 == right:
        return "those are numbers, not bytes: a float32 has 4"
    if given == 2 * right:
        return "a float32 has 4 bytes; 8 are those of a float64"
    m, n = sizes[0], sizes[-1]
    missing = (right - given) / 4
    if name == "linear" and missing == m * n:
        return "the result has to be written, too"
    if name == "linear" and missing == m * sizes[1]:
        return "x has to be read, too"
    if name == "linear" and missing == sizes[1] * n:
        return "the weight has to be read, too: for few rows it is most of the traffic"
    if name == "layer_norm" and missing == m * n:
        return "x is read and y is written: only one of them was counted"
    if name == "layer_norm" and missing in (2 * n, n):
        return "gain and bias are arrays as well, (width,) each"
    if name == "adamw" and missing == 3 * m:
        return "w, m and v are read and written: an update in place crosses memory twice"
    if name == "adamw" and missing:
        return "four arrays are read, w, g, m and v, and three written: g stays as it is"
    return "go through the arrays one by one: which are read, and which are written?"


def why_seconds(given: float, compute: float, memory: float) -> str:
    for wrong, why in (
        (1e3 * max(compute, memory), "that is in milliseconds"),
        (compute + memory, "computing and moving go on at once, so the longer of the two decides"),
        (min(compute, memory), "the slower of the two decides, not the faster"),
        (compute, "memory can be the limit, too"),
        (memory, "arithmetic can be the limit, too"),
    ):
        if math.isclose(given, wrong, rel_tol=1e-9):
            return why
    return "seconds are FLOPs by FLOP/s, or bytes by bytes/s"


def measured(functions: dict) -> str:
    """How the right predictions fare here."""
    from gpt import machine
    from tinygrad_edu.kernels import elementwise, launch, normalize, update
    from tinygrad_edu.kernels.matmul import numba_backend
    from tinygrad_edu.memory.calibrate import median_seconds

    threads = launch.threads()
    arrays = [np.ones(1 << 24, np.float32) for _ in range(4)]
    seconds = median_seconds(lambda: elementwise.add(*arrays[:2], out=arrays[0]))
    limits = machine.fma_peak(threads, 3, 1_000_000), 3 * arrays[0].nbytes / seconds
    rng = np.random.default_rng(0)
    m, k, n = 512, 768, 3072
    x, w = rng.random((m, k), np.float32), rng.random((k, n), np.float32)
    out, tall, one = np.empty((m, n), np.float32), np.ones((8192, 1024), np.float32), np.ones(1024)
    settings = dict(lr=1e-3, beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.1, step=10)
    gain = one.astype(np.float32)
    tried = {
        "linear": ((m, k, n), lambda: numba_backend(x, w, out)),
        "layer_norm": (tall.shape, lambda: normalize.layer_norm(tall, gain, gain, 1e-5, True)),
        "adamw": ((arrays[0].size,), lambda: update.adamw(*arrays, **settings)),
    }
    parts = []
    for name, (sizes, run) in tried.items():
        predicted = list(call(functions[name], *sizes, *limits))[2]
        parts.append(f"{name} {predicted * 1e3:.2f} / {median_seconds(run, 5) * 1e3:.2f} ms")
    return f"Here, predicted at best / measured: {', '.join(parts)}."
