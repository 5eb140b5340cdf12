"""What the README states about the code is recomputed here."""

import ast
import io
import re
import tokenize
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def code_lines(path: Path) -> int:
    """Lines that hold code: no blanks, comments or docstrings."""
    text = path.read_text(encoding="utf-8")
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        kind = tokenize.tok_name[token.type]
        if kind not in ("COMMENT", "NL", "NEWLINE", "INDENT", "DEDENT", "ENDMARKER"):
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                lines -= set(range(first.lineno, first.end_lineno + 1))
    return len(lines)


ROWS = re.findall(r"^\| `([\w/.]+)` \| (\d+) \|", README, re.MULTILINE)


def test_the_readme_lists_files():
    assert len(ROWS) > 10


@pytest.mark.parametrize("name, stated", ROWS)
def test_line_counts_in_the_readme_are_true(name, stated):
    assert code_lines(ROOT / name) == int(stated)


def test_every_source_file_is_in_the_table():
    files = [p for package in ("tinygrad_edu", "gpt") for p in (ROOT / package).rglob("*.py")]
    names = {str(p.relative_to(ROOT)) for p in files if p.name != "__init__.py"}
    assert names == {name for name, _ in ROWS}


def test_model_and_training_loop_stay_small():
    assert code_lines(ROOT / "gpt/model.py") + code_lines(ROOT / "gpt/train.py") < 352


def test_no_line_is_longer_than_100_columns():
    for package in ("tinygrad_edu", "gpt"):
        for path in (ROOT / package).rglob("*.py"):
            assert max(map(len, path.read_text(encoding="utf-8").splitlines())) <= 100, path


def test_dependencies_are_explained():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for requirement in project["dependencies"]:
        assert f"\n| {re.match('[a-z]+', requirement)[0]}" in README, requirement
