"""The loss curve of a run as a PNG. Matplotlib is imported only when a picture is drawn."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from .disk import write_atomically


def draw_losses(rows: list[dict[str, Any]], path: Path) -> None:
    """Draws loss and held-out loss against the optimizer step, and replaces `path`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    points = [(row["step"], row["loss"]) for row in rows if row.get("loss") is not None]
    if not points:
        return
    steps, losses = np.array(points).T
    held_out = [(row["step"], row["val_loss"]) for row in rows if row.get("val_loss") is not None]
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.plot(steps, losses, color="#9db8d9", linewidth=0.7, label="training, each step")
    width = max(1, math.isqrt(len(losses)))
    if len(losses) > 4 * width:
        smooth = np.convolve(losses, np.ones(width) / width, "valid")
        axes.plot(steps[width - 1 :], smooth, color="#1f5fa8", label=f"training, mean of {width}")
    if held_out:
        axes.plot(*zip(*held_out), "o-", color="#d1495b", markersize=4, label="held-out text")
        axes.annotate(f"{held_out[-1][1]:.3f}", held_out[-1], (0, 8), textcoords="offset points",
                      ha="right", color="#d1495b")  # fmt: skip
    axes.set(xlabel="optimizer step", ylabel="loss (nats per token)")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    write_atomically(path, FigureCanvasAgg(figure).print_png)
