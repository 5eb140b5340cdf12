"""One training step of a preset: ours against PyTorch, where the time goes, and what it holds.

Peers are processes: ours, PyTorch eager, PyTorch compiled, and PyTorch eager with the best path of
Intel's MKL (AVX-512, where there is any), which MKL itself takes on Intel's CPUs only. MKL asks a
function of its own whether it runs on one; a preloaded library of one function answers yes.
"""

import dataclasses
import functools
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from . import config as cli
from . import machine, scaling
from .bench_peer import Peer, alternate, peak_rss, serve
from .bench_profile import profiled
from .model import GPT, GPTConfig

PHASES = ("forward", "backward", "clip", "update")
OURS, EAGER, COMPILED, FORCED = "ours", "torch eager", "torch compiled", "torch, MKL at best"
Step = Callable[[np.ndarray, np.ndarray], dict[str, float]]


def our_step(model: GPT, lr: float = 1e-3, losses: list[float] | None = None) -> Step:
    """A function that takes one training step and gives the seconds of each phase.

    `losses`, if given, gets the loss of each step.
    """
    import tinygrad_edu as tg

    optimizer = tg.optim.AdamW(model.parameters(), lr, (0.9, 0.95), weight_decay=0.1)

    def step(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
        marks = [time.perf_counter()]
        optimizer.zero_grad()
        _, loss = model(x, y)
        marks.append(time.perf_counter())
        loss.backward()
        marks.append(time.perf_counter())
        tg.optim.clip_grad_norm_(optimizer.params, 1.0)
        marks.append(time.perf_counter())
        optimizer.step()
        marks.append(time.perf_counter())
        if losses is not None:
            losses.append(loss.item())
        return dict(zip(PHASES, np.diff(marks).tolist()))

    return step


def torch_step(model: GPT, compiled: bool, lr: float = 1e-3) -> Step:
    import torch

    from .torch_twin import TorchGPT

    twin = TorchGPT(model)
    loss_of = torch.compile(twin.loss) if compiled else twin.loss
    weights = list(twin.weights.values())
    groups = [
        {"params": [w for w in weights if w.ndim >= 2], "weight_decay": 0.1},
        {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr, (0.9, 0.95))

    def step(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
        x_, y_ = torch.from_numpy(x), torch.from_numpy(y)
        marks = [time.perf_counter()]
        optimizer.zero_grad()
        loss = loss_of(x_, y_)
        marks.append(time.perf_counter())
        loss.backward()
        marks.append(time.perf_counter())
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        marks.append(time.perf_counter())
        optimizer.step()
        marks.append(time.perf_counter())
        return dict(zip(PHASES, np.diff(marks).tolist()))

    return step


class Worker:
    """What a peer process does: builds its model at the first request, then takes steps."""

    def __init__(self, kind: str, model: dict, batch: int, threads: int, recompute: bool) -> None:
        config = GPTConfig(**model)
        self.shape, self.vocab, self.kind = (batch, config.block_size), config.vocab_size, kind
        ours = GPT(config, recompute=recompute)
        if kind == OURS:
            import tinygrad_edu as tg

            tg.set_matmul_backend("numba")
            tg.set_num_threads(threads)
            self.step = our_step(ours)
        else:
            import torch

            torch.set_num_threads(threads)
            self.step = torch_step(ours, kind == COMPILED)
            del ours  # so that the peak holds one model
        self.rng, self.warm = np.random.default_rng(0), False

    def one(self) -> dict[str, float]:
        x, y = self.rng.integers(self.vocab, size=(2, *self.shape))
        return self.step(x, y)

    def __call__(self, what: str, repeats: int = 1) -> Any:
        if not self.warm:
            self.one()  # kernels load, buffers are allocated; not timed
            self.warm = True
        if what == "ready":
            return None
        if what == "profile":
            self.one()  # other peers had the caches and the cores until now
            with profiled() as spent:
                return {"total": sum(self.one().values()), "ops": spent}
        times = [self.one() for _ in range(repeats)]
        return {"times": times, "peak_mb": peak_rss()}


@contextmanager
def intel_answer() -> Iterator[str | None]:
    """The path of the one-function library, or None where no C compiler builds it."""
    compiler = next((c for c in ("cc", "gcc", "clang") if shutil.which(c)), None)
    if compiler is None or not sys.platform.startswith("linux"):
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "intel.c", Path(folder) / "intel.so"
        source.write_text("int mkl_serv_intel_cpu_true(void) { return 1; }\n")
        built = subprocess.run(
            [compiler, "-shared", "-fPIC", "-o", str(library), str(source)], capture_output=True
        )
        yield str(library) if built.returncode == 0 else None


def bench(
    preset: cli.TrainConfig, threads: int, repeats: int, blocks: int, compiled: bool = True,
    torch: bool = True, recompute: bool = False, rounds: int = 10_000_000,
) -> dict[str, Any]:  # fmt: skip
    """The preset's step in every library that runs here, and the profile of ours.

    `recompute` is for ours only: PyTorch keeps all activations.
    """
    config = preset.model(preset.vocab_size or 256)
    parameters = scaling.count_parameters(config)
    tokens = preset.batch_size * config.block_size
    flops, peak = (
        scaling.flops_per_step(config, parameters, tokens),
        machine.fma_peak(threads, rounds=rounds),
    )
    failed: dict[str, str] = {}
    model = json.dumps(dataclasses.asdict(config))
    arguments = (model, str(preset.batch_size), str(threads), str(int(recompute)))
    with ExitStack() as stack:
        forced = stack.enter_context(intel_answer())
        settings: dict[str, dict[str, str]] = {OURS: {}}
        if not torch or importlib.util.find_spec("torch") is None:
            failed[EAGER] = "PyTorch is not installed" if torch else "not asked for"
        else:
            settings[EAGER] = {}
            if compiled:
                settings[COMPILED] = {}
            if forced:
                before = os.environ.get("LD_PRELOAD")
                settings[FORCED] = {"LD_PRELOAD": f"{forced}:{before}" if before else forced}
            else:
                failed[FORCED] = "needs Linux and a C compiler"
        peers = {
            name: stack.enter_context(Peer("gpt.bench_step", name, *arguments, **environment))
            for name, environment in settings.items()
        }
        alternate(peers, 1, failed, what="ready")  # start-up is over before anything is timed
        given = alternate(peers, blocks, failed, what="time", repeats=repeats)
        profile = peers[OURS].turn(what="profile") if OURS in given else None
    rows = {}
    for name, answers in given.items():
        times = [t for answer in answers for t in answer["times"]]
        total = statistics.median(sum(t.values()) for t in times)
        rows[name] = {
            "ms_per_step": total * 1e3,
            "tokens_per_s": tokens / total,
            "gflop_per_s": flops / total / 1e9,
            "mfu": flops / total / peak,
            "peak_mb": answers[-1]["peak_mb"],
            **{f"{p}_ms": statistics.median(t[p] for t in times) * 1e3 for p in PHASES},
        }
    return {
        "preset": preset.preset, "parameters": parameters, "threads": threads,
        "batch": preset.batch_size, "context": config.block_size, "dropout": config.dropout,
        "recompute": recompute, "gflop": flops / 1e9, "peak_gflop_per_s": peak / 1e9, "steps": rows,
        "ratio": {
            name: row["ms_per_step"] / rows[OURS]["ms_per_step"]
            for name, row in rows.items() if OURS in rows and name != OURS
        },
        "profile": profile, "failed": failed,
    }  # fmt: skip


def report(found: dict[str, Any]) -> None:
    print(
        f"{found['preset']}: {found['parameters'] / 1e6:.1f}M parameters, {found['batch']} x "
        f"{found['context']} tokens, dropout {found['dropout']}, {found['gflop']:.1f} GFLOP per "
        f"step, {found['threads']} threads, {'recompute in ours, ' if found['recompute'] else ''}"
        f"FMA peak {found['peak_gflop_per_s']:.0f} GF/s"
    )
    print(f"{'':<20}{'ms/step':>9}{'tokens/s':>10}{'GF/s':>7}{'MFU':>6}{'peak MB':>9}"
          + "".join(f"{p:>10}" for p in PHASES) + f"{'/ ours':>8}")  # fmt: skip
    for name, r in found["steps"].items():
        memory = "-" if r["peak_mb"] is None else f"{r['peak_mb']:.0f}"
        ratio = f"{found['ratio'][name]:.2f}" if name in found["ratio"] else ""
        print(f"{name:<20}{r['ms_per_step']:>9.1f}{r['tokens_per_s']:>10,.0f}"
              f"{r['gflop_per_s']:>7.1f}{r['mfu']:>6.0%}{memory:>9}"
              + "".join(f"{r[f'{p}_ms']:>10.1f}" for p in PHASES) + f"{ratio:>8}")  # fmt: skip
    for name, why in found["failed"].items():
        print(f"{name}: not measured ({why})")
    if found["profile"]:
        total, ops = found["profile"]["total"], found["profile"]["ops"]
        print("where our step goes:")
        for name, seconds in sorted(ops.items(), key=lambda item: -item[1]):
            if seconds >= 0.002 * total:
                print(f"  {name:<36}{seconds * 1e3:>9.1f} ms{seconds / total:>6.0%}")
        rest = total - sum(ops.values())
        print(f"  {'not covered (tape, Python, copies)':<36}{rest * 1e3:>9.1f} ms"
              f"{rest / total:>6.0%}")  # fmt: skip


if __name__ == "__main__":
    kind, model, batch, count, recompute = sys.argv[2:]
    worker = functools.cache(  # made at the first request, which then is told what goes wrong
        lambda: Worker(kind, json.loads(model), int(batch), int(count), recompute == "1")
    )
    serve(lambda **request: worker()(**request))
