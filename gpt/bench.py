"""How fast is a training step here? `python -m gpt.bench [PRESET]`.

Times forward, backward, clipping and the AdamW update of a preset on random tokens, and the same
step in PyTorch when it is installed. The two take turns in blocks, because worker threads of one
library that still spin slow the other down; the figures are medians.
"""

import importlib.util
import json
import statistics
import time
from collections.abc import Callable

import numpy as np

import tinygrad_edu as tg

from . import config as cli
from .errors import UserError
from .model import GPT, GPTConfig

PHASES = ("forward", "backward", "clip", "update")
Step = Callable[[np.ndarray, np.ndarray], dict[str, float]]


def our_step(model: GPT, lr: float = 1e-3) -> Step:
    """A function that takes one training step and gives the seconds of each phase."""
    optimizer = tg.optim.AdamW(model.parameters(), lr, (0.9, 0.95), weight_decay=0.1)

    def step(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
        marks = [time.perf_counter()]
        optimizer.zero_grad()
        _, loss = model(x, y)
        marks.append(time.perf_counter())
        loss.backward()
        marks.append(time.perf_counter())
        tg.optim.clip_grad_norm_(model.parameters(), 1.0)
        marks.append(time.perf_counter())
        optimizer.step()
        marks.append(time.perf_counter())
        return dict(zip(PHASES, np.diff(marks).tolist()))

    return step


def torch_step(model: GPT, lr: float = 1e-3) -> Step:
    import torch

    from .torch_twin import TorchGPT

    twin = TorchGPT(model)
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
        loss = twin.loss(x_, y_)
        marks.append(time.perf_counter())
        loss.backward()
        marks.append(time.perf_counter())
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        marks.append(time.perf_counter())
        optimizer.step()
        marks.append(time.perf_counter())
        return dict(zip(PHASES, np.diff(marks).tolist()))

    return step


def flops_per_step(config: GPTConfig, parameters: int, tokens: int) -> float:
    """6 N + 12 L C T per token: the products of forward and backward (Narayanan 2021)."""
    return tokens * (6 * parameters + 12 * config.n_layer * config.n_embd * config.block_size)


def measure(
    steps: dict[str, Step], shape: tuple[int, int], vocab_size: int, repeats: int, blocks: int
) -> dict[str, list[dict[str, float]]]:
    """Runs the steps in alternating blocks of `repeats`, each after a warm-up step and a pause."""
    rng = np.random.default_rng(0)
    timings: dict[str, list[dict[str, float]]] = {name: [] for name in steps}
    for _ in range(blocks):
        for name, step in steps.items():
            time.sleep(0.3)
            for i in range(repeats + 1):
                x, y = rng.integers(vocab_size, size=(2, *shape))
                times = step(x, y)
                if i:
                    timings[name].append(times)
    return timings


def main(argv: list[str]) -> int:
    parser = cli.OneLineParser(prog="python -m gpt.bench", description=__doc__)
    parser.add_argument("preset", nargs="?", default="nanogpt-cpu", metavar="PRESET")
    parser.add_argument("--threads", type=int, help="threads for matrix products")
    parser.add_argument("--matmul", choices=("numpy", "numba"), default="numpy", help="backend")
    parser.add_argument("--repeats", type=int, default=5, help="timed steps per block")
    parser.add_argument("--blocks", type=int, default=4, help="blocks per library")
    parser.add_argument("--json", action="store_true", help="print JSON for machines")
    given = parser.parse_all(argv)
    if min(given.repeats, given.blocks, given.threads or 1) < 1:
        raise UserError("--repeats, --blocks and --threads must be at least 1")
    tg.set_matmul_backend(given.matmul)
    preset = cli.load_preset(given.preset)
    config = preset.model(preset.vocab_size or 256)
    model = GPT(config)
    steps = {"tinygrad_edu": our_step(model)}
    if importlib.util.find_spec("torch"):
        import torch

        steps["PyTorch"] = torch_step(model)
        if given.threads:
            torch.set_num_threads(given.threads)
    if given.threads:
        tg.set_num_threads(given.threads)
    shape = preset.batch_size, config.block_size
    timings = measure(steps, shape, config.vocab_size, given.repeats, given.blocks)
    report(given, preset, config, model, timings)
    return 0


def report(given, preset, config: GPTConfig, model: GPT, timings) -> None:
    tokens = preset.batch_size * config.block_size
    parameters = sum(p.size for p in model.parameters())
    flops = flops_per_step(config, parameters, tokens)
    rows = {}
    for name, times in timings.items():
        total = statistics.median(sum(t.values()) for t in times)
        rows[name] = {
            "ms_per_step": total * 1e3,
            "tokens_per_s": tokens / total,
            "gflop_per_s": flops / total / 1e9,
            **{f"{p}_ms": statistics.median(t[p] for t in times) * 1e3 for p in PHASES},
        }
    if given.json:
        print(json.dumps({"preset": preset.preset, "parameters": parameters, "steps": rows}))
        return
    print(f"{preset.preset}: {parameters / 1e6:.1f}M parameters, {preset.batch_size} x "
          f"{config.block_size} tokens, {flops / 1e9:.1f} GFLOP per step")  # fmt: skip
    header = ("", "ms/step", "tokens/s", "GFLOP/s", *PHASES)
    print("{:<14}{:>9}{:>11}{:>9}".format(*header[:4]) + "".join(f"{p:>10}" for p in PHASES))
    for name, row in rows.items():
        values = "{ms_per_step:>9.1f}{tokens_per_s:>11,.0f}{gflop_per_s:>9.1f}".format(**row)
        print(f"{name:<14}{values}" + "".join(f"{row[f'{p}_ms']:>10.1f}" for p in PHASES))
    if len(rows) > 1:
        ours, theirs = (row["ms_per_step"] for row in rows.values())
        word = "faster" if ours < theirs else "slower"
        ratio = max(ours, theirs) / min(ours, theirs)
        print(f"tinygrad_edu is {ratio:.2f} times {word} than PyTorch on this step")


if __name__ == "__main__":
    cli.run(main, "gpt.bench")
