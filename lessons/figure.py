"""Figures and computed sentences of the lessons: one style, and rules that nobody can forget.

A notebook is read on light pages and on dark ones, so pictures are transparent, and their text and
lines have a middle brightness that stands out from both. `show` refuses axes without units, text
that one of the pages would swallow, and figures without a sentence on what to see.
"""

import io
import re
from typing import Any

INK = "#767c85"  # text and axes: a contrast of 4 with white and with black
BLUE, ORANGE, GREEN, RED, PURPLE, TEAL = COLORS = (
    "#3b82f6", "#dd7420", "#2f9e5b", "#dc4c5a", "#9566d6", "#1594a4",
)  # fmt: skip
DPI = 160
UNIT = re.compile(r"\(.+\)")

STYLE = {
    "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none",
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "axes.titlecolor": INK,
    "xtick.color": INK, "ytick.color": INK, "legend.frameon": False, "legend.labelcolor": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": INK,
    "grid.alpha": 0.22, "grid.linewidth": 0.7, "axes.linewidth": 0.8, "lines.linewidth": 2,
    "font.size": 10.5, "axes.titlesize": 11.5, "figure.figsize": (7.2, 4),
    "figure.constrained_layout.use": True,
}  # fmt: skip


def canvas(*args: Any, **kwargs: Any) -> tuple:
    """`plt.subplots` in the style of the lessons: the figure and its axes."""
    import matplotlib
    from cycler import cycler

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({**STYLE, "axes.prop_cycle": cycler(color=COLORS)})
    return plt.subplots(*args, **kwargs)


def show(figure: Any, see: str, diagram: bool = False) -> None:
    """Displays a figure and, below it, one sentence on what to `see`.

    Every axis must be labelled with its unit in parentheses, "time (ms)" or "step (count)"; a
    `diagram` has no axes. ValueError names what is missing.
    """
    import matplotlib.pyplot as plt
    from IPython.display import Image, Markdown, display

    check_figure(figure, see, diagram)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=DPI, transparent=True)
    plt.close(figure)
    width = int(figure.get_figwidth() * 100)
    display(Image(png.getvalue(), width=width, alt=see))
    display(Markdown(f"*{see}*"))


def check_figure(figure: Any, see: str, diagram: bool) -> None:
    """ValueError unless every visible axis says what it shows, in which unit, in legible text."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        boxed = text.get_bbox_patch() is not None and text.get_bbox_patch().get_facecolor()[3] > 0.5
        seen = text.get_visible() and text.get_text().strip() and not boxed
        if seen and not 0.11 < luminance(text.get_color()) < 0.31:
            raise ValueError(
                f"the text {text.get_text()!r} has colour {text.get_color()!r}, which a white or a "
                "black page swallows: use INK or another colour of lessons.figure"
            )
    if not see.strip().endswith("."):
        raise ValueError(f"a figure needs one sentence on what to see, got {see!r}")
    for axes in figure.axes:
        if not axes.axison or axes.get_label() == "<colorbar>":
            continue
        if diagram:
            raise ValueError("a diagram has no axes: call axes.axis('off')")
        for name in ("xlabel", "ylabel"):
            label = getattr(axes, f"get_{name}")()
            shared = name == "xlabel" and not axes.xaxis.get_tick_params()["labelbottom"]
            shared |= name == "ylabel" and not axes.yaxis.get_tick_params()["labelleft"]
            if not shared and not UNIT.search(label):
                raise ValueError(f"{name} is {label!r}: say what it is and (its unit)")


def luminance(color: Any) -> float:
    """Of a colour, from 0 (black) to 1 (white), as WCAG 2 defines it for contrasts."""
    from matplotlib.colors import to_rgb

    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear))


def say(text: str) -> None:
    """Displays a sentence of Markdown, whose numbers were computed just now."""
    from IPython.display import Markdown, display

    display(Markdown(text))
