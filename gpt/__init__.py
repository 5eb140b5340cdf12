"""A GPT on tinygrad_edu: `GPT`, `GPTConfig`, and the commands train, sample, plan and bench."""

import sys
from typing import Any


def _report(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """An exception nobody caught; Ctrl-C as a command reports it once it runs."""
    if not issubclass(kind, KeyboardInterrupt):
        return sys.__excepthook__(kind, error, trace)
    print("interrupted", file=sys.stderr)
    raise SystemExit(130)


if sys.argv[:1] == ["-m"]:  # `python -m gpt.train`: importing NumPy and Numba takes a while
    sys.excepthook = _report

from .model import GPT, GPTConfig  # noqa: E402

__all__ = ["GPT", "GPTConfig"]
