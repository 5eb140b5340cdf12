"""One training step on a chip, against the same step without one: time, bytes, waits, memory.

Peers are processes: resident (no chip), and chips of each budget whose external memory is RAM, or a
file. All take the same steps of the same model, with recompute, on the same batches, so their
losses must agree bit for bit. A file is not flushed: where memory has room for it, what is measured
is the page cache and not the medium.

A step ends when the optimizer returns. What a chip still has on its way then goes on behind the
next step, as in training; only the last step of a block waits for it.

The memory of a peer is what its process held beyond the engine itself: the most that was resident
(VmHWM) from the making of the model to the last timed step, minus what was resident before it, when
everything was imported and one step of a small model of the same width had loaded the kernels. It
includes an external memory in RAM, and not a file's page cache.
"""

import dataclasses
import functools
import gc
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

import tinygrad_edu as tg
from tinygrad_edu.memory import Chip, ExternalMemory, parse_size, show_size

from . import config as cli
from . import scaling
from .bench_peer import Peer, alternate, peak_rss, serve
from .bench_step import PHASES, our_step
from .errors import UserError
from .fit import as_flag, rehearse
from .model import GPT, GPTConfig

BUDGETS = ("256MB", "200MB")
RESIDENT = "resident"
LANES = ("fetch", "drain", "update")
UNTIMED = 2  # steps: the first records the schedule, the second is the first to follow it


def parse_budgets(given: list[str] | None) -> list[int]:
    """--chip, as often as it was given, each perhaps several sizes -> bytes, each once."""
    texts = [text for several in given or BUDGETS for text in several.split(",")]
    try:
        return list(dict.fromkeys(parse_size(text, "--chip") for text in texts))
    except ValueError as error:
        raise UserError(str(error)) from None


class Worker:
    """What a peer process does: opens its chip, builds its model, then takes steps.

    budget: bytes, or None for no chip; path: of the external memory, or None for RAM.
    """

    def __init__(
        self, model: dict, batch: int, threads: int, budget: int | None, path: str | None
    ) -> None:
        config = GPTConfig(**model)
        self.shape, self.vocab = (batch, config.block_size), config.vocab_size
        tg.set_matmul_backend("numba")
        tg.set_num_threads(threads)
        load_kernels(config)
        self.baseline = peak_from_now()
        self.stack, self.chip = ExitStack(), None
        if budget is not None:
            self.chip = self.stack.enter_context(Chip(budget, ExternalMemory(path)))
        self.losses: list[float] = []
        self.step = our_step(GPT(config, recompute=True), losses=self.losses)
        self.rng = np.random.default_rng(0)
        self.block(UNTIMED)

    def block(self, steps: int) -> dict[str, Any]:
        """Takes some steps: their times, and what the chip did meanwhile."""
        before = self.counters()
        times, numbers = [], []
        for _ in range(steps):
            x, y = self.rng.integers(self.vocab, size=(2, *self.shape))
            times.append(self.step(x, y))
            if self.chip is not None:
                numbers.append(self.chip.timeline.step)
        if self.chip is None:
            return {"times": times}
        start = time.perf_counter()
        self.chip.settle()
        times[-1]["update"] += time.perf_counter() - start
        did = {
            what: {name: count - before[what].get(name, 0) for name, count in counts.items()}
            for what, counts in self.counters().items()
        }
        return {"times": times, "overlaps": list(map(self.chip.timeline.overlap, numbers)), **did}

    def counters(self) -> dict[str, dict[str, float]]:
        """What only grows: bytes moved by kind, seconds waited by cause."""
        if self.chip is None:
            return {}
        return {"moved": self.chip.bytes_moved, "waited": self.chip.timeline.stall_seconds()}

    def __call__(self, what: str, repeats: int = 1) -> Any:
        if what == "ready":
            return None
        answer = self.block(repeats)
        peak = peak_rss()
        if self.baseline is not None and peak is not None:
            answer["rss_bytes"] = int((peak - self.baseline) * 2**20)
        if self.chip is not None:
            answer["peak_bytes"] = self.chip.peak_bytes
            answer["external_bytes"] = self.chip.external.nbytes
        return answer | {"losses": self.losses}


def load_kernels(config: GPTConfig) -> None:
    """One step of a small model of the same width, in memory that is given back afterwards."""
    small = dataclasses.replace(
        config,
        n_layer=1,
        vocab_size=min(256, config.vocab_size),
        block_size=min(64, config.block_size),
    )
    with Chip("1TB"):
        x, y = np.random.default_rng(0).integers(small.vocab_size, size=(2, 1, small.block_size))
        our_step(GPT(small, recompute=True))(x, y)
    gc.collect()


def peak_from_now() -> float | None:
    """Lets VmHWM count from what is resident now: that; None where the system cannot."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return peak_rss()


def bench(
    preset: cli.TrainConfig, threads: int, repeats: int, blocks: int, budgets: list[int],
    external: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The preset's step without a chip and on chips of all budgets, from RAM and from a file."""
    config = preset.model(preset.vocab_size or 256)
    tokens = preset.batch_size * config.block_size
    needed = rehearse(config, preset.batch_size, True).needed
    failed: dict[str, str] = {}
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(tempfile.TemporaryDirectory(dir=external))
        except OSError as error:
            raise UserError(f"--external {external}: {error.strerror}") from None
        kinds: dict[str, dict[str, Any]] = {RESIDENT: {"budget": None, "path": None}}
        for medium in ("RAM", "file"):
            for budget in budgets:
                name = f"{show_size(budget)}, {medium}"
                path = str(Path(folder) / f"{budget}.bin") if medium == "file" else None
                kinds[name] = {"budget": budget, "path": path}
                if budget < needed:
                    failed[name] = f"a step needs {as_flag(needed)} on the chip at once"
        about = {
            "model": dataclasses.asdict(config), "batch": preset.batch_size, "threads": threads
        }  # fmt: skip
        peers = {
            name: stack.enter_context(Peer("gpt.bench_chip", json.dumps(about | kind)))
            for name, kind in kinds.items()
            if name not in failed
        }
        alternate(peers, 1, failed, what="ready")  # the untimed steps
        given = alternate(peers, blocks, failed, what="time", repeats=repeats)
    rows = {name: row(answers, tokens) for name, answers in given.items()}
    for name, found in rows.items():
        found["budget"] = kinds[name]["budget"]
        if RESIDENT in rows:
            resident = rows[RESIDENT]
            found["ratio"] = found["ms_per_step"] / resident["ms_per_step"]
            pairs = zip(found["losses"], resident["losses"], strict=True)
            found["differ"] = [i for i, (a, b) in enumerate(pairs, 1) if a.hex() != b.hex()]
    return {
        "preset": preset.preset, "parameters": scaling.count_parameters(config), "threads": threads,
        "batch": preset.batch_size, "context": config.block_size, "dropout": config.dropout,
        "needed_bytes": needed, "external": external, "untimed": UNTIMED,
        "timed": repeats * blocks, "steps": rows, "failed": failed,
    }  # fmt: skip


def row(answers: list[dict[str, Any]], tokens: int) -> dict[str, Any]:
    """All that one peer answered, per step."""
    times = [t for answer in answers for t in answer["times"]]
    total = statistics.median(sum(t.values()) for t in times)
    found = {
        "ms_per_step": total * 1e3,
        "tokens_per_s": tokens / total,
        **{f"{p}_ms": statistics.median(t[p] for t in times) * 1e3 for p in PHASES},
        "rss_bytes": answers[-1].get("rss_bytes"),
        "losses": answers[-1]["losses"],
    }
    if "moved" not in answers[-1]:
        return found
    overlaps = [o for answer in answers for o in answer["overlaps"] if o is not None]
    return found | {
        "peak_bytes": answers[-1]["peak_bytes"],
        "external_bytes": answers[-1]["external_bytes"],
        "moved_bytes": per_step([answer["moved"] for answer in answers], len(times)),
        "waited_s": per_step([answer["waited"] for answer in answers], len(times)),
        "overlap": statistics.median(overlaps) if overlaps else None,
    }


def per_step(counts: list[dict[str, float]], steps: int) -> dict[str, float]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return {name: value / steps for name, value in total.items()}


def report(found: dict[str, Any]) -> None:
    print(
        f"{found['preset']}: {found['parameters'] / 1e6:.1f}M parameters, {found['batch']} x "
        f"{found['context']} tokens, dropout {found['dropout']}, recompute on, {found['threads']} "
        f"threads, {found['timed']} steps; at least {as_flag(found['needed_bytes'])} on a chip"
    )
    rows = found["steps"]
    print(f"{'':<16}{'ms/step':>9}{'/ resident':>12}{'tokens/s':>10}"
          + "".join(f"{p:>10}" for p in PHASES) + "   losses")  # fmt: skip
    for name, r in rows.items():
        ratio = f"{r['ratio']:.3f}" if "ratio" in r else ""
        print(f"{name:<16}{r['ms_per_step']:>9.1f}{ratio:>12}{r['tokens_per_s']:>10,.0f}"
              + "".join(f"{r[f'{p}_ms']:>10.1f}" for p in PHASES)
              + f"   {losses_of(name, rows)}")  # fmt: skip
    print("MB held at most (process: beyond the engine itself), and moved per step:")
    print(f"{'':<16}{'process':>9}{'external':>10}{'chip':>8}"
          + "".join(f"{lane:>10}" for lane in LANES) + f"{'overlap':>9}   waits")  # fmt: skip
    for name, r in rows.items():
        print(f"{name:<16}{megabytes(r['rss_bytes']):>9}", end="")
        if "moved_bytes" in r:
            overlap = "-" if r["overlap"] is None else f"{r['overlap']:.0%}"
            waits = ", ".join(
                f"{cause} {s * 1e3:.1f} ms" for cause, s in sorted(r["waited_s"].items()) if s > 0
            )
            print(f"{megabytes(r['external_bytes']):>10}{megabytes(r['peak_bytes']):>8}"
                  + "".join(f"{megabytes(r['moved_bytes'][lane]):>10}" for lane in LANES)
                  + f"{overlap:>9}   {waits or 'none'}", end="")  # fmt: skip
        print()
    for name, why in found["failed"].items():
        print(f"{name}: not measured ({why})")


def megabytes(nbytes: float | None) -> str:
    if nbytes is None:
        return "-"
    return f"{nbytes / 1e6:.0f}" if nbytes >= 1e8 else f"{nbytes / 1e6:.3g}"


def losses_of(name: str, rows: dict[str, Any]) -> str:
    """Whether a peer's losses are the resident's, or the first that is not."""
    losses, differ = rows[name]["losses"], rows[name].get("differ")
    if name == RESIDENT or differ is None:
        return f"{losses[0]:.4f} to {losses[-1]:.4f}"
    if not differ:
        return "same bits"
    first = differ[0]
    expected = rows[RESIDENT]["losses"][first - 1]
    return f"{len(differ)} differ, first in step {first}: {losses[first - 1]!r}, not {expected!r}"


if __name__ == "__main__":
    worker = functools.cache(lambda: Worker(**json.loads(sys.argv[2])))  # at the first request
    serve(lambda **request: worker()(**request))
