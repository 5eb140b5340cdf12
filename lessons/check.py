"""Is the answer to an exercise right? If not, what is wrong with it?

    python -m lessons.check 5              looks at lessons/exercises/lesson_05.py
    python -m lessons.check                at all ten
    python -m lessons.check 5 --solution   at the reference solution
    python -m lessons.check 5 --file x.py  at an answer kept elsewhere

It exits 0 when everything asked for is right and 1 when something is not. An answer runs in a
process of its own, so one that never ends, or ends the process, is told apart from one that is
wrong. A check is a function in `checks/lesson_NN.py` that raises `Wrong` with what a teacher would
say; the functions below help it to call an answer and to compare what it gives.
"""

import argparse
import contextlib
import importlib
import importlib.util
import inspect
import os
import subprocess
import sys
import tempfile
import textwrap
import traceback
from collections.abc import Callable, Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
LESSONS = range(1, 11)
SECONDS = 120  # that one answer may take
ANSWER = "answer_"  # how the name of an answer's module begins
STOPS = (Exception, SystemExit, KeyboardInterrupt)  # Ctrl-C says where an answer was
DEFECT = 70  # exit status: the check is broken, not the answer


class Wrong(Exception):
    """An answer is not right; the message says in which way."""


class NotWritten(Wrong):
    """Nobody has begun."""


# What a check does with an answer.


def given(answer: ModuleType, name: str, parameters: str) -> Callable:
    """The function `name` of an answer, which must take `parameters` ("x, axis")."""
    found = getattr(answer, name, None)
    if found is None:
        raise Wrong(f"there is no `{name}` in the file: write `def {name}({parameters}):`")
    if not callable(found):
        raise Wrong(f"`{name}` is {type(found).__name__}, expected a function ({parameters})")
    count = len([part for part in parameters.split(",") if part.strip()])
    try:
        inspect.signature(found).bind(*range(count))
    except TypeError:
        seen = inspect.signature(found)
        call_as = f"{name}({parameters})"
        raise Wrong(f"`{name}` takes {seen}, but it will be called as {call_as}") from None
    except ValueError:
        pass  # no signature to look at
    return found


def call(function: Callable, *args: Any, about: str = "") -> Any:
    """`function(*args)`; what goes wrong in it is the answer's fault, and said so.

    about: the arguments in words, for the message.
    """
    name = getattr(function, "__name__", "the function")
    try:
        with silence():
            return function(*args)
    except NotImplementedError as error:
        raise NotWritten(f"`{name}` is still to be written. {error}".strip()) from None
    except Wrong:
        raise
    except STOPS as error:
        called = f" when called with {about}" if about else ""
        raise Wrong(f"`{name}` stopped{called}: {said(error)}") from error


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """What an answer prints goes nowhere, and is not kept: it may print without end."""
    with open(os.devnull, "w", errors="replace") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def said(error: BaseException) -> str:
    """The error, and the last line of the answer on its way."""
    walked, where = error.__traceback__, ""
    for (frame, _), seen in zip(traceback.walk_tb(walked), traceback.extract_tb(walked)):
        if frame.f_globals.get("__name__", "").startswith(ANSWER):
            where = f" (line {seen.lineno}: {seen.line})"
    return f"{type(error).__name__}: {error}{where}"


def same(got: Any, expected: Any, what: str, rtol: float = 1e-6, atol: float = 1e-9) -> None:
    """Raises Wrong unless `got` has the shape and, within the tolerance, the values expected."""
    expected = np.asarray(expected)
    if got is None:
        raise Wrong(f"{what} is None: is a `return` missing?")
    try:
        array = np.asarray(got)
        numbers = array.astype(np.result_type(expected, np.float64))
    except (TypeError, ValueError):
        raise Wrong(f"{what} is {type(got).__name__}, expected numbers") from None
    if array.shape != expected.shape:
        raise Wrong(f"{what} has shape {array.shape}, expected {expected.shape}")
    if not expected.size:
        return
    with np.errstate(invalid="ignore"):
        off = np.abs(numbers - expected)
        near = np.isfinite(expected) & (off <= atol + rtol * np.abs(expected))
        far = ~(near | (numbers == expected))
    far &= ~(np.isnan(numbers) & np.isnan(expected))
    if far.any():
        farthest = np.argmax(np.where(far, np.nan_to_num(off, nan=np.inf), -1))
        worst = np.unravel_index(farthest, off.shape)
        at = f" at {tuple(map(int, worst))}" if worst else ""
        found, wanted = f"{numbers[worst]:.6g}", f"{expected[worst]:.6g}"
        if found == wanted:  # they differ further on
            found, wanted = f"{numbers[worst]:.12g}", f"{expected[worst]:.12g}"
        raise Wrong(f"{what} is {found}{at}, expected {wanted}")


# Looking at a file.


def file_of(lesson: int, solution: bool = False) -> Path:
    return HERE / ("solutions" if solution else "exercises") / f"lesson_{lesson:02}.py"


def read_answer(path: Path) -> ModuleType:
    """The answer as a module; Wrong if it cannot be read."""
    name = ANSWER + path.stem
    loader = SourceFileLoader(name, str(path))  # whatever the file's name ends in
    spec = importlib.util.spec_from_loader(name, loader)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look there
    try:
        with silence():
            spec.loader.exec_module(module)
    except FileNotFoundError:
        raise Wrong(f"there is no file {path}: `git checkout` brings the exercise back") from None
    except SyntaxError as error:
        line = (error.text or "").strip()
        raise Wrong(f"line {error.lineno} is not Python: {error.msg} ({line})") from None
    except STOPS as error:
        raise Wrong(f"the file stops while it is read: {said(error)}") from error
    return module


def judge(lesson: int, path: Path) -> str:
    """What is good about the answer at `path`, in a sentence; raises Wrong."""
    examine = importlib.import_module(f"lessons.checks.lesson_{lesson:02}").check
    return examine(read_answer(path))


def check(lesson: int) -> None:
    """Prints the verdict on the learner's answer: the last cell of every notebook."""
    passes(number(lesson), file_of(lesson))


def passes(lesson: int, path: Path) -> bool:
    """Prints the verdict on the answer at `path`; True if it is right."""
    try:
        praise = judge(lesson, path)
    except NotWritten as wrong:
        tell(f"lesson {lesson}: not begun. {wrong}")
        return False
    except Wrong as wrong:
        tell(f"lesson {lesson}: not yet. {wrong}")
        return False
    tell(f"lesson {lesson}: right. {praise}")
    return True


def tell(text: str) -> None:
    """Prints lines that fit on a screen; those of a message stay apart."""
    for line in text.splitlines():
        print(textwrap.fill(line, 100, subsequent_indent="  "))


def number(text: str | int) -> int:
    if str(text).isdecimal() and int(text) in LESSONS:
        return int(text)
    raise argparse.ArgumentTypeError(f"there is no lesson {text!r}: choose one of 1 to 10")


def check_apart(lesson: int, path: Path) -> int:
    """`passes` in a process of its own: 0, 1, or DEFECT."""
    with tempfile.TemporaryDirectory() as folder:
        verdict = Path(folder, "status")  # written when the check has come to its end
        command = [sys.executable, "-m", "lessons.check", str(lesson), "--file", str(path)]
        try:
            run = subprocess.run([*command, "--status", verdict], cwd=HERE.parent, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            tell(f"lesson {lesson}: not yet. The answer had not ended after {SECONDS} s: does a "
                 "loop wait for something that never comes? If none does, ask again: the first "
                 "time, kernels are compiled")  # fmt: skip
            return 1
        if verdict.exists():
            return int(verdict.read_text())
    print(f"lesson {lesson}: not yet. The answer ended the process (status {run.returncode})")
    return 1


def main(args: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m lessons.check", description=__doc__.split("\n")[0])
    parser.add_argument("lesson", nargs="?", type=number, help="1 to 10; all of them without")
    parser.add_argument("--solution", action="store_true", help="check the reference solution")
    parser.add_argument("--file", type=Path, help="an answer kept elsewhere")
    parser.add_argument("--status", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(args)
    if options.file and (options.lesson is None or options.solution):
        parser.error("--file needs one lesson, and no --solution")
    if options.status:
        try:
            status = 0 if passes(options.lesson, options.file) else 1
        except KeyboardInterrupt:  # outside the answer
            status = 130
        except Exception:
            traceback.print_exc()
            status = DEFECT
        options.status.write_text(str(status))
        return status
    lessons = LESSONS if options.lesson is None else [options.lesson]
    paths = [(n, (options.file or file_of(n, options.solution)).resolve()) for n in lessons]
    try:
        return max(check_apart(lesson, path) for lesson, path in paths)
    except KeyboardInterrupt:  # the process of the answer has got it, too
        return 130


if __name__ == "__main__":
    from lessons import check as this  # the checks import it by this name, and raise its `Wrong`

    sys.exit(this.main())
