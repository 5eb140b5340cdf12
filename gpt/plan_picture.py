"""Where streaming stops being free, as a picture: step time and tokens per second against the
bandwidth of the external memory and against the batch, with the ridge marked."""

import dataclasses
from pathlib import Path

import numpy as np

from .planner import Plan, plan

SPREAD = np.logspace(-1.5, 1.5, 9)  # times the given bandwidth, and the given batch


def draw(one: Plan, path: Path) -> None:
    """Writes an SVG or PNG, by the ending of `path`."""
    from matplotlib.figure import Figure

    job, machine = one.job, one.hardware
    bandwidths = [machine.bandwidth * factor for factor in SPREAD]
    by_bandwidth = [plan(job, machine.but(bandwidth=b)) for b in bandwidths]
    batches = sorted({max(machine.chips, round(job.sequences * factor)) for factor in SPREAD})
    by_batch = [plan(dataclasses.replace(job, sequences=n), machine) for n in batches]

    figure = Figure(figsize=(10, 4.2), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2)
    curves(left, [b / 1e9 for b in bandwidths], by_bandwidth)
    ridge = one.break_even_tokens * machine.bandwidth / one.tokens_resident / 1e9
    mark(left, ridge, f"{ridge:,.3g} GB/s hide the\nfetches of forward")
    left.axvline(machine.bandwidth / 1e9, color="0.6", lw=1, ls=":")
    left.set_xlabel("bandwidth between external memory and chip, GB/s")
    left.set_title(f"{job.sequences:,} sequences per step", fontsize=10)
    curves(right, [n * job.model.block_size for n in batches], by_batch)
    needed = one.break_even_tokens * machine.chips
    mark(right, needed, f"{needed:,.0f} tokens hide\nthe fetches of forward")
    right.axvline(job.tokens_per_step, color="0.6", lw=1, ls=":")
    right.set_xlabel("tokens per step, all chips")
    right.set_title(f"{machine.bandwidth / 1e9:,.3g} GB/s", fontsize=10)
    figure.suptitle(
        f"{one.parameters / 1e9:,.3g} billion parameters on {machine.chips} x {machine.name}: "
        "left of the ridge the link is the limit, right of it the chip"
    )
    figure.savefig(path)


def curves(axes, x: list[float], plans: list[Plan]) -> None:
    """Step time on the left axis, tokens per second on the right one."""
    axes.loglog(x, [p.step_seconds for p in plans], "o-", color="tab:blue", ms=3)
    axes.set_ylabel("step time, s", color="tab:blue")
    other = axes.twinx()
    other.loglog(x, [p.tokens_per_second for p in plans], "s-", color="tab:orange", ms=3)
    other.set_ylabel("tokens per second", color="tab:orange")
    axes.grid(alpha=0.3)


def mark(axes, x: float, text: str) -> None:
    axes.axvline(x, color="tab:red", lw=1.2)
    axes.annotate(text, (x, 0.97), xycoords=("data", "axes fraction"), fontsize=8, va="top",
                  xytext=(4, 0), textcoords="offset points", color="tab:red")  # fmt: skip
