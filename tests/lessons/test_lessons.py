"""Lessons run, agree with their sources, keep to their rules, and know wrong answers when they see
them. Run with `pytest -m lessons`."""

import ast
import importlib.util
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

pytestmark = pytest.mark.lessons

ROOT = Path(__file__).parents[2]
LESSONS = ROOT / "lessons"
SOURCES = sorted(LESSONS.glob("[0-9][0-9]_*.py"))
NUMBERS = [int(path.name[:2]) for path in SOURCES]
LINES, COLUMNS = 45, 120  # a screenful


def wrong_answers():
    for number in NUMBERS:
        path = Path(__file__).parent / "wrong" / f"lesson_{number:02}.py"
        if not path.exists():
            continue
        spec = importlib.util.spec_from_file_location(f"wrong_{number}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for what, old, new, says in module.WRONG:
            yield pytest.param(number, old, new, says, id=f"{number}-{what.replace(' ', '_')}")


ANSWERS = list(wrong_answers())


def notebook_of(source):
    import nbformat

    return nbformat.read(source.with_suffix(".ipynb"), as_version=4)


def outputs_of(notebook):
    return [out for cell in notebook.cells for out in cell.get("outputs", [])]


def printed(output):
    """The text of an output, as it is read."""
    if output.output_type == "stream":
        return output.text
    data = output.get("data", {})
    return data.get("text/markdown") or data.get("text/plain", "")


def run_check(*args):
    return subprocess.run(
        [sys.executable, "-m", "lessons.check", *map(str, args)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip


def test_there_are_ten():
    assert NUMBERS == list(range(1, 11))


# Notebooks and their sources.


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_the_notebook_is_its_source_with_outputs(source):
    from lessons.build import as_notebook

    wanted, found = as_notebook(source), notebook_of(source)
    assert [(c.cell_type, c.source) for c in found.cells] == [
        (c.cell_type, c.source) for c in wanted.cells
    ], f"run `python -m lessons.build {int(source.name[:2])}`"
    ran = [cell for cell in found.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in ran] == list(range(1, len(ran) + 1))
    follow_the_rules(found)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_it_runs_from_top_to_bottom(source):
    from lessons.build import executed

    follow_the_rules(executed(source))


def follow_the_rules(notebook):
    outputs = outputs_of(notebook)
    assert not [out for out in outputs if out.output_type == "error"]
    warnings = [out.text for out in outputs if out.get("name") == "stderr"]
    assert not warnings, warnings
    assert [out for out in outputs if "image/png" in out.get("data", {})], "it has no figure"
    for cell in notebook.cells:
        text = "".join(printed(out) for out in cell.get("outputs", []))
        lines = text.splitlines()
        assert len(lines) <= LINES, f"a cell prints {len(lines)} lines:\n{text[:400]}"
        assert not [line for line in lines if len(line) > 400]
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                assert all(len(line) <= COLUMNS for line in output.text.splitlines())
    quoted_numbers_are_computed(notebook, "\n".join(map(printed, outputs)))


def quoted_numbers_are_computed(notebook, shown):
    """Numbers of two digits or more in the text stand in some output, too."""
    computed = set(re.findall(r"\d[\d,]*\.?\d*", shown))
    computed |= {text.replace(",", "").rstrip(".") for text in computed}
    for cell in notebook.cells:
        if cell.cell_type != "markdown":
            continue
        text = re.sub(r"```.*?```|`[^`]*`|\$[^$]*\$|\]\([^)]*\)|arXiv:?[ \d.]+|\(\d{4}\)", " ",
                      cell.source, flags=re.S)  # fmt: skip
        for quoted in re.findall(r"(?<![\w.])\d[\d,]*\.?\d*(?![\w])", text):
            plain = quoted.rstrip(".,").replace(",", "")
            if len(plain) > 1:
                assert plain in computed, f"{plain} is quoted, not computed: {cell.source[:200]}"


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_it_uses_public_names_only(source):
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Attribute):
            private = node.attr.startswith("_") and not node.attr.startswith("__")
            on_self = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            assert not private or on_self, f"line {node.lineno}: {node.attr}"
        elif isinstance(node, ast.ImportFrom):
            assert not [a.name for a in node.names if a.name.startswith("_")], node.lineno
            assert not [part for part in node.module.split(".") if part.startswith("_")]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_what_to_read_next_exists(source):
    text = source.read_text()
    files = re.findall(r"`((?:tinygrad_edu|gpt|lessons)/[\w/]+\.(?:py|toml))`", text)
    assert files
    for file in files:
        assert (ROOT / file).exists(), file
    for file, name in re.findall(r"`((?:tinygrad_edu|gpt)/[\w/]+\.py)`, (?:function|class) `(\w+)`",
                                 text):  # fmt: skip
        code = (ROOT / file).read_text()
        assert re.search(rf"^\s*(def|class) {name}\b", code, re.M), (file, name)


def test_the_index_names_every_lesson():
    text = (LESSONS / "README.md").read_text()
    for source in SOURCES:
        assert f"({source.stem}.ipynb)" in text
    assert (LESSONS / "index.png").stat().st_size > 10_000 and "index.png" in text


# Answers.


@pytest.mark.parametrize("number", NUMBERS)
def test_an_empty_exercise_is_told_what_to_do(number):
    run = run_check(number)
    assert run.returncode == 1, run.stdout + run.stderr
    assert f"lesson {number}: not begun" in run.stdout and not run.stderr
    assert len(run.stdout.strip()) > 40


@pytest.mark.parametrize("number", NUMBERS)
def test_the_solution_is_right(number):
    run = run_check(number, "--solution")
    assert (run.returncode, run.stderr) == (0, ""), run.stdout + run.stderr
    assert f"lesson {number}: right." in run.stdout


@pytest.mark.parametrize(("number", "old", "new", "says"), ANSWERS)
def test_a_wrong_answer_is_told_what_is_wrong(number, old, new, says, tmp_path, capsys):
    from lessons.check import file_of, passes

    solution = file_of(number, solution=True).read_text()
    assert solution.count(old) == 1, f"the solution should have this once: {old}"
    path = tmp_path / f"lesson_{number:02}.py"
    path.write_text(solution.replace(old, new))
    assert not passes(number, path)
    verdict = " ".join(capsys.readouterr().out.split())
    assert re.search(says, verdict), verdict


OTHER_STYLES = {  # what the solution has, what stands there
    1: {
        """
        t = math.tanh(self.data)
        return Value(t, (self,), (1 - t * t,))
""": """
        twice = self * Value(2)  # tanh(x) = 2 sigmoid(2 x) - 1
        s = 0.5 + 0.5 * math.tanh(twice.data / 2)
        return Value(s, (twice,), (s * (1 - s),)) * Value(2) + Value(-1)
"""
    },
    4: {
        "\n\ndef pack_b": "\nimport numba\n\n\n@numba.njit\ndef pack_b",
        "np.zeros((panels, depth, width), b.dtype)": """np.empty((panels, depth, width), b.dtype)
    packed[:] = 0""",
    },
    5: {
        """
    nbytes = FLOAT * 7 * parameters  # reads w, g, m and v; writes w, m and v
    return flops, nbytes, max(flops / peak, nbytes / bandwidth)
""": """
    nbytes = FLOAT * 7 * parameters
    if flops / nbytes < peak / bandwidth:  # left of the ridge
        return flops, nbytes, nbytes / bandwidth
    return flops, nbytes, flops / peak
"""
    },
    6: {
        """
        top = seen.max(axis=-1, keepdims=True, initial=-np.inf)
        top[top == -np.inf] = 0  # sees nothing: -inf - 0 is still -inf, -inf - -inf is NaN
        seen -= top
        np.exp(seen, out=seen)
        total = seen.sum(axis=-1, keepdims=True)
        with np.errstate(divide="ignore"):
            lse[..., i] = (np.log(total) + top)[..., 0]
        total[total == 0] = 1
        seen /= total
""": """
        lse[..., i] = np.logaddexp.reduce(seen, axis=-1, initial=-np.inf)
        seen -= np.maximum(lse[..., i, None], np.finfo(lse.dtype).min)
        np.exp(seen, out=seen)
""",
        "return scores, lse": "return [scores, lse]",
    },
    7: {
        """
    squares = (x * x).sum(axis=-1, keepdims=True)
    empty = squares.data == 0
    length = tg.where(empty, 1.0, squares).sqrt()
""": """
    empty = (x.data == 0).all(axis=-1, keepdims=True)
    x = tg.where(empty, 1.0, x)
    length = (x * x).sum(axis=-1, keepdims=True).sqrt()
""",
        """
    logs = shifted - shifted.exp().sum(axis=-1, keepdims=True).log()
""": """
    scores = shifted
    e = scores.exp()
    # probability = e / e.sum(axis=-1, keepdims=True)
    logs = scores - e.sum(axis=-1, keepdims=True).log()
""",
    },
}


@pytest.mark.parametrize("number", OTHER_STYLES)
def test_another_style_is_right_as_well(number, tmp_path, monkeypatch, capsys):
    from lessons import check

    text = check.file_of(number, solution=True).read_text()
    for old, new in OTHER_STYLES[number].items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    monkeypatch.setattr(check, "HERE", tmp_path)
    path = check.file_of(number)  # written where the exercise was
    path.parent.mkdir()
    path.write_text(text)
    assert check.passes(number, path), capsys.readouterr().out


def test_five_wrong_answers_for_each():
    counts = [sum(param.values[0] == number for param in ANSWERS) for number in NUMBERS]
    assert min(counts) >= 5, dict(zip(NUMBERS, counts))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def f(:\n", "line 1 is not Python"),
        ("1 / 0\n", "stops while it is read: ZeroDivisionError.*line 1"),
        ("import sys\nsys.exit(0)\n", "stops while it is read: SystemExit"),
        ("import os\nos._exit(0)\n", "ended the process"),
        ("import os\nos._exit(70)\n", "ended the process"),
        ("import os\nos.kill(os.getpid(), 9)\n", "ended the process"),
        ("x = 1\n", "there is no `Value`"),
    ],
)
def test_a_file_that_is_no_answer(text, says, tmp_path):
    path = tmp_path / "lesson_01.py"
    path.write_text(text)
    run = run_check(1, "--file", path)
    assert run.returncode == 1 and not run.stderr
    assert re.search(says, " ".join(run.stdout.split())), run.stdout


NUMPY_STOPS = """
import numpy as np

def evict(resident, order, now):
    return np.stack([resident, order])
"""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (NUMPY_STOPS, r"ValueError: .*\(line 5: return np\.stack"),
        ("def evict(resident, order, now):\n    raise KeyboardInterrupt\n",
         r"`evict` stopped when called with .*: KeyboardInterrupt: \(line 2: raise"),
        ("raise KeyboardInterrupt\n", r"while it is read: KeyboardInterrupt: \(line 1: raise"),
    ],
    ids=["in NumPy", "by Ctrl-C", "by Ctrl-C while it is read"],
)  # fmt: skip
def test_the_line_that_stopped(text, says, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(text)
    run = run_check(9, "--file", path)
    assert run.returncode == 1 and not run.stderr
    assert re.search(says, " ".join(run.stdout.split())), run.stdout


def test_ctrl_c_ends_all_checks(monkeypatch, capsys):
    from lessons import check

    def interrupted(*command, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(check.subprocess, "run", interrupted)
    assert check.main([]) == 130
    assert capsys.readouterr().err == ""


def test_an_answer_that_never_ends(tmp_path, monkeypatch, capsys):
    from lessons import check

    path = tmp_path / "lesson_01.py"
    path.write_text("while True:\n    pass\n")
    monkeypatch.setattr(check, "SECONDS", 3)
    assert check.main(["1", "--file", str(path)]) == 1
    verdict = " ".join(capsys.readouterr().out.split())
    assert "had not ended after 3 s" in verdict and "kernels are compiled" in verdict


def test_what_an_answer_prints_is_not_kept(capsys):
    from lessons import check

    def talks():
        for _ in range(100):
            print(10_000 * "-")
        return 1

    tracemalloc.start()
    try:
        assert check.call(talks) == 1
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()
    assert capsys.readouterr().out == ""


def test_any_file_may_hold_an_answer_but_no_folder(tmp_path):
    from lessons.check import file_of

    path = tmp_path / "answer.txt"
    path.write_text(file_of(2, solution=True).read_text())
    run = run_check(2, "--file", path)
    assert (run.returncode, run.stderr) == (0, ""), run.stdout
    run = run_check(2, "--file", tmp_path)
    assert (run.returncode, run.stderr) == (1, "") and "while it is read" in run.stdout


def test_an_answer_may_have_dataclasses(tmp_path, capsys):
    from lessons.check import file_of, passes

    text = file_of(2, solution=True).read_text()
    shapes = "@dataclasses.dataclass\nclass Shapes:\n    a: tuple\n"
    head = "from __future__ import annotations\n\nimport dataclasses\n\nimport numpy as np\n\n"
    path = tmp_path / "mine.py"
    path.write_text(text.replace("import numpy as np\n", head + shapes))
    assert passes(2, path), capsys.readouterr().out


def test_a_missing_file_and_a_missing_lesson(tmp_path):
    run = run_check(1, "--file", tmp_path / "nothing.py")
    assert run.returncode == 1 and "there is no file" in run.stdout
    run = run_check(11)
    assert run.returncode == 2 and "choose one of 1 to 10" in run.stderr


def test_a_broken_check_is_a_defect(tmp_path, monkeypatch, capsys):
    from lessons import check

    monkeypatch.setattr(check, "judge", lambda lesson, path: 1 // 0)
    status = tmp_path / "status"
    given = ["1", "--file", str(check.file_of(1)), "--status", str(status)]
    assert check.main(given) == check.DEFECT == int(status.read_text())
    assert "ZeroDivisionError" in capsys.readouterr().err
