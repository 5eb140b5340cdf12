"""Matrix products of a GPT against NumPy's BLAS and against the FMA peak.

Peers: our kernels, `numpy.matmul` in the environment as it is, and the same OpenBLAS told to use
its widest vectors. Every repeat multiplies operands of its own, as training does, and as in the
middle of a step all threads are awake: one that has slept for some milliseconds may be woken on the
core of the one that calls it, and stay there as long as several short products take.
"""

import math
import statistics
import sys
import time
from contextlib import ExitStack
from itertools import chain
from typing import Any

import numpy as np

from . import machine
from .bench_peer import Peer, alternate, serve

SHAPES = (  # (M, N, K) of the presets' products, and an odd one
    (768, 384, 128), (768, 128, 512), (1024, 2304, 768), (1024, 768, 3072), (1024, 3072, 768),
    (2304, 768, 1024), (16384, 1152, 384), (16384, 384, 1536), (384, 1536, 16384),
    (1024, 50257, 768), (1000, 333, 517),
)  # fmt: skip
SMALL = ((64, 64, 64), (1, 768, 768), (1, 3072, 768), (1, 50257, 768))
LAYOUTS = ("NN", "NT", "TN")
OURS, INSTALLED, BEST = "ours", "numpy", "numpy, best core"
WAKING = 0.1  # seconds of products before those that are timed
SHORT = 1e-3  # seconds; shorter products are repeated, as often as takes this long at 50 GF/s


def operands(m: int, n: int, k: int, layout: str, rng: np.random.Generator):
    """float32 a (m, k) and b (k, n); T means stored transposed."""
    a = rng.random((k, m) if layout[0] == "T" else (m, k), np.float32)
    b = rng.random((n, k) if layout[1] == "T" else (k, n), np.float32)
    return (a.T if layout[0] == "T" else a), (b.T if layout[1] == "T" else b)


def times(backend: str, threads: int, shape: list[int], layout: str, repeats: int) -> list[float]:
    """Seconds per product, one figure per repeat."""
    import tinygrad_edu as tg
    from tinygrad_edu.kernels import matmul

    tg.set_matmul_backend(backend)
    tg.set_num_threads(threads)
    rng, found = np.random.default_rng(0), []
    m, n, k = shape
    out = np.empty((m, n), np.float32)
    product = np.matmul if backend == "numpy" else matmul
    count = min(max(1, math.ceil(SHORT * 50e9 / (2 * m * n * k))), 500)
    (a, b), *fresh = [operands(m, n, k, layout, rng) for _ in range(repeats + 1)]
    start, awake = time.perf_counter(), False
    while not awake:
        product(a, b, out)
        awake = time.perf_counter() - start > WAKING
    for a, b in fresh:
        start = time.perf_counter()
        for _ in range(count):
            product(a, b, out)
        found.append((time.perf_counter() - start) / count)
    return found


def blas() -> dict[str, Any]:
    """What NumPy multiplies with: {"name", "core"}."""
    import threadpoolctl

    for library in threadpoolctl.threadpool_info():
        if library["user_api"] == "blas":
            return {"name": library["internal_api"], "core": library.get("architecture")}
    return {"name": "unknown", "core": None}


def best_core() -> str:
    """The OpenBLAS core type that uses this CPU's widest vectors."""
    return {64: "SkylakeX", 32: "Haswell"}.get(machine.vector_bytes(), "Nehalem")


def answer(what: str, backend: str, **request: Any) -> Any:
    if what == "blas":
        return blas()
    return times(backend, **request)


def bench(
    threads: list[int],
    repeats: int,
    blocks: int,
    shapes: tuple = SHAPES,
    small: tuple = SMALL,
    layouts: tuple = LAYOUTS,
    rounds: int = 10_000_000,
) -> dict[str, Any]:
    """All rows: GF/s of each peer, the ratios of ours to them, and the fraction of the peak."""
    peaks = {n: machine.fma_peak(n, rounds=rounds) for n in threads}
    found: dict[str, Any] = {"peak_gflop_per_s": {n: p / 1e9 for n, p in peaks.items()}}
    with ExitStack() as stack:
        peers = {
            OURS: stack.enter_context(Peer("gpt.bench_matmul", "numba")),
            INSTALLED: stack.enter_context(Peer("gpt.bench_matmul", "numpy")),
        }
        found["blas"] = peers[INSTALLED].turn(what="blas")
        if found["blas"]["name"] == "openblas":
            best = Peer("gpt.bench_matmul", "numpy", OPENBLAS_CORETYPE=best_core())
            peers[BEST] = stack.enter_context(best)
            found["best_core"] = best.turn(what="blas")["core"]
        failed: dict[str, str] = {}
        for peer in peers.values():
            peer.turn(what="blas")  # start-up is over before anything is timed
        rows = found["rows"] = []
        cases = [(s, la) for s in shapes for la in layouts] + [(s, "NN") for s in small]
        cases += [(s, "NT") for s in small]
        for n in threads:
            for i, (shape, layout) in enumerate(cases):
                given = alternate(
                    peers, blocks, failed, what="times", threads=n, shape=shape, layout=layout,
                    repeats=repeats,
                )  # fmt: skip
                rows.append(row(n, shape, layout, i >= len(shapes) * len(layouts), given, peaks[n]))
        found["failed"] = failed
    found["summary"] = summary(rows)
    return found


def row(threads, shape, layout, is_small, given, peak) -> dict[str, Any]:
    seconds = {name: statistics.median(chain.from_iterable(lists)) for name, lists in given.items()}
    flops = 2 * math.prod(shape)
    return {
        "threads": threads, "shape": list(shape), "layout": layout, "small": is_small,
        "gflop_per_s": {name: flops / s / 1e9 for name, s in seconds.items()},
        "ratio": {name: s / seconds[OURS] for name, s in seconds.items() if name != OURS},
        "of_peak": flops / seconds[OURS] / peak,
    }  # fmt: skip


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Geometric means and minima of the ratios, per thread count, large shapes and small."""
    found = []
    for threads, small in sorted({(r["threads"], r["small"]) for r in rows}):
        part = [r for r in rows if (r["threads"], r["small"]) == (threads, small)]
        for name in part[0]["ratio"]:
            ratios = [r["ratio"][name] for r in part if name in r["ratio"]]
            found.append({
                "threads": threads, "small": small, "against": name,
                "geometric_mean": statistics.geometric_mean(ratios), "minimum": min(ratios),
                "of_peak": statistics.mean(r["of_peak"] for r in part),
            })  # fmt: skip
    return found


def report(found: dict[str, Any]) -> None:
    blas = found["blas"]
    print(f"numpy: {blas['name']}, core {blas['core']}; best core: "
          f"{found.get('best_core', 'not OpenBLAS, no choice of core')}")  # fmt: skip
    for threads, peak in found["peak_gflop_per_s"].items():
        print(f"FMA peak, {threads} threads: {peak:.0f} GF/s")
    print(f"{'threads':>7} {'M x N x K':<20}{'layout':>6}{'GF/s':>9}{'of peak':>9}   ours / peer")
    for r in found["rows"]:
        ratios = "  ".join(f"{name} {ratio:.2f}" for name, ratio in r["ratio"].items())
        print(f"{r['threads']:>7} {' x '.join(map(str, r['shape'])):<20}{r['layout']:>6}"
              f"{r['gflop_per_s'][OURS]:>9.1f}{r['of_peak']:>9.0%}   {ratios}")  # fmt: skip
    for s in found["summary"]:
        kind = "small shapes" if s["small"] else "GPT shapes"
        print(f"{s['threads']} threads, {kind}, against {s['against']}: geometric mean "
              f"{s['geometric_mean']:.2f}, least {s['minimum']:.2f}; {s['of_peak']:.0%} of the "
              "FMA peak in the mean")  # fmt: skip
    for name, why in found["failed"].items():
        print(f"{name}: not measured ({why})")


if __name__ == "__main__":
    backend = sys.argv[2]
    serve(lambda what, **request: answer(what, backend, **request))
