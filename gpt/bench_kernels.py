"""Every fused kernel of a training step against the limit that holds it back.

A kernel that does little arithmetic can run no faster than its operands cross the memory bus; one
made of matrix products no faster than the FMA units. `cases` counts, for each kernel, the bytes
that must be read or written once, or the operations of its products.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tinygrad_edu.memory.calibrate import median_seconds

from . import machine


@dataclasses.dataclass(frozen=True)
class Sizes:
    """B batch, T tokens, C width, H heads, V vocabulary."""

    b: int = 16
    t: int = 256
    c: int = 768
    h: int = 12
    v: int = 8192


@dataclasses.dataclass(frozen=True)
class Case:
    """A call, and what it must move (bytes) or compute (FLOPs); the other one is 0."""

    name: str
    call: Callable[[], Any]
    bytes: int = 0
    flops: int = 0


def cases(s: Sizes) -> Iterator[Case]:
    """One kernel after the other, on fresh float32 operands. This is the table to edit."""
    from tinygrad_edu.kernels import attention as at
    from tinygrad_edu.kernels import cross_entropy as ce
    from tinygrad_edu.kernels import elementwise as el
    from tinygrad_edu.kernels import gather, update
    from tinygrad_edu.kernels import normalize as no
    from tinygrad_edu.kernels.blocks import Rows

    rng = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    n, one = s.b * s.t, s.b * s.t * s.c * 4  # rows, and bytes of one (N, C) array
    x, g, weight, bias = draw(n, s.c), draw(n, s.c), draw(s.c), draw(s.c)
    yield Case("gelu", lambda: el.gelu(x, True), 2 * one)
    yield Case("gelu backward", lambda: el.gelu_backward(x, g, True), 3 * one)
    yield Case("dropout", lambda: el.dropout(x, 0.2, 1), 2 * one)

    for name, center, b in (("layer_norm", True, bias), ("rms_norm", False, None)):
        _, mean, rstd = no.layer_norm(x, weight, b, 1e-5, center)
        needs = (True, True, center)
        yield Case(
            name, lambda b=b, center=center: no.layer_norm(x, weight, b, 1e-5, center), 2 * one
        )
        yield Case(
            f"{name} backward",
            lambda mean=mean, rstd=rstd, needs=needs: no.layer_norm_backward(
                g, x, weight, mean, rstd, needs
            ),
            3 * one,
        )

    table, target = Rows(draw(s.v, s.c) * np.float32(0.02)), ce.Target(rng.integers(s.v, size=n))
    _, lse = ce.linear_cross_entropy(x, table, None, target)
    upstream, products = np.full(n, 1 / n, np.float32), 2 * n * s.c * s.v
    yield Case(
        "linear_cross_entropy",
        lambda: ce.linear_cross_entropy(x, table, None, target),
        flops=products,
    )
    yield Case(
        "linear_cross_entropy backward",
        lambda: ce.linear_cross_entropy_backward(
            upstream, x, table, None, lse, target, (True, True, False), lambda start, block: None
        ),
        flops=3 * products,  # logits again, then both gradients
    )

    d = s.c // s.h
    q, k, v, do = (draw(s.b, s.t, s.h, d).swapaxes(1, 2) for _ in range(4))
    options = at.Options(d**-0.5, True)
    out, row_lse = at.attention(q, k, v, options)
    triangle = 2 * s.b * s.h * d * s.t * (s.t + 1) // 2  # one causal product
    yield Case("attention", lambda: at.attention(q, k, v, options), flops=2 * triangle)
    yield Case(
        "attention backward",
        lambda: at.attention_backward(do, q, k, v, out, row_lse, options),
        flops=5 * triangle,
    )

    ids = rng.integers(s.v, size=n)
    yield Case("embedding", lambda: gather.gather_rows(table.array, ids), 2 * one)
    sums = len(np.unique(ids)) * s.c * 4
    yield Case("embedding backward", lambda: gather.sum_rows(g, ids), one + sums)

    m, v2 = np.zeros_like(x), np.zeros_like(x)
    settings = dict(lr=1e-3, beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.1, step=10)
    yield Case("adamw", lambda: update.adamw(x, g, m, v2, **settings), 7 * one)
    yield Case("sums_of_squares", lambda: update.sums_of_squares([g]), one)


def bench(
    threads: list[int], repeats: int, sizes: Sizes = Sizes(), rounds: int = 10_000_000,
    megabytes: int = 256,
) -> dict[str, Any]:  # fmt: skip
    """Rows of kernel, thread count, median ms, GB/s or GF/s, and the fraction of the limit."""
    import tinygrad_edu as tg

    tg.set_matmul_backend("numba")
    found: dict[str, Any] = {"sizes": dataclasses.asdict(sizes), "limits": [], "rows": []}
    for n in threads:
        peak = machine.fma_peak(n, rounds=rounds)
        memory = machine.bandwidth(n, megabytes=megabytes)
        found["limits"].append({"threads": n, "gflop_per_s": peak / 1e9, "gb_per_s": memory / 1e9})
        tg.set_num_threads(n)
        for case in cases(sizes):
            seconds = median_seconds(case.call, repeats)
            rate, limit = (case.bytes, memory) if case.bytes else (case.flops, peak)
            found["rows"].append({
                "kernel": case.name, "threads": n, "ms": seconds * 1e3,
                "unit": "GB/s" if case.bytes else "GF/s", "rate": rate / seconds / 1e9,
                "of_limit": rate / seconds / limit,
            })  # fmt: skip
    return found


def report(found: dict[str, Any]) -> None:
    s = found["sizes"]
    print(f"{s['b']} x {s['t']} tokens, width {s['c']}, {s['h']} heads, vocabulary {s['v']}")
    for limit in found["limits"]:
        print(f"limits, {limit['threads']} threads: {limit['gflop_per_s']:.0f} GF/s of FMA, "
              f"{limit['gb_per_s']:.1f} GB/s of copying")  # fmt: skip
    print(f"{'kernel':<32}{'threads':>8}{'ms':>10}{'rate':>15}{'of limit':>10}")
    for r in found["rows"]:
        print(f"{r['kernel']:<32}{r['threads']:>8}{r['ms']:>10.2f}{r['rate']:>10.1f} {r['unit']}"
              f"{r['of_limit']:>10.0%}")  # fmt: skip
