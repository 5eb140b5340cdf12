"""Runs lessons and writes their notebooks: `NN_name.py` -> `NN_name.ipynb`, with all outputs.

    python -m lessons.build        all ten, then the picture of the index
    python -m lessons.build 3 7    these

The text source is the one to edit. Each notebook runs from top to bottom in a fresh kernel; an
error in a cell ends the build and leaves the notebook as it was.
"""

import base64
import io
import os
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SECONDS = 180  # that one cell may take


def sources(lessons: list[int] | None = None) -> list[Path]:
    """The text sources, in order; only those of `lessons` if given."""
    found = sorted(HERE.glob("[0-9][0-9]_*.py"))
    return [path for path in found if not lessons or int(path.name[:2]) in lessons]


def as_notebook(source: Path) -> Any:
    """The notebook that a source describes, without outputs."""
    import jupytext

    notebook = jupytext.read(source)
    notebook.metadata = {
        "jupytext": {"formats": "ipynb,py:percent"},
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for i, cell in enumerate(notebook.cells):
        cell.metadata = {}
        cell.id = f"cell-{i}"
    return notebook


def executed(source: Path) -> Any:
    """The notebook with its outputs; nbclient's CellExecutionError if a cell fails."""
    from nbclient import NotebookClient

    notebook = as_notebook(source)
    place = {"metadata": {"path": str(HERE)}}
    quiet = ["--IPKernelApp.log_level=ERROR"]
    client = NotebookClient(notebook, timeout=SECONDS, resources=place, extra_arguments=quiet)
    client.execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when it ran is nobody's business
    notebook.metadata.language_info = {"name": "python"}
    return notebook


def save(notebook: Any, path: Path) -> None:
    import nbformat

    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "w", encoding="utf-8") as file:
        nbformat.write(notebook, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def pictures(path: Path) -> list[bytes]:
    """Every PNG in a notebook."""
    import nbformat

    cells = nbformat.read(path, as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    found = [output.get("data", {}).get("image/png") for output in outputs]
    return [base64.b64decode(png) for png in found if png]


def draw_index() -> None:
    """The closing figure of every lesson, on one picture."""
    from matplotlib import image

    from .figure import canvas

    figure, grid = canvas(2, 5, figsize=(15, 5))
    for axes in grid.flat:
        axes.axis("off")
    for axes, source in zip(grid.flat, sources()):
        found = pictures(source.with_suffix(".ipynb"))
        if found:
            axes.imshow(image.imread(io.BytesIO(found[-1])))
        axes.set_title(f"{int(source.name[:2])}  {source.stem[3:].replace('_', ' ')}", fontsize=13)
    figure.savefig(HERE / "index.png", dpi=110, transparent=True)


def main() -> int:
    chosen = [int(arg) for arg in sys.argv[1:] if arg.isdecimal()]
    known = {int(source.name[:2]) for source in sources()}
    if len(chosen) < len(sys.argv) - 1 or not known >= set(chosen):
        print(f"usage: python -m lessons.build [LESSON ...], of {min(known)} to {max(known)}")
        return 2
    for source in sources(chosen):
        start = time.perf_counter()
        save(executed(source), source.with_suffix(".ipynb"))
        print(f"{source.stem}: {time.perf_counter() - start:.0f} s", flush=True)
    if all(source.with_suffix(".ipynb").exists() for source in sources()):
        draw_index()
    return 0


if __name__ == "__main__":
    sys.exit(main())
