"""Every fused kernel against its naive twin, over awkward shapes, both dtypes, and hostile numbers.

Tolerances: the twins compute in double precision, so a difference is the kernel's own rounding. A
sum of n terms of magnitude m is off by about sqrt(n) * eps * m, and a product of a few such factors
by a few times that; 300 eps times the largest value covers every sum here (n below 200).
"""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinygrad_edu.kernels import (
    attention,
    cross_entropy,
    elementwise,
    gather,
    launch,
    naive,
    normalize,
    update,
    vector_math,
)

# empty, single, primes, and one less and more than lanes, tiles and blocks
SIZES = st.sampled_from([0, 1, 2, 7, 13, 15, 16, 17, 31, 63, 64, 65, 97])
FEW_SIZES = st.sampled_from([0, 1, 2, 5, 12, 13, 33])
DTYPES = st.sampled_from([np.float32, np.float64])
LAYOUTS = st.sampled_from(["contiguous", "transposed", "strided"])
several = settings(max_examples=40, deadline=None)


def values(dtype, *shape, seed=0, layout="contiguous"):
    x = np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)
    if layout == "transposed":
        return np.asfortranarray(x)
    if layout == "strided":
        return np.repeat(x, 2, axis=-1)[..., ::2] if x.ndim else x
    return x


def close(fast, slow, dtype):
    slow = np.asarray(slow)
    assert fast.dtype == dtype and fast.shape == slow.shape
    limit = 300 * np.finfo(dtype).eps * max(1.0, np.abs(slow).max(initial=0.0))
    np.testing.assert_allclose(fast, slow, rtol=0, atol=limit)


@several
@given(SIZES, SIZES, DTYPES, LAYOUTS, st.booleans())
def test_gelu(n, c, dtype, layout, tanh):
    x, grad = 3 * values(dtype, n, c, layout=layout), values(dtype, n, c, seed=1)
    close(elementwise.gelu(x, tanh), np.vectorize(naive.gelu, otypes=[float])(x, tanh), dtype)
    slope = np.vectorize(naive.gelu_slope, otypes=[float])(x, tanh)
    close(elementwise.gelu_backward(x, grad, tanh), grad * slope, dtype)


@several
@given(SIZES, FEW_SIZES, DTYPES, LAYOUTS, st.sampled_from([0.1, 0.5, 1.0]))
def test_dropout(n, c, dtype, layout, p):
    x, key = values(dtype, n, c, layout=layout), 2**40 + 17
    slow = naive.dropout(x, p, key) if p < 1 else np.zeros(x.shape)
    close(elementwise.dropout(x, p, key), slow, dtype)


@several
@given(SIZES, SIZES, DTYPES)
def test_add_and_column_sums(n, c, dtype):
    a, b = values(dtype, n, c), values(dtype, n, c, seed=1)
    assert np.array_equal(elementwise.add(a, b), a + b)
    close(normalize.column_sums(a), a.astype(float).sum(axis=0), dtype)


@several
@given(SIZES, SIZES.filter(bool), DTYPES, LAYOUTS, st.booleans(), st.booleans())
def test_norms(n, c, dtype, layout, center, affine):
    x, grad = values(dtype, n, c, layout=layout), values(dtype, n, c, seed=1, layout=layout)
    weight, bias = values(dtype, c, seed=2), values(dtype, c, seed=3)
    one, zero = np.ones(c), np.zeros(c)
    w, b = (weight, bias if center else zero) if affine else (one, zero)
    given_w, given_b = (weight, bias if center else None) if affine else (None, None)
    y, mean, rstd = normalize.layer_norm(x, given_w, given_b, 1e-2, center)
    slow = naive.layer_norm(x, w, b, 1e-2) if center else naive.rms_norm(x, w, 1e-2)
    close(y, slow, dtype)
    needs = True, affine, affine and center
    fast = normalize.layer_norm_backward(grad, x, given_w, mean, rstd, needs)
    for got, expected, need in zip(
        fast, naive.layer_norm_backward(grad, x, w, 1e-2, center), needs, strict=True
    ):
        assert (got is not None) == need
        if need:
            close(got, expected, dtype)


@pytest.mark.parametrize("dtype, scale", [(np.float32, 2.0**100), (np.float64, 2.0**1000)])
@pytest.mark.parametrize("center", [True, False])
def test_norms_of_numbers_whose_squares_overflow(dtype, scale, center):
    """They are those of small ones, and the gradient is that much smaller."""
    x, grad, weight = values(dtype, 5, 97), values(dtype, 5, 97, seed=1), values(dtype, 97, seed=2)
    found = []
    for factor in (1, dtype(scale)):
        y, mean, rstd = normalize.layer_norm(x * factor, weight, None, 0.0, center)
        needs = True, True, False
        dx, dweight, _ = normalize.layer_norm_backward(grad, x * factor, weight, mean, rstd, needs)
        found.append((y, dx * factor, dweight))
    for got, expected in zip(*reversed(found), strict=True):
        close(got, expected, dtype)


@several
@given(FEW_SIZES, SIZES.filter(bool), DTYPES, LAYOUTS)
def test_cross_entropy(n, c, dtype, layout):
    z, ids = 4 * values(dtype, n, c, layout=layout), np.arange(n) * 7 % c
    target = cross_entropy.Target(ids)
    losses, lse = cross_entropy.cross_entropy(z, target)
    close(losses, naive.cross_entropy(z, ids), dtype)
    grad = values(dtype, n)
    dz = cross_entropy.cross_entropy_backward(grad, z, lse, target, np.empty((n, c), dtype))
    close(dz, naive.cross_entropy_backward(grad, z, ids), dtype)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([0, 1, 2, 7, 95, 96, 97]),
    st.sampled_from([0, 1, 5, 13]),
    st.sampled_from([1, 2, 5, 33]),
    FEW_SIZES.filter(bool),
    DTYPES,
    st.booleans(),
    st.booleans(),
)
def test_attention(t, more, d, e, dtype, causal, masked):
    s = t + more
    q, k, v = (
        values(dtype, 1, 2, t, d),
        values(dtype, 1, 2, s, d, seed=1),
        values(dtype, 1, 2, s, e),
    )
    grad = values(dtype, t, 1, 2, e, seed=2).transpose(1, 2, 0, 3)  # heads beside each other
    mask = values(dtype, 1, 1, t, s, seed=3) if masked else None
    options = attention.Options(0.4, causal, mask)
    out, lse = attention.attention(q, k, v, options)
    grads = attention.attention_backward(grad, q, k, v, out, lse, options)
    if s == 0:
        assert out.shape == (1, 2, t, e) and not out.any()
        return
    for h in range(2):
        m = None if mask is None else mask[0, 0]
        close(out[0, h], naive.attention(q[0, h], k[0, h], v[0, h], 0.4, causal, m), dtype)
        slow = naive.attention_backward(grad[0, h], q[0, h], k[0, h], v[0, h], 0.4, causal, m)
        for got, expected in zip(grads, slow, strict=True):
            close(got[0, h], expected, dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("masked", [False, True])
def test_a_single_query_sees_what_the_last_of_many_sees(dtype, masked):
    q, k_room, v_room = (values(dtype, 2, 3, 600, d, seed=d) for d in (33, 33, 40))
    k, v = k_room[:, :, :300], v_room[:, :, :300]  # as generating keeps them
    mask = values(dtype, 2, 1, 300, 300, seed=3) if masked else None
    last = None
    if masked:
        mask[0, 0, -1] = -np.inf  # sees nothing
        mask[1, 0, -1, 7:] = -np.inf
        last = mask[:, :, -1:]
    many, many_lse = attention.attention(q[:, :, :300], k, v, attention.Options(0.4, True, mask))
    one, one_lse = attention.attention(q[:, :, 299:300], k, v, attention.Options(0.4, True, last))
    close(one[:, :, 0], many[:, :, -1], dtype)
    close(np.exp(one_lse[:, :, 0]), np.exp(many_lse[:, :, -1]), dtype)


@pytest.mark.parametrize("dropout_p, masked", [(0.0, False), (0.4, True)])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_leaves_no_number_to_chance(causal, dropout_p, masked, monkeypatch):
    """Not even those whose results are dropped: denormal ones are slow on many CPUs."""
    t, d, spaces = 64, 32, []  # two thirds of a block of queries; all of the workspace is used
    chance = np.float32(1e-40)

    def filled(shape, dtype, kind="activations"):
        array = np.full(shape, chance, dtype)
        spaces.extend([array] if kind == "workspace" else [])
        return array

    monkeypatch.setattr(attention, "empty", filled)
    q, grad = values(np.float32, 1, 1, t, d), values(np.float32, 1, 1, t, d, seed=1)
    mask = values(np.float32, 1, 1, t, t, seed=2) if masked else None
    options = attention.Options(0.4, causal, mask, dropout_p, 7)
    out, lse = attention.attention(q, q, q, options)
    attention.attention_backward(grad, q, q, q, out, lse, options)
    for space, blocks in zip(spaces, (1, 2), strict=True):
        denormal = space[(space != 0) & (abs(space) < np.finfo(np.float32).tiny)]
        assert (denormal == chance).all()  # nothing was made from what was there
        scores = space[: -3 * attention.QUERIES][-blocks * t * attention.QUERIES :]
        end = -(-t // attention.MR) * attention.MR  # of a tile of queries
        read = scores.reshape(-1, attention.QUERIES)[:, :end]
        assert not (read == chance).any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_attention_dropout_drops_the_same_in_backward(dtype):
    """Out is linear in v for a fixed mask: the gradient of v, times v, is grad times out."""
    q, k, v, grad = (values(dtype, 1, 1, 100, 8, seed=i) for i in range(4))
    options = attention.Options(0.3, True, None, 0.4, 99)
    out, lse = attention.attention(q, k, v, options)
    dq, _, dv = attention.attention_backward(grad, q, k, v, out, lse, options)
    plain = attention.attention(q, k, v, attention.Options(0.3, True))[0]
    assert not np.allclose(out, plain)
    tolerance = 1e-3 if dtype == np.float32 else 1e-10
    assert float((dv * v).sum()) == pytest.approx(float((grad * out).sum()), rel=tolerance)
    step = 1e-3 * values(dtype, 1, 1, 100, 8, seed=9)
    ahead, behind = (attention.attention(q + x, k, v, options)[0] for x in (step, -step))
    change = float((grad * (ahead - behind)).sum()) / 2
    assert change == pytest.approx(
        float((dq * step).sum()), rel=2e-2 if dtype == np.float32 else 1e-4
    )


@several
@given(SIZES, SIZES.filter(bool), SIZES, DTYPES, LAYOUTS)
def test_gather(n, v, c, dtype, layout):
    table, ids = values(dtype, v, c, layout=layout), np.arange(n) * 5 % v
    assert np.array_equal(gather.gather_rows(table, ids), table[ids])


@several
@given(SIZES, FEW_SIZES, DTYPES)
def test_updates(n, c, dtype):
    arrays = [values(dtype, n, c, seed=i) for i in range(3)] + [values(dtype, n, c, seed=3) ** 2]
    slow = [array.astype(float) for array in arrays]
    numbers = {"lr": 0.1, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1, "step": 3}
    update.adamw(*arrays, **numbers)
    naive.adamw(*slow, **numbers)
    for got, expected in zip(arrays, slow, strict=True):
        close(got, expected, dtype)
    numbers = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
    update.sgd(*arrays[:3], **numbers)
    naive.sgd(*slow[:3], **numbers)
    close(arrays[0], slow[0], dtype)
    total = update.sums_of_squares([arrays[1]])[0]
    assert total == pytest.approx(sum(float(x) ** 2 for x in arrays[1].ravel()), rel=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_averages_of_weights_without_gradients_end_at_zero(dtype):
    """Not at denormal numbers, which rounding keeps from shrinking further."""
    smallest = np.finfo(dtype).tiny
    m, v = 4 * smallest * np.ones((2, 50), dtype)
    m[0] = -m[0]
    velocity, w, none = m.copy(), np.ones(50, dtype), np.zeros(50, dtype)
    numbers = {"lr": 0.1, "beta1": 0.9, "beta2": 0.9, "eps": 0.0, "weight_decay": 0.0, "step": 9}
    for _ in range(10):
        update.adamw(w, none, m, v, **numbers)
        update.sgd(w, none, velocity, lr=0.1, momentum=0.9, weight_decay=0.0)
    assert all((smallest <= abs(x)).all() for x in (m, v, velocity))  # not earlier than they must
    for _ in range(10):
        update.adamw(w, none, m, v, **numbers)
        update.sgd(w, none, velocity, lr=0.1, momentum=0.9, weight_decay=0.0)
    assert not any(x.any() for x in (m, v, velocity)) and np.isfinite(w).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_comes_through(dtype, bad):
    x = np.ones((3, 40), dtype)
    x[1, 17] = bad
    with np.errstate(all="ignore"):
        gelu = elementwise.gelu(x, True)
        y = normalize.layer_norm(x, None, None, 1e-5, True)[0]
        losses, _ = cross_entropy.cross_entropy(x, cross_entropy.Target(np.array([0, 0, 17])))
        total = update.sums_of_squares([x])[0]
        sums = normalize.column_sums(x)
        heads = x[None, None]
        seen = attention.attention(heads, heads, heads, attention.Options(1.0, True))[0][0, 0]
        m, v, velocity, *weights = np.ones((5, 3, 40), dtype)
        numbers = {"beta1": 0.9, "beta2": 0.9, "eps": 1e-8, "weight_decay": 0.0, "step": 2}
        update.adamw(weights[0], x, m, v, lr=0.1, **numbers)
        update.sgd(weights[1], x, velocity, lr=0.1, momentum=0.9, weight_decay=0.0)
    for updated in (m, v, velocity, *weights):
        assert list(np.argwhere(~np.isfinite(updated))[0]) == [1, 17]
        assert np.isfinite(updated).sum() == updated.size - 1
    assert np.isfinite(gelu[[0, 2]]).all() and not (np.isfinite(gelu[1, 17]) and bad > 0)
    assert np.isnan(y[1]).all() and np.isfinite(y[[0, 2]]).all()
    assert np.isfinite(losses[[0, 2]]).all()
    assert (bad == -np.inf) == bool(np.isfinite(losses[1]))
    assert not np.isfinite(total) and not np.isfinite(sums[17]) and np.isfinite(sums[:17]).all()
    assert not np.isfinite(seen[1]).all() and not np.isfinite(seen[2]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exp(dtype):
    """Through GELU's logistic function: relative error of exp within 4 units in the last place."""
    x = np.linspace(-4, 4, 10001).astype(dtype)
    exact = 1 / (1 + np.exp(-2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x.astype(float) ** 3)))
    nonzero = x != 0
    got = elementwise.gelu(x, True)[nonzero] / x[nonzero]
    assert np.abs(got / exact[nonzero] - 1).max() < 24 * np.finfo(dtype).eps


def test_exp_up_to_the_largest_result():
    """Below the first number whose power is infinite in this dtype, none is."""
    for dtype, exp in ((np.float32, vector_math.exp32), (np.float64, vector_math.exp64)):
        x = dtype(np.log(np.longdouble(np.finfo(dtype).max)))
        with np.errstate(over="ignore"):
            numbers = [x - i * np.spacing(x) for i in range(-2, 20)]
            exact = np.exp(np.array(numbers, np.longdouble)).astype(dtype)
        got = np.array([exp(number) for number in numbers])
        assert np.isinf(got[0]) and np.array_equal(np.isinf(got), np.isinf(exact))
        np.testing.assert_allclose(got, exact, rtol=2 * np.finfo(dtype).eps)


THREADS = """
import sys, hashlib, numpy as np, tinygrad_edu as tg
from gpt import GPT, GPTConfig
tg.set_num_threads(int(sys.argv[1]))
rng = np.random.default_rng(1)
model = GPT(GPTConfig(65, 100, 2, 4, 128, dropout=0.1), rng=np.random.default_rng(0))
optimizer = tg.optim.AdamW(model.parameters(), 1e-3)
seen = hashlib.sha256()
for _ in range(50):
    x, y = rng.integers(65, size=(2, 4, 100))
    optimizer.zero_grad()
    _, loss = model(x, y)
    loss.backward()
    tg.optim.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    seen.update(loss.numpy().tobytes())
for parameter in model.parameters():
    seen.update(parameter.numpy().tobytes())
print(seen.hexdigest())
"""


@pytest.mark.skipif(launch.most_threads() < 2, reason="one thread only")
def test_fifty_steps_give_the_same_bits_on_one_and_two_threads():
    digests = [
        subprocess.run(
            [sys.executable, "-c", THREADS, n], capture_output=True, text=True, check=True
        ).stdout
        for n in ("1", "2")
    ]
    assert digests[0] == digests[1] and len(digests[0]) == 65


def test_a_task_reads_the_data_pointer_of_an_array():
    """The launcher takes it from the array object itself: views and offsets must be right."""
    x = np.arange(1000, dtype=np.float64)[100:900]
    y = np.zeros(800)
    assert np.array_equal(elementwise.add(x, y), x)
