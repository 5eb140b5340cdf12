"""matmul against NumPy in float64, over shapes, strides, types, thread counts and vector widths.

The tolerance is the textbook bound: a sum of k products, in any order, is off by at most about k
roundings of the sum of absolute values, so |error| <= (k + 4) * eps * (|a| @ |b| + |bias| + |c|).
It holds for every entry, and a wrong or missing term breaks it. The reference may be off by as
much in float64, hence the factor two.
"""

import gc
import os
import platform
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinygrad_edu import Tensor, kernels
from tinygrad_edu.kernels import allocator, elementwise, jit, launch
from tinygrad_edu.kernels.gemm import matmul
from tinygrad_edu.kernels.gemm.microkernel import CPU

numba = pytest.importorskip("numba")
EXAMPLES = int(os.environ.get("GEMM_EXAMPLES", "150"))
edges = [
    0, 1, 2, 5, 6, 7, 8, 9, 11, 12, 13, 15, 16, 17, 31, 32, 33, 47,
    48, 49, 63, 64, 65, 97, 127, 129,
]  # fmt: skip
sizes = st.sampled_from(edges)
layouts = st.sampled_from(["C", "F", "sliced", "reversed", "readonly"])
dtypes = st.sampled_from([np.float32, np.float64])


def array(rng, shape, dtype, layout):
    """Random values in an array of this shape whose strides follow the layout."""
    *lead, m, n = shape
    if layout == "F":
        return np.ascontiguousarray(rng.standard_normal((*lead, n, m)).astype(dtype)).swapaxes(
            -1, -2
        )
    if layout == "sliced":
        return rng.standard_normal((*lead, 2 * m + 1, 3 * n + 1)).astype(dtype)[..., 1::2, 1::3]
    x = rng.standard_normal(shape).astype(dtype)
    if layout == "reversed":
        return x[..., ::-1, ::-1]
    x.setflags(write=layout != "readonly")
    return x


def check(result, a, b, bias=None, start=None):
    k, eps = a.shape[-1], np.finfo(result.dtype).eps
    a, b = a.astype(np.float64), b.astype(np.float64)
    expected, scale = np.matmul(a, b), np.matmul(abs(a), abs(b))
    for term in (bias, start):
        if term is not None:
            expected, scale = expected + term, scale + abs(term)
    assert result.shape == expected.shape
    assert np.all(abs(result - expected) <= 2 * (k + 4) * eps * scale)


@settings(max_examples=EXAMPLES, deadline=None)
@given(sizes, sizes, sizes, layouts, layouts, dtypes, st.integers(0, 2**32))
def test_agrees_with_numpy(m, n, k, layout_a, layout_b, dtype, seed):
    rng = np.random.default_rng(seed)
    a, b = array(rng, (m, k), dtype, layout_a), array(rng, (k, n), dtype, layout_b)
    check(matmul(a, b), a, b)


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    sizes,
    sizes,
    sizes,
    layouts,
    st.sampled_from(["C", "F", "sliced", "reversed"]),
    dtypes,
    st.booleans(),
    st.sampled_from([None, "row", "one", "full"]),
    st.integers(0, 2**32),
)
def test_bias_and_accumulate(m, n, k, layout, layout_out, dtype, accumulate, bias, seed):
    rng = np.random.default_rng(seed)
    a, b = array(rng, (m, k), dtype, layout), array(rng, (k, n), dtype, "C")
    out = array(rng, (m, n), dtype, layout_out)
    shape = {None: None, "row": (n,), "one": (1,), "full": (m, n)}[bias]
    bias = None if shape is None else rng.standard_normal(shape).astype(dtype)
    before = out.copy() if accumulate else None
    assert matmul(a, b, out, bias=bias, accumulate=accumulate) is out
    check(out, a, b, bias, before)


@settings(max_examples=EXAMPLES // 3, deadline=None)
@given(
    st.sampled_from(
        [
            (130, 97, 800),
            (200, 300, 390),
            (97, 1000, 97),
            (8, 1031, 600),
            (1, 3001, 401),
            (1031, 3, 300),
            (500, 40, 1153),
            (40, 70, 1537),  # one more than two panels
            (130, 150, 140),  # too small to pack A, large enough for two threads
            (12, 384, 700),
        ]
    ),
    layouts,
    layouts,
    dtypes,
    st.integers(0, 2**32),
)
def test_large_enough_for_panels_and_threads(shape, layout_a, layout_b, dtype, seed):
    rng, (m, n, k) = np.random.default_rng(seed), shape
    a, b = array(rng, (m, k), dtype, layout_a), array(rng, (k, n), dtype, layout_b)
    bias = rng.standard_normal(n).astype(dtype)
    check(matmul(a, b, bias=bias), a, b, bias)


@pytest.mark.parametrize("cut", ["KC", "MC", "B_BYTES"])
def test_many_blocks(cut, monkeypatch):
    """Tiny cuts: many panels, blocks of rows and of columns; room used again and again."""
    from importlib import import_module

    gemm = import_module(matmul.__module__)
    monkeypatch.setattr(gemm, cut, 1)
    gemm._plan.cache_clear()
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((333, 1200), (1200, 515)))
    start = rng.standard_normal((333, 515)).astype(np.float32)
    out = start.copy()
    check(matmul(a, b, out, accumulate=True), a, b, start=start)
    gemm._plan.cache_clear()


@settings(max_examples=EXAMPLES // 2, deadline=None)
@given(
    st.sampled_from(
        [
            ((3,), (3,)),
            ((3,), ()),
            ((), (3,)),
            ((2, 3), (2, 3)),
            ((2, 1), (1, 3)),
            ((4, 2, 3), (2, 3)),
            ((2, 1, 3), (5, 1)),
            ((0,), ()),
            ((9,), (9,)),
        ]
    ),
    sizes,
    sizes,
    sizes,
    layouts,
    layouts,
    dtypes,
    st.booleans(),
    st.integers(0, 2**32),
)
def test_batches_broadcast(lead, m, n, k, layout_a, layout_b, dtype, with_bias, seed):
    rng = np.random.default_rng(seed)
    a, b = (
        array(rng, (*lead[0], m, k), dtype, layout_a),
        array(rng, (*lead[1], k, n), dtype, layout_b),
    )
    bias = rng.standard_normal(n).astype(dtype) if with_bias else None
    check(matmul(a, b, bias=bias), a, b, bias)


@pytest.mark.parametrize(
    "shape", [(9, 130, 120, 200), (12, 64, 64, 32), (48, 64, 64, 32), (3, 150, 150, 150)]
)
def test_batches_of_heads(shape):
    """Attention's products: heads are strided views, (B, T, heads, size) -> (B, heads, T, size)."""
    heads, rows, columns, k = shape
    rng = np.random.default_rng(1)
    q = rng.standard_normal((2, rows, heads, k)).astype(np.float32).transpose(0, 2, 1, 3)
    key = rng.standard_normal((2, columns, heads, k)).astype(np.float32).transpose(0, 2, 1, 3)
    check(matmul(q, key, transpose_b=True), q, key.swapaxes(-1, -2))


def test_vectors_and_transposes():
    rng = np.random.default_rng(2)
    a, b, v = (rng.standard_normal(shape) for shape in ((7, 5), (7, 9), (7,)))
    np.testing.assert_allclose(matmul(a, b, transpose_a=True), a.T @ b)
    np.testing.assert_allclose(matmul(v, b), v @ b)
    np.testing.assert_allclose(matmul(a.T, v), a.T @ v)
    np.testing.assert_allclose(matmul(v, v), v @ v)


@pytest.mark.parametrize("shape", [(5, 7, 6), (1, 300, 40), (40, 40, 40), (150, 140, 160)])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_come_through(shape, bad):
    m, n, k = shape
    for dtype in (np.float32, np.float64):
        for transposed in (False, True):
            a, b = np.ones((m, k), dtype), np.ones((n, k) if transposed else (k, n), dtype)
            a[m // 2, k - 1] = bad
            b = b.T if transposed else b
            with np.errstate(invalid="ignore"):
                np.testing.assert_array_equal(matmul(a, b), a @ b)
                b[k // 2, n - 1] = bad
                np.testing.assert_array_equal(matmul(a, b), a @ b)


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="one thread only")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_same_bits_with_any_number_of_threads(dtype, monkeypatch):
    rng = np.random.default_rng(3)
    shapes = [
        ((500, 900), (900, 700)),
        ((1, 700), (700, 900)),
        ((5, 700), (700, 901)),
        ((900, 700), (700, 3)),
        ((12, 64, 64), (12, 64, 32)),
        ((9, 200, 190), (9, 190, 180)),
        ((90, 4000), (4000, 65)),
        ((500, 600), (600, 90)),
        ((70, 900), (900, 800)),
        ((130, 140), (140, 150)),
        ((12, 700), (700, 384)),
        ((301, 64), (64, 200)),
        ((9, 100, 110), (9, 110, 120)),
        ((1, 7), (7, 40000)),
        ((1, 2000), (2000, 333)),
        ((1, 9000), (9000, 70)),
    ]
    for one, other in shapes:
        for layout in ("C", "F"):
            a, b = array(rng, one, dtype, layout), array(rng, other, dtype, layout)
            for product in (matmul, kernels.matmul):  # which has a shorter way for short ones
                results = []
                for threads in (1, 2, 2, *range(3, min(5, launch.most_threads() + 1))):
                    monkeypatch.setattr(launch, "_threads", threads)
                    out = np.full((*one[:-1], other[-1]), np.nan, dtype)  # what is left out shows
                    results.append(product(a, b, out).tobytes())
                check(out, a, b)
                assert set(results) == {results[0]}, (one, other, layout)


@pytest.mark.parametrize(
    "shapes, order", [(((64, 64), (64, 64)), "F"), (((1, 300), (300, 700)), "C")]
)
def test_python_threads_do_not_share_workspace(shapes, order):
    """The kernels let other Python threads run, so each needs room of its own."""
    rng = np.random.default_rng(8)
    work = []
    for _ in range(2):
        a, b = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
        b = np.asarray(b, order=order)  # F: packed; C: half of the sum waits in workspace
        work.append((a, b, matmul(a, b)))
    wrong = []

    def many(a, b, expected):
        for _ in range(3000):
            if not np.array_equal(kernels.matmul(a, b), expected):
                wrong.append(1)

    threads = [threading.Thread(target=many, args=one) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_workspace_is_kept_unless_it_counts():
    """Between products of one size nothing is allocated but results; a budget sees workspace."""
    a = np.ones((300, 400), np.float32)
    out = np.empty((300, 300), np.float32)
    matmul(a, a.T, out)
    gc.collect()
    before = allocator.RECYCLER.live_bytes, allocator.RECYCLER.mapped_bytes
    matmul(a, a.T, out)
    assert (allocator.RECYCLER.live_bytes, allocator.RECYCLER.mapped_bytes) == before
    counted = allocator.Recycler()
    with allocator.memory_from(counted):
        matmul(a, a.T, out)
    assert counted.peak_bytes > 300 * 400 * 2 and counted.live_bytes == 0


@pytest.mark.parametrize("lead", [(), (8,)])
def test_few_terms_and_many_columns_where_memory_counts(lead):
    """A single row needs room for as many columns."""
    a, b = (np.ones((*lead, *shape), np.float32) for shape in ((1, 13), (13, 40000)))
    counted = allocator.Recycler()
    with allocator.memory_from(counted):
        assert (matmul(a, b) == 13).all()
        assert (kernels.matmul(a, b) == 13).all()
    assert type(counted.peak_bytes) is int and counted.live_bytes == 0


@pytest.mark.parametrize("rows, stride", [(1, 1), (8, 1), (8, 2)])
def test_long_sums_need_no_more_workspace_than_few_rows(rows, stride):
    a, b = np.ones((rows, 200_000 * stride), np.float32)[:, ::stride], np.ones((200_000, 1), "f")
    counted = allocator.Recycler()
    with allocator.memory_from(counted):
        assert (matmul(a, b) == 200_000).all()
    assert counted.peak_bytes <= 2 * a.size * a.itemsize * launch.threads()


def test_out_may_overlap_an_operand():
    x = np.random.default_rng(4).standard_normal((70, 70))
    expected = x @ x
    np.testing.assert_allclose(matmul(x, x, out=x), expected)


@pytest.mark.parametrize(
    "call, error",
    [
        (lambda x: matmul(x, x.astype(np.float64)), "float32 and float64"),
        (lambda x: matmul(x.astype(int), x.astype(int)), "int64"),
        (lambda x: matmul(x, x[:2]), "inner sizes differ"),
        (lambda x: matmul(Tensor(x), x), "NumPy arrays, got Tensor"),
        (lambda x: matmul(x, Tensor(x)), "NumPy arrays, got Tensor"),
        (lambda x: matmul(x, x, bias=Tensor(x)), "NumPy arrays, got Tensor"),
        (lambda x: matmul(x, x, out=Tensor(x)), "NumPy arrays, got Tensor"),
        (lambda x: kernels.matmul(Tensor(x), x), "NumPy arrays, got Tensor"),
        (lambda x: kernels.matmul(x, x, Tensor(x)), "NumPy arrays, got Tensor"),
        (lambda x: [kernels.matmul(y, y) for y in (x, x.astype(">f4"))], "got >f4"),
        (lambda x: matmul(x, x, out=np.empty((2, 3), np.float32)), "out has shape"),
        (lambda x: matmul(x, x, accumulate=True), "not given"),
    ],
)
def test_mistakes_are_named(call, error):
    with pytest.raises((TypeError, ValueError), match=error):
        call(np.ones((3, 3), np.float32))


def test_steady_state_allocates_no_workspace():
    import tracemalloc

    a, b = np.ones((300, 400), np.float32), np.ones((400, 500), np.float32)
    out = matmul(a, b)
    tracemalloc.start()
    for _ in range(5):
        matmul(a, b, out=out)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000


def run(code, **environment):
    here = Path(__file__).resolve().parent
    env = {**os.environ, "PYTHONPATH": str(here.parent), **environment}
    return subprocess.run(
        [sys.executable, *code], env=env, capture_output=True, text=True, check=False
    )


def succeed(code, **environment):
    done = run(code, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@given(
    m=st.sampled_from([0, 1, 5, 12, 64, 97]),
    k=st.sampled_from([0, 1, 33, 500]),
    n=st.sampled_from([0, 1, 3, 31, 64, 333]),
    dtype=st.sampled_from([np.float32, np.float64]),
    transposed=st.booleans(),
    gelu=st.booleans(),
    with_keep=st.booleans(),
    with_residual=st.booleans(),
    strided=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_bias_gelu_and_residual_on_the_way_out(
    m, k, n, dtype, transposed, gelu, with_keep, with_residual, strided
):
    rng = np.random.default_rng([m, k, n])
    a, bias = rng.standard_normal((m, k)).astype(dtype), rng.standard_normal(n).astype(dtype)
    b = rng.standard_normal((n, k)).astype(dtype).T if transposed else rng.standard_normal((k, n))
    b = b.astype(dtype, copy=False)
    out = np.empty((m, 2 * n), dtype)[:, ::2] if strided else None
    keep = np.empty((m, n), dtype) if gelu and with_keep else None
    residual = rng.standard_normal((m, n)).astype(dtype) if with_residual else None
    got = matmul(a, b, out, bias=bias, gelu=gelu, keep=keep, residual=residual)
    before = a.astype(float) @ b + bias
    exact = elementwise.gelu(before, tanh=True) if gelu else before
    exact = exact if residual is None else exact + residual
    limit = 40 * np.finfo(dtype).eps * max(1, k) ** 0.5  # a sum of k products of order 1
    np.testing.assert_allclose(got, exact, rtol=0, atol=4 * limit)
    if keep is not None:
        np.testing.assert_allclose(keep, before, rtol=0, atol=4 * limit)


def test_gelu_and_residual_do_not_accumulate():
    x = np.ones((2, 2), np.float32)
    with pytest.raises(ValueError, match="does not go with gelu"):
        matmul(x, x, x.copy(), gelu=True, accumulate=True)
    with pytest.raises(ValueError, match="residual is float32"):
        matmul(x, x, residual=np.ones((3, 2), np.float32))


def test_import_compiles_nothing():
    code = (
        "from numba.core import event\n"
        "with event.install_recorder('numba:compile') as compiled:\n"
        "    import tinygrad_edu.kernels.gemm.entries\n"
        "assert not compiled.buffer, compiled.buffer"
    )
    succeed(["-c", code])


def test_a_product_compiles_its_own_way_alone():
    code = (
        "from tinygrad_edu.kernels.gemm import entries, matmul; import numpy as np\n"
        "x = np.ones((200, 200), np.float32); matmul(x, x)\n"
        "ways = entries.matmul_blocked, entries.matmul_direct, entries.matmul_thin\n"
        "assert [list(way.compiled) for way in ways] == [['f'], [], []]"
    )
    succeed(["-c", code])


def test_unwritable_cache(tmp_path):
    """Every candidate folder is unusable (a file stands in its place): kernels work, uncached."""
    blocked = tmp_path / "file"
    blocked.write_text("")
    code = (
        "from tinygrad_edu.kernels import jit\n"
        "from tinygrad_edu.kernels.gemm import matmul\nfrom pathlib import Path\n"
        "import numpy as np\n"
        "x = np.ones((3, 3), np.float32)\n"
        f"jit.os.path.expanduser = lambda path: {str(blocked)!r}\n"
        f"jit.Path = lambda path: Path({str(blocked)!r})\n"
        "assert jit.cache_folder() is None; assert (matmul(x, x) == 3).all()"
    )
    succeed(["-c", code], XDG_CACHE_HOME=str(blocked))


@pytest.mark.parametrize("kernel", ["gemm.matmul(x, x)", "elementwise.gelu(x, True)"])
def test_kernels_that_must_not_be_compiled_say_so(kernel):
    """Whoever sets the variable to look into a function of their own."""
    code = "from tinygrad_edu.kernels import elementwise, gemm; import numpy as np\n"
    code += "x = np.ones((3, 3))\n" + kernel
    done = run(["-c", code], NUMBA_DISABLE_JIT="1")
    assert "RuntimeError: kernels only run compiled, and NUMBA_DISABLE_JIT is set" in done.stderr


def test_cache_is_reused(tmp_path):
    code = "from tinygrad_edu.kernels.gemm import matmul; import numpy as np\n"
    code += "x = np.ones((200, 200), np.float32); assert (matmul(x, x) == 200).all()"
    seen = []
    for _ in range(2):
        succeed(["-c", code], NUMBA_CACHE_DIR=str(tmp_path))
        seen.append({f: f.stat().st_mtime_ns for f in tmp_path.rglob("*") if f.is_file()})
    assert seen[0] and seen[0] == seen[1]  # the second process compiled, and wrote, nothing


def test_an_edit_after_the_import_does_not_put_old_code_into_the_cache_of_the_new(tmp_path):
    root, ignore = Path(__file__).resolve().parents[1], shutil.ignore_patterns("__pycache__")
    package = shutil.copytree(root / "tinygrad_edu", tmp_path / "tinygrad_edu", ignore=ignore)
    (package / "kernels/.#launch.py").symlink_to("an editor's lock, which is no file")
    begin, end = "from tinygrad_edu.kernels import jit\n", "print(jit.cache_folder())"
    edit = "with open(jit.HERE / 'philox.py', 'a') as source: source.write('# edited')\n"
    found = []
    for code in (begin + end, begin + edit + end, begin + end):
        found.append(succeed(["-P", "-c", code], PYTHONPATH=str(tmp_path), NUMBA_CACHE_DIR=""))
    assert found[0] == found[1] != found[2]


TASK = """
from tinygrad_edu.kernels.launch import task

@task
def nothing(arrays, sizes, numbers, piece, slot):
    pass

for dtype in "fd":
    nothing.compile(dtype)
"""


def test_each_element_type_and_cpu_has_an_index_and_a_damaged_one_is_passed_over(tmp_path):
    """Two processes that add to one at the same time may number two kernels alike: then either
    would run the other's machine code, now and for good. A power cut may leave empty files."""
    (tmp_path / "script.py").write_text(TASK)
    for _ in range(2):
        for cpu in ({}, {"NUMBA_CPU_NAME": "generic"}):
            succeed([str(tmp_path / "script.py")], NUMBA_CACHE_DIR=str(tmp_path), **cpu)
        assert len(list(tmp_path.rglob("*nothing*.1.nbc"))) == 4
        assert not list(tmp_path.rglob("*.2.nbc"))
        for file in tmp_path.rglob("*.nbi"):
            file.write_bytes(b"")


def test_a_thread_that_compiles_waits_for_one_that_does():
    """Meanwhile Numba's folder is that of the other's kernel; afterwards, what it was before."""
    before, found, entered, left = numba.config.CACHE_DIR, [], threading.Event(), threading.Event()

    def second(cache):
        entered.set()
        left.wait(60)
        return lambda function: found.append(numba.config.CACHE_DIR)

    def first(cache):
        other.start()
        entered.wait(0.5)
        return lambda function: None

    other = threading.Thread(target=jit.cached, args=(second, None, "d"))
    jit.cached(first, None, "f")
    left.set()
    other.join()
    assert found == [os.path.join(jit.cache_folder(), "float64")]
    assert numba.config.CACHE_DIR == before


AVX2 = "+sse,+sse2,+sse3,+ssse3,+sse4.1,+sse4.2,+popcnt,+avx,+avx2,+fma,+bmi,+bmi2,+f16c,+lzcnt"


@pytest.mark.cpus
def test_narrower_vectors(tmp_path):
    """The same tests with the CPU's features restricted: another tile, another vector width."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip("x86 features")
    chosen = "agrees or bias or large or many or batches or nan or attention or norms or gelu"
    fused = str(Path(__file__).with_name("test_fused_kernels.py"))

    def passes(name, features, tile):
        env = {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features, "GEMM_EXAMPLES": "60"}
        code = "from tinygrad_edu.kernels.gemm.microkernel import CPU; print(tuple(CPU)[:3])"
        done = run(["-c", code], **env)
        assert done.stdout.strip() == str(tile), done.stderr
        arguments = ["-m", "pytest", "-qx", "-p", "no:cacheprovider", "-k", chosen, __file__, fused]
        done = run(arguments, **env, NUMBA_CACHE_DIR=str(tmp_path / name))
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]

    cpus = [("haswell", AVX2, (32, 6, 2)), ("generic", "", (16, 4, 2))]
    with ThreadPoolExecutor() as pool:  # side by side, as most of it is compiling, on one thread
        others = [cpu for cpu in cpus if cpu[2] != CPU[:3]]  # all other tests use this machine's
        assert list(pool.map(lambda cpu: passes(*cpu), others)) == [None] * len(others)


EXTRA_SHAPES = {"2-D": ((40, 30), (30, 50)), "batched": ((2, 40, 30), (2, 30, 50))}


@pytest.mark.parametrize("shapes", EXTRA_SHAPES.values(), ids=EXTRA_SHAPES)
def test_what_is_read_may_share_memory_with_what_is_written(shapes):
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    product = a @ b
    x = rng.standard_normal(product.shape).astype(np.float32)
    out = x.copy()
    assert np.allclose(matmul(a, b, out, residual=out), product + x, atol=1e-4)
    keep = x.copy()
    got = matmul(a, b, gelu=True, keep=keep, residual=keep)
    assert np.allclose(keep, product, atol=1e-4)
    assert np.allclose(got, elementwise.gelu(product, tanh=True) + x, atol=1e-4)


@pytest.mark.parametrize("shapes", EXTRA_SHAPES.values(), ids=EXTRA_SHAPES)
@pytest.mark.parametrize("depth", [0, 30])
def test_keep_and_residual_fit_the_product(shapes, depth):
    a, b = (np.ones(shape, np.float32) for shape in shapes)
    a, b = a[..., :depth], b[..., :depth, :]
    good = np.zeros((*a.shape[:-1], 50), np.float32)
    for bad in (good[..., :1], good.astype(np.float64), good[None]):
        with pytest.raises(ValueError, match="keep is"):
            matmul(a, b, gelu=True, keep=bad)
        with pytest.raises(ValueError, match="residual is"):
            matmul(a, b, residual=bad)
    with pytest.raises(ValueError, match="keep is read-only"):
        matmul(a, b, gelu=True, keep=np.frombuffer(good.tobytes(), np.float32).reshape(good.shape))
    keep = good.copy()
    matmul(a, b, keep=keep)
    assert np.array_equal(keep, a @ b)


def test_vectors_have_no_keep_or_residual():
    x = np.ones(3, np.float32)
    with pytest.raises(ValueError, match=r"go with matrices, got \(3,\) @ \(3,\)"):
        matmul(x, x, residual=np.ones((), np.float32))


@pytest.mark.parametrize("shape", [(), (3,), (15,), (3, 5, 1), (1, 3, 5)], ids=str)
def test_an_out_of_other_axes_is_refused(shape):
    with pytest.raises(ValueError, match="out has shape"):
        kernels.matmul(np.ones((3, 4), "f"), np.ones((4, 5), "f"), np.zeros(shape, "f"))
