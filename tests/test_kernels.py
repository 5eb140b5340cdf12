"""The kernels against plain loops, and the allocator.

Tolerances: the loops run in double precision, so a difference is the fast kernel's own rounding.
A sum of n terms of magnitude m is off by at most about n * eps * m; here n is below 100 and values
are of order 1, so 200 eps (of the kernel's dtype) covers sums, exp and division in a row.
"""

import gc
import math

import numpy as np
import pytest

from tinygrad_edu import functional as F
from tinygrad_edu.kernels import allocator, elementwise, naive
from tinygrad_edu.kernels import matmul as fast_matmul
from tinygrad_edu.kernels.philox import U32, U64, philox

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def values(dtype, *shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def same(fast, slow, dtype, scale=1.0):
    assert fast.dtype == dtype
    tolerance = 200 * np.finfo(dtype).eps * scale
    np.testing.assert_allclose(fast, slow, rtol=tolerance, atol=tolerance)


@DTYPES
@pytest.mark.parametrize("m, k, n", [(1, 1, 1), (3, 5, 2), (17, 33, 9), (2, 0, 3), (0, 2, 2)])
def test_matmul(dtype, m, k, n):
    a, b = values(dtype, m, k), values(dtype, k, n)
    same(fast_matmul(a, b), naive.matmul(a, b), dtype)
    same(fast_matmul(a.T.copy().T, b.T.copy().T), naive.matmul(a, b), dtype)
    batch = np.stack([a, -a])
    same(fast_matmul(batch, b), np.stack([naive.matmul(a, b), naive.matmul(-a, b)]), dtype)


@DTYPES
@pytest.mark.parametrize("t, s, causal", [(5, 5, True), (2, 6, True), (4, 3, False), (1, 1, True)])
@pytest.mark.parametrize("mask", [None, "boolean", "added"])
def test_attention(dtype, t, s, causal, mask):
    q, k, v = values(dtype, 2, t, 4), values(dtype, 2, s, 4), values(dtype, 2, s, 3)
    added = given = None
    if mask == "boolean":
        given = values(dtype, t, s, seed=9) > -0.5
        given[:, 0] = True
        added = np.where(given, 0, -1e30)
    elif mask == "added":
        given = added = values(dtype, t, s, seed=9)
    out = F.scaled_dot_product_attention(q, k, v, given, is_causal=causal, scale=0.4).data
    for head in range(2):
        slow = naive.attention(q[head], k[head], v[head], 0.4, causal, added)
        same(out[head], slow, dtype)


def test_attention_in_several_blocks_of_queries():
    q, k, v = (values(np.float64, 300, 2, seed=i) for i in range(3))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True).data
    same(out, naive.attention(q, k, v, 1 / math.sqrt(2), True), np.float64)


@DTYPES
@pytest.mark.parametrize("n, c", [(1, 1), (4, 7), (30, 3)])
def test_cross_entropy(dtype, n, c):
    z, ids = 5 * values(dtype, n, c), np.arange(n) % c
    slow = naive.cross_entropy(z, ids)
    same(F.cross_entropy(z, ids, reduction="none").data, slow, dtype, scale=5)
    same(F.cross_entropy(z, ids).data, slow.mean(), dtype, scale=5)


@DTYPES
def test_cross_entropy_of_large_logits(dtype):
    z = np.array([[1e4, 0.0, -1e4], [0.0, -1e4, 5e3]], dtype)
    np.testing.assert_allclose(
        F.cross_entropy(z, np.array([1, 2]), reduction="none").data, [1e4, 0]
    )


@DTYPES
def test_linear_cross_entropy(dtype):
    x, weight, ids = values(dtype, 6, 4), values(dtype, 5, 4), np.array([0, 1, 2, 3, 4, 4])
    out = F.linear_cross_entropy(x, weight, ids, reduction="none").data
    same(out, naive.linear_cross_entropy(x, weight, ids), dtype)


@DTYPES
@pytest.mark.parametrize("n, c", [(1, 2), (5, 7), (3, 64)])
def test_layer_norm(dtype, n, c):
    x, weight, bias = values(dtype, n, c), values(dtype, c), values(dtype, c, seed=1)
    slow = naive.layer_norm(x, weight, bias, 1e-5)
    same(F.layer_norm(x, c, weight, bias).data, slow, dtype, scale=10 if c == 2 else 1)


def test_exact_gelu_far_out():
    """Phi(x) in double precision: absolute error below 1e-15 for every x; 0 and 1 far out."""
    x = np.concatenate([np.linspace(-10, 10, 20001), [0.0, -0.0, 1e-300, 1e-12, 60.0, -60.0]])
    exact = np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in x])
    far = np.abs(x) > 1e-3
    assert np.abs(elementwise.gelu(x, False)[far] / x[far] - exact[far]).max() < 1e-15
    assert np.isnan(elementwise.gelu(np.array([np.nan]), False)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("tanh", [False, True])
def test_the_slope_of_gelu_where_the_square_of_x_overflows(dtype, tanh):
    huge = np.array([-1, 1]) * np.finfo(dtype).max ** np.array([[0.3], [0.6], [0.9], [1.0]])
    x, ones = huge.astype(dtype), np.ones(huge.shape, dtype)
    assert np.array_equal(elementwise.gelu(x, tanh), np.maximum(x, 0))
    assert np.array_equal(elementwise.gelu_backward(x, ones, tanh), x > 0)


def mask(p, key, shape):
    return elementwise.dropout(np.ones(shape, np.float32), p, key)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_mask_statistics(p):
    scale = mask(p, 7, (1000, 1000))
    kept = scale != 0
    # The share of a million draws has standard deviation sqrt(p (1 - p) / 1e6); 5 of them.
    assert abs(kept.mean() - (1 - p)) < 5 * math.sqrt(p * (1 - p) / 1e6)
    assert np.array_equal(np.unique(scale), np.array([0, 1 / (1 - p)], np.float32))
    for shift in (1, 63, 64, 65, 256):
        neighbours = np.corrcoef(kept.ravel()[:-shift], kept.ravel()[shift:])[0, 1]
        assert abs(neighbours) < 5e-3


def test_dropout_mask_follows_from_its_key():
    first, again, other = (mask(0.5, key, (300, 301)) for key in (1, 1, 2))
    assert np.array_equal(first, again)
    assert 0.4 < (first == other).mean() < 0.6
    assert np.array_equal(first.ravel()[:500], mask(0.5, 1, (500,)))
    assert not mask(1.0, 1, (100,)).any()


def test_philox_gives_the_published_numbers():
    """Known answers of Philox4x32 with 7 rounds, from the authors' Random123 library."""
    zeros = philox(U32(0), U32(0), U32(0), U32(0), U64(0))
    assert [f"{word:08x}" for word in zeros] == ["5f6fb709", "0d893f64", "4f121f81", "4f730a48"]


def test_allocator_recycles_a_block_when_its_last_array_dies():
    memory = allocator.Recycler()
    first = memory.empty((100, 1000), np.dtype(np.float32))
    address, mapped = first.ctypes.data, memory.mapped_bytes
    assert address % allocator.ALIGNMENT == 0 and first.flags.c_contiguous
    view = first.reshape(1000, 100)[::2].T
    del first
    gc.collect()
    assert memory.free_bytes == 0 and memory.live_bytes == mapped  # the view holds the block
    other = memory.empty((100, 1000), np.dtype(np.float32))
    assert not np.shares_memory(view, other) and memory.mapped_bytes == 2 * mapped
    del view
    assert memory.free_bytes == mapped
    again = memory.empty((1000, 100), np.dtype(np.float32))
    assert again.ctypes.data == address and memory.mapped_bytes == 2 * mapped


def test_allocator_is_flat_in_a_steady_state():
    memory = allocator.Recycler()

    def step():
        held = [memory.empty((n, 1000), np.dtype(np.float32)) for n in (10, 20, 400, 50, 20)]
        return sum(array.nbytes for array in held)

    step()
    mapped = memory.mapped_bytes
    for _ in range(50):
        step()
    assert memory.mapped_bytes == mapped and memory.live_bytes == 0


def test_allocator_holds_at_most_a_quarter_more_than_was_in_use():
    memory = allocator.Recycler(spare=0)
    for n in (100, 130, 170, 220, 290, 380, 500, 100, 640):  # one at a time, most of other sizes
        array = memory.empty((n, 1000), np.dtype(np.float32))
        assert memory.live_bytes + memory.free_bytes <= 1.25 * memory.peak_bytes
        del array


def test_allocator_leaves_small_and_empty_arrays_to_numpy():
    memory = allocator.Recycler()
    small, none = memory.empty((8,), np.dtype(np.int64)), memory.empty((0, 5), np.dtype(np.float32))
    assert small.shape == (8,) and none.shape == (0, 5) and memory.mapped_bytes == 0
