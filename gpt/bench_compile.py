"""How long until the first loss, with nothing compiled and with everything cached.

A small step runs twice in processes of their own, both with the same empty cache folder: the first
compiles the kernels, the second loads them.
"""

import os
import subprocess
import sys
import tempfile
import time

from .errors import UserError

FIRST_LOSS = """
import numpy as np, tinygrad_edu as tg
from gpt import GPT, GPTConfig
tg.set_matmul_backend("numba")
model = GPT(GPTConfig(65, 64, 2, 2, 64, dropout=0.1))
optimizer = tg.optim.AdamW(model.parameters(), 1e-3)
x = np.random.default_rng(0).integers(65, size=(4, 64))
for step in range({steps}):
    optimizer.zero_grad()
    _, loss = model(x, x)
    loss.item()
    if step + 1 < {steps}:
        loss.backward()
        tg.optim.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
"""


def bench(repeats: int = 3) -> dict[str, float]:
    """Seconds from the start of Python to the first loss and to the end of the first whole step
    (which is when the second loss can be had): "cold" once, "warm" the median of `repeats`."""
    found: dict[str, float] = {}
    for name, steps in (("first_loss", 1), ("first_step", 2)):
        with tempfile.TemporaryDirectory() as folder:
            times = [seconds(steps, folder) for _ in range(repeats + 1)]
        found[f"cold_{name}_s"] = times[0]
        found[f"warm_{name}_s"] = sorted(times[1:])[(len(times) - 1) // 2]
    return found


def seconds(steps: int, cache: str) -> float:
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", FIRST_LOSS.format(steps=steps)],
        env={**os.environ, "NUMBA_CACHE_DIR": cache},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise UserError(f"the step failed: {done.stderr.strip().splitlines()[-1]}")
    return time.perf_counter() - start


def report(found: dict[str, float]) -> None:
    print(f"{'':<28}{'cold s':>8}{'warm s':>8}")
    for name, text in (("first_loss", "first loss"), ("first_step", "a step and a loss")):
        print(f"{text:<28}{found[f'cold_{name}_s']:>8.2f}{found[f'warm_{name}_s']:>8.2f}")
