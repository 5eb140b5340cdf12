"""Opens JupyterLab on the index of the lessons."""

import importlib.util
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
LAB = HERE / "lab"  # shows Markdown as a page, unless the reader's own settings say otherwise


def main() -> int:
    if importlib.util.find_spec("jupyterlab") is None:
        print("JupyterLab is not installed: pip install -e '.[lessons]'", file=sys.stderr)
        return 2
    settings = ["--LabApp.default_url=/lab/tree/README.md", f"--LabApp.app_settings_dir={LAB}"]
    try:
        command = [sys.executable, "-m", "jupyterlab", *settings, *sys.argv[1:]]
        return subprocess.run(command, cwd=HERE).returncode
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
