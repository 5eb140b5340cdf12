"""Where streaming stops being free, as a picture: step time and tokens per second against the
bandwidth of the external memory and against the batch, with the ridge marked."""

import dataclasses
from pathlib import Path

import numpy as np

from .planner import Plan, plan

POINTS = 11  # on each curve, from a tenth of what is planned, or of the ridge, to ten times


def draw(one: Plan, path: Path) -> None:
    """Writes an SVG or PNG, by the ending of `path`."""
    from matplotlib.figure import Figure

    job, machine = one.job, one.hardware
    needed = one.break_even_tokens * machine.chips
    ridge = one.break_even_tokens * machine.bandwidth / one.tokens_resident
    bandwidths = around(machine.bandwidth, ridge)
    by_bandwidth = [plan(job, machine.but(bandwidth=b)) for b in bandwidths]
    sequences = around(job.sequences, needed / job.model.block_size)
    batches = sorted({max(machine.chips, round(n)) for n in sequences})
    by_batch = [plan(dataclasses.replace(job, sequences=n), machine) for n in batches]
    fitting = max(p.tokens_resident for p in by_batch) * machine.chips

    figure = Figure(figsize=(10.5, 4.6), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2)
    curves(left, [b / 1e9 for b in bandwidths], by_bandwidth)
    mark(left, machine.bandwidth / 1e9, ridge / 1e9)
    left.set_xlabel("bandwidth between external memory and chip (GB/s)")
    left.set_title(
        f"ridge: {ridge / 1e9:,.3g} GB/s hide the fetches of forward\nbehind a pass of "
        f"{one.tokens_resident * machine.chips:,} tokens",
        fontsize=10,
        color="tab:red",
    )
    curves(right, [n * job.model.block_size for n in batches], by_batch)
    mark(right, job.tokens_per_step, needed)
    right.set_xlabel("tokens per step, all chips")
    right.set_title(
        f"ridge: a pass of {needed:,.0f} tokens {'hides' if needed <= fitting else 'would hide'} "
        f"the fetches\nof forward; {fitting:,} fit at once, more are more passes",
        fontsize=10,
        color="tab:red",
    )
    figure.suptitle(
        f"{one.parameters / 1e9:,.3g} billion parameters on {machine.several}: "
        f"{job.sequences:,} sequences per step at {machine.bandwidth / 1e9:,.3g} GB/s (dotted)"
    )
    figure.savefig(path)


def around(planned: float, ridge: float) -> list[float]:
    ends = np.log10([min(planned, ridge) / 10, max(planned, ridge) * 10])
    return np.logspace(*ends, POINTS).tolist()


def curves(axes, x: list[float], plans: list[Plan]) -> None:
    """Step time on the left axis, tokens per second on the right one."""
    axes.grid(alpha=0.3)
    curve(axes, x, [p.step_seconds for p in plans], "step time (s)", "tab:blue")
    curve(axes.twinx(), x, [p.tokens_per_second for p in plans], "tokens per second", "tab:orange")


def curve(axes, x: list[float], y: list[float], label: str, color: str) -> None:
    """At least a decade, and whole ones, so that what hardly changes looks like it."""
    axes.loglog(x, y, "o-", color=color, ms=3)
    axes.set_ylim(10 ** np.floor(np.log10(min(y))), 10 ** np.ceil(np.log10(max(y)) + 1e-3))
    axes.set_ylabel(label, color=color)


def mark(axes, planned: float, ridge: float) -> None:
    axes.axvline(planned, color="0.5", lw=1.2, ls=":")
    axes.axvline(ridge, color="tab:red", lw=1.2)
