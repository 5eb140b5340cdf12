"""Opens JupyterLab on the index of the lessons."""

import importlib.util
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> int:
    if importlib.util.find_spec("jupyterlab") is None:
        print("JupyterLab is not installed: pip install -e '.[lessons]'", file=sys.stderr)
        return 2
    opened = [sys.executable, "-m", "jupyter", "lab", f"--notebook-dir={HERE}", *sys.argv[1:]]
    opened.append("--LabApp.default_url=/lab/tree/README.md?factory=Markdown%20Preview")
    try:
        return subprocess.run(opened).returncode
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
