"""The house: which file may import which, what importing costs, and how large files may grow."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("tinygrad_edu", "gpt", "lessons")
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]

# A file imports from its own row and those above. Rows: kernels -> ops -> tape and tensor -> what
# is built on tensors -> memory -> gpt -> lessons.
ROWS = [
    ("tinygrad_edu.kernels",),
    ("tinygrad_edu.ops",),
    (
        "tinygrad_edu.locks",
        "tinygrad_edu.tape",
        "tinygrad_edu.tensor",
        "tinygrad_edu.several",
        "tinygrad_edu.function",
    ),
    (
        "tinygrad_edu.storage",
        "tinygrad_edu.arguments",
        "tinygrad_edu.nn",
        "tinygrad_edu.functional",
        "tinygrad_edu.recompute",
        "tinygrad_edu.gradcheck",
        "tinygrad_edu.differences",
        "tinygrad_edu.graph",
        "tinygrad_edu.optim",
    ),
    ("tinygrad_edu.memory",),
    ("tinygrad_edu",),  # the package itself: what users import
    ("gpt",),
    ("lessons",),
]
# A lazy import, inside a function, that points the other way: a Tensor can draw itself.
ALLOWED = {("tinygrad_edu.tensor", "tinygrad_edu.graph")}


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def row(module):
    """The row of the longest entry that `module` is or lies below; None outside the house."""
    fits = [
        (len(entry), i)
        for i, entries in enumerate(ROWS)
        for entry in entries
        if module == entry or module.startswith(entry + ".")
    ]
    if fits and max(fits)[1] == 5 and module != "tinygrad_edu":
        raise AssertionError(f"{module} has no place in the house: give it one in ROWS")
    return max(fits)[1] if fits else None


def imports(path, known):
    """Every module that `path` imports, anywhere in it, by its absolute name."""
    module = module_of(path)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(parts[: len(parts) + 1 - node.level]) if node.level else ""
            source = ".".join(filter(None, (base, node.module or "")))
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                yield inner if inner in known else source


KNOWN = {module_of(path) for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_go_one_way(path):
    module = module_of(path)
    for target in imports(path, KNOWN):
        if row(target) is None or (module, target) in ALLOWED:
            continue
        assert row(target) <= row(module), f"{module} imports {target}"


def test_the_reader_of_imports_sees_them(tmp_path):
    folder = tmp_path / "tinygrad_edu" / "ops"
    folder.mkdir(parents=True)
    file = folder / "x.py"
    file.write_text("from .. import nn\nfrom ..kernels import empty\nimport gpt.model\n")
    before = globals()["ROOT"]
    try:
        globals()["ROOT"] = tmp_path
        found = list(imports(file, KNOWN))
    finally:
        globals()["ROOT"] = before
    assert found == ["tinygrad_edu.nn", "tinygrad_edu.kernels", "gpt.model"]
    assert [row(name) for name in found] == [3, 0, 6]
    assert row("numpy") is None


@pytest.mark.parametrize("path", [p for p in FILES if "kernels" in p.parts], ids=module_of)
def test_compiled_functions_are_not_defined_in_functions(path):
    """Two of one name may be taken for each other when they are read from disk: see jit.py."""
    tree = ast.parse(path.read_text())
    for outer in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        for inner in (node for node in ast.walk(outer) if isinstance(node, ast.FunctionDef)):
            named = {ast.unparse(decorator).split("(")[0] for decorator in inner.decorator_list}
            assert inner is outer or not named & {"njit", "task"}, f"{outer.name}: {inner.name}"


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_no_pickle_and_no_file_over_700_lines(path):
    banned = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal"}
    assert not banned & {name.split(".")[0] for name in imports(path, KNOWN)}
    text = path.read_text()
    assert "allow_pickle=True" not in text
    assert len(text.splitlines()) <= 700


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_is_light(package):
    """No compiled function, no plotting, no other framework: these load when they are used."""
    script = f"""
import sys
import {package}
heavy = "matplotlib torch pandas transformers tokenizers IPython"
print(*(name for name in heavy.split() if name in sys.modules))
numba = sys.modules.get("numba")
if numba is not None:
    import gc
    from numba.core.registry import CPUDispatcher
    ours = [x for x in gc.get_objects() if isinstance(x, CPUDispatcher)]
    ours = [x for x in ours if x.py_func.__module__.startswith(("tinygrad_edu", "gpt"))]
    print(*(x.py_func.__name__ for x in ours if x.signatures))
"""
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == []
    assert run.stderr == ""


def test_every_public_name_exists():
    import tinygrad_edu as tg

    names = """Tensor where maximum minimum concatenate stack einsum no_grad functional Function
    checkpoint gradcheck nn optim set_num_threads set_matmul_backend detect_nan""".split()
    assert [name for name in names if not hasattr(tg, name)] == []
    assert sorted(tg.__all__) == tg.__all__
    functional = """linear embedding layer_norm rms_norm gelu softmax cross_entropy
    linear_cross_entropy dropout scaled_dot_product_attention self_attention
    split_heads merge_heads""".split()
    assert [name for name in functional if not hasattr(tg.functional, name)] == []
    layers = """Module Parameter Linear Embedding LayerNorm RMSNorm Dropout Sequential
    ModuleList""".split()
    assert [name for name in layers if not hasattr(tg.nn, name)] == []
    for name in """data grad shape ndim dtype size T requires_grad backward zero_grad detach numpy
    item exp log tanh sigmoid relu gelu sqrt abs clip sum mean var max min argmax reshape transpose
    permute squeeze unsqueeze split softmax log_softmax""".split():
        assert hasattr(tg.Tensor([1.0]), name), name
