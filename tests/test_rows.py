"""A table used some rows at a time: the cuts, the loss over chunks of the vocabulary, lookups.

Chunks and blocks are made tiny here, so that small tables have several. Tolerances are those of
tests/test_fused_kernels.py: the naive twins compute in double precision.
"""

import contextlib
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinygrad_edu.kernels import blocks, cross_entropy, gather, launch, naive, set_num_threads
from tinygrad_edu.kernels.blocks import Rows

SIZES = st.sampled_from([0, 1, 2, 7, 13, 15, 16, 17, 31, 63, 64, 65, 97])
FEW_SIZES = st.sampled_from([0, 1, 2, 5, 13])
DTYPES = st.sampled_from([np.float32, np.float64])
KINDS = ["plain", "ignored", "weighted", "smoothed", "weighted and smoothed", "probabilities"]
several = settings(max_examples=60, deadline=None)


def values(dtype, *shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def close(fast, slow, dtype):
    slow = np.asarray(slow)
    assert fast.dtype == dtype and fast.shape == slow.shape
    limit = 300 * np.finfo(dtype).eps * max(1.0, np.abs(slow).max(initial=0.0))
    np.testing.assert_allclose(fast, slow, rtol=0, atol=limit)


class Fetched:
    """Rows that exist only while they are borrowed, and a record of who asked for what."""

    def __init__(self, array):
        self.hidden, self.asked, self.borrowed = array, [], None
        self.shape, self.dtype, self.ndim = array.shape, array.dtype, array.ndim

    def __len__(self):
        return len(self.hidden)

    def rows(self, start, stop):
        assert self.borrowed is None or self.borrowed() is None, "the chunk before is still held"
        chunk = self.hidden[start:stop].copy()
        self.asked.append((start, stop))
        self.borrowed = weakref.ref(chunk)
        return chunk


@contextlib.contextmanager
def small(unit_bytes, block_bytes=32 << 20):
    """Chunks of `unit_bytes` and blocks of logits of `block_bytes`, inside a with statement."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "UNIT_BYTES", unit_bytes)
        patch.setattr(cross_entropy, "LOGIT_BLOCK_BYTES", block_bytes)
        yield


def make_target(kind, n, v, dtype):
    ids = np.arange(n) * 7 % max(1, v)
    weight = np.abs(values(dtype, v, seed=5)) if "weighted" in kind else None
    if "ignored" in kind or "weighted" in kind:
        ids[::3] = -100
    if kind == "probabilities":
        ids = np.abs(values(dtype, n, v, seed=6))
        ids /= np.maximum(ids.sum(axis=1, keepdims=True), 1)
    smooth = 0.2 if "smoothed" in kind or kind == "probabilities" else 0.0
    return cross_entropy.Target(ids, weight, -100, smooth)


def coefficients(target, v):
    return naive.coefficients(
        target.classes, v, target.class_weight, target.ignore_index, target.label_smoothing
    )


def loss_and_gradients(x, weight, bias, target, grad, needs=(True, True, True), kept=None):
    """-> losses, lse, dx, dweight, dbias; the weight's gradient put together from its chunks."""
    losses, lse = cross_entropy.linear_cross_entropy(x, weight, bias, target, kept)
    parts, starts = [], []

    def add_weight_rows(start, block):
        starts.append(start)
        parts.append(block)

    dx, dbias = cross_entropy.linear_cross_entropy_backward(
        grad, x, weight, bias, lse, target, needs, add_weight_rows if needs[1] else None, kept
    )
    assert not kept  # used up
    lengths = [len(part) for part in parts]
    assert starts == [sum(lengths[:i]) for i in range(len(parts))]
    return losses, lse, dx, np.concatenate(parts) if needs[1] else None, dbias


@several
@given(st.integers(0, 5000), st.integers(0, 3000), st.integers(1, 100_000))
def test_row_units(rows, row_bytes, most_bytes):
    with small(most_bytes):
        units = blocks.row_units(rows, row_bytes)
    assert units == blocks.row_units(rows, row_bytes, most_bytes)
    assert [start for start, _ in units] == [0, *(stop for _, stop in units[:-1])]
    sizes = [stop - start for start, stop in units]
    assert sum(sizes) == rows and (rows == 0 or min(sizes) > 0)
    assert max(sizes) <= max(1, most_bytes // row_bytes if row_bytes else rows)
    if len(units) > 1:
        assert rows * row_bytes > most_bytes
        assert max(sizes) - min(sizes) <= 1


def test_row_units_of_a_real_vocabulary():
    units = blocks.row_units(50257, 768 * 4)
    assert len(units) == 10 and units[0] == (0, 5025) and units[-1] == (45231, 50257)


@pytest.mark.parametrize("shape", [(1, 70_000), (1, 1, 3, 40_001), (3, 2, 20_000), (5000, 3, 7)])
@pytest.mark.parametrize("other", ["broadcast", "transposed", "0-d"])
def test_blocks_of_a_formula_are_small_whatever_the_shape(shape, other):
    a, sizes = values(np.float64, *shape), []
    b = {
        "broadcast": values(np.float64, *shape[1:]),
        "transposed": values(np.float64, *shape[::-1]).T,
        "0-d": np.array(0.5),
    }[other]

    def formula(a, b):
        sizes.append(a.size)
        return a * b

    np.testing.assert_array_equal(blocks.blockwise(formula, a, b), a * b)
    assert max(sizes) <= blocks.BLOCK_BYTES // 8 and sum(sizes) == a.size


def test_rows_of_an_array():
    array = values(np.float32, 7, 3)
    table, ids = Rows(array), np.array([[6, 0], [2, 2]])
    assert (table.shape, table.dtype, table.ndim, len(table)) == ((7, 3), array.dtype, 2, 7)
    assert np.shares_memory(table.rows(2, 5), array)
    assert np.array_equal(table.rows(2, 5), array[2:5])
    assert np.array_equal(table.take(ids), array[ids])


@several
@given(
    FEW_SIZES, FEW_SIZES, SIZES, DTYPES, st.sampled_from(KINDS), st.booleans(),
    st.sampled_from([1, 5, 63, 64, 65]), st.sampled_from([1, 4, 1000]),
)  # fmt: skip
def test_linear_cross_entropy_over_chunks(n, k, v, dtype, kind, with_bias, unit, block):
    """Units of `unit` rows, blocks of `block` rows: one chunk, or many, or an edge of one."""
    n = n if v else 0
    size = np.dtype(dtype).itemsize
    x, weight, grad = values(dtype, n, k), values(dtype, v, k, seed=1), values(dtype, n, seed=2)
    bias = values(dtype, v, seed=3) if with_bias else None
    target = make_target(kind, n, v, dtype)
    with small(unit * max(1, k) * size, block * max(1, min(unit, v)) * size):
        table = Fetched(weight)
        needs = True, True, with_bias
        losses, lse, *grads = loss_and_gradients(x, table, bias, target, grad, needs)
        assert table.asked == 2 * blocks.row_units(v, k * size)
        again = loss_and_gradients(x, Rows(weight), bias, target, grad, needs, kept=[])
    for one, other in zip((losses, lse, *grads), again, strict=True):  # kept logits change no bit
        assert (one is None and other is None) or one.tobytes() == other.tobytes()
    a, more = coefficients(target, v), {"bias": bias} if with_bias else {}
    close(losses, naive.linear_cross_entropy(x, weight, a, **more), dtype)
    z = naive.matmul(x, weight.T) + (bias if with_bias else 0)
    close(lse, np.array([naive.log_sum_exp(list(row)) for row in z]), dtype)
    slow = naive.linear_cross_entropy_backward(grad, x, weight, a, **more)
    for got, expected, need in zip(grads, slow, needs, strict=True):
        assert (got is not None) == need
        if need:
            close(got, expected, dtype)


@pytest.mark.parametrize("kind", ["ids", "probabilities"])
def test_many_classes_with_smoothing_are_added_up_exactly(kind):
    """Of equal logits the loss is log(C), whatever the target."""
    n, c = 64, 4096
    classes = np.arange(n) if kind == "ids" else np.full((c, n), 1 / c, np.float32).T
    z = np.full((n, c), -9.9, np.float32)
    losses, _ = cross_entropy.cross_entropy(z, cross_entropy.Target(classes, None, -100, 0.1))
    np.testing.assert_allclose(losses, np.log(c), rtol=5e-6)


@pytest.mark.parametrize(
    "needs", [(True, False, False), (False, True, False), (False, False, True)]
)
def test_only_what_is_needed_is_computed(needs):
    x, weight, bias = (values(np.float64, *s) for s in [(5, 3), (20, 3), (20,)])
    target, grad = make_target("plain", 5, 20, np.float64), np.ones(5)
    with small(7 * 24):
        whole = loss_and_gradients(x, Rows(weight), bias, target, grad)
        some = loss_and_gradients(x, Rows(weight), bias, target, grad, needs)
    for got, expected, need in zip(some[2:], whole[2:], needs, strict=True):
        assert np.array_equal(got, expected) if need else got is None


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("unit", [1, 2, 3, 12])
def test_what_is_not_finite_comes_through(dtype, kind, unit):
    """One row, x = 1: the logits are the weight, so the bias's gradient is that of the logits."""
    nan, inf = np.nan, np.inf
    rows = [
        [-inf] * 6, [-inf] * 5 + [1], [1] + [-inf] * 5, [-inf, -inf, -inf, 2, -inf, 1],
        [nan] + [-inf] * 4 + [1], [1, 2, 3, 4, nan, 0], [-inf, -inf, nan, -inf, 0, 1],
        [inf, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, inf], [-inf, 1, inf, 2, inf, -inf],
        [-inf, nan, inf, 1, 1, 1], [1e4, -1e4, 0, 1e4, -inf, 5], [nan] * 6,
    ]  # fmt: skip
    x, grad, bias = np.ones((1, 1), dtype), np.full(1, 2, dtype), np.zeros(6, dtype)
    size = np.dtype(dtype).itemsize
    for row in rows:
        weight = np.array(row, dtype)[:, None]
        for own in range(6):
            target = make_target(kind, 1, 6, dtype)
            if target.is_ids and target.classes[0] >= 0:
                target.classes[0] = own
            with small(unit * size), np.errstate(all="ignore"):
                losses, _, _, _, dbias = loss_and_gradients(x, Rows(weight), bias, target, grad)
            a = coefficients(target, 6)
            with np.errstate(all="ignore"):
                slow = naive.linear_cross_entropy(x, weight, a)
                slow_dz = naive.cross_entropy_backward(grad, weight.T, a)[0]
            tolerance = {"rtol": 100 * np.finfo(dtype).eps, "atol": 1e-2 if 1e4 in row else 1e-6}
            np.testing.assert_allclose(losses, slow, **tolerance)
            np.testing.assert_allclose(dbias, slow_dz, **tolerance)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(97, 65, 701), (130, 24, 64), (1, 7, 65), (3, 300, 1009)])
def test_the_same_bits_on_any_threads_fetched_or_in_memory(dtype, kind, shape):
    n, k, v = shape
    x, weight, grad = values(dtype, n, k), values(dtype, v, k, seed=1), values(dtype, n, seed=2)
    bias, target = values(dtype, v, seed=3), make_target(kind, n, v, dtype)
    size, seen, before = np.dtype(dtype).itemsize, [], launch.threads()
    try:
        with small(200 * k * size, 64 * 200 * size):
            for threads in (1, 2):
                set_num_threads(threads)
                for table in (Rows(weight), Fetched(weight)):
                    results = loss_and_gradients(x, table, bias, target, grad)
                    seen.append([result.tobytes() for result in results])
    finally:
        set_num_threads(before)
    assert all(results == seen[0] for results in seen[1:])


def test_one_chunk_and_several_agree():
    x, weight, grad = values(np.float64, 9, 5), values(np.float64, 300, 5), np.ones(9)
    target = make_target("weighted and smoothed", 9, 300, np.float64)
    needs = True, True, False
    one = loss_and_gradients(x, Rows(weight), None, target, grad, needs)
    with small(64 * 40, 3 * 64 * 8):
        many = loss_and_gradients(x, Rows(weight), None, target, grad, needs)
    for a, b in zip(one[:4], many[:4], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)


@several
@given(
    SIZES, SIZES.filter(bool), SIZES, DTYPES, st.sampled_from([np.int64, np.int32, np.uint8]),
    st.sampled_from("CF"),
)  # fmt: skip
def test_sum_rows(n, v, c, dtype, id_dtype, order):
    grad, ids = values(dtype, n, c).copy(order), (np.arange(n) * 5 % v).astype(id_dtype)
    rows, sums = gather.sum_rows(grad, ids)
    slow_rows, slow = naive.sum_rows(grad, ids)
    assert rows.dtype == np.int64 and np.array_equal(rows, slow_rows)
    close(sums, slow, dtype)
    shaped = gather.sum_rows(grad.reshape(1, n, c), ids.reshape(1, n))
    assert shaped[1].tobytes() == sums.tobytes()
