"""Every rung of the ladder, as plain Python and compiled, against NumPy in double precision."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinygrad_edu.kernels import ladder

SMALL = st.sampled_from([0, 1, 2, 3, 5])
EDGES = st.sampled_from([0, 1, 3, 4, 5, 63, 64, 65, 95, 97, 131, 255, 257])
NAMES = pytest.mark.parametrize("name", list(ladder.RUNGS))


def check(multiply, m, k, n, dtype):
    rng = np.random.default_rng([m, k, n])
    a, b = rng.standard_normal((m, k)).astype(dtype), rng.standard_normal((k, n)).astype(dtype)
    c = np.full((m, n), np.nan, dtype)  # what was in C must not matter
    multiply(a, b, c)
    limit = 4 * np.finfo(dtype).eps * max(k, 1)  # k products of order 1, each with its rounding
    np.testing.assert_allclose(c, a.astype(float) @ b, rtol=0, atol=4 * limit)


@NAMES
@settings(max_examples=10, deadline=None)
@given(m=SMALL, k=SMALL, n=SMALL)
def test_plain_python(name, m, k, n):
    check(ladder.RUNGS[name], m, k, n, np.float64)


@NAMES
@settings(max_examples=25, deadline=None)
@given(m=EDGES, k=EDGES, n=EDGES)
def test_compiled(name, m, k, n):
    check(ladder.compiled(name), m, k, n, np.float32)


@NAMES
def test_what_is_not_finite_comes_through(name):
    a, b = np.ones((5, 6), np.float32), np.ones((6, 70), np.float32)
    a[1, 2], a[3, 4], c = np.nan, np.inf, np.empty((5, 70), np.float32)
    ladder.compiled(name)(a, b, c)
    assert np.isnan(c[1]).all() and np.isposinf(c[3]).all() and (c[[0, 2, 4]] == 6).all()


def test_the_command_prints_every_rung():
    done = subprocess.run(
        [sys.executable, "-m", "tinygrad_edu.kernels.ladder", "64"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert [line.split()[0] for line in done.stdout.splitlines()[1:]] == [
        *ladder.RUNGS, "gemm", "numpy",
    ]  # fmt: skip
