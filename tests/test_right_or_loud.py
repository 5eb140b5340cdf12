"""Gradients that would be lost or wrong without a word raise; dtypes and tails stay right."""

import numpy as np
import pytest

import tinygrad_edu as tg
from tinygrad_edu import functional as F


def leaf(*shape):
    return tg.Tensor(np.random.default_rng(0).normal(size=shape), requires_grad=True)


def test_a_mask_changed_after_forward_does_not_change_the_gradient():
    q, k, v = leaf(4, 8), leaf(4, 8), leaf(4, 8)
    grads = []
    for change in (False, True):
        mask = np.tril(np.ones((4, 4), bool))
        q.zero_grad()
        y = F.scaled_dot_product_attention(q, k, v, mask)
        mask[:] |= change
        (y * y).sum().backward()
        grads.append(q.grad)
    np.testing.assert_array_equal(*grads)


def test_division_promotes_like_multiplication():
    assert (tg.Tensor([1.0, 2.0]) / np.ones(2)).dtype == np.float64


def test_a_list_of_tensors_that_need_gradients_is_refused():
    w = tg.Tensor(2.0, requires_grad=True)
    with pytest.raises(TypeError, match=r"tg\.stack"):
        tg.Tensor([w, [w]])
    with pytest.raises(TypeError, match=r"tg\.stack"):
        F.linear(tg.Tensor([1.0]), [[w]])
    with pytest.raises(TypeError):
        tg.Tensor([1.0, 1.0]) * [w, w]


def test_functions_of_numpy_end_no_graph_unnoticed():
    x, y = (tg.Tensor([[1.0, 2.0]], requires_grad=True) for _ in range(2))
    for lose, instead in (
        (lambda: np.concatenate([x, y]), "tg.concatenate"),
        (lambda: np.stack([x.data, y]), "tg.stack"),
        (lambda: np.where([True, False], 0.0, x), "tg.where"),
        (lambda: np.einsum("ij,ij->", x, y), "tg.einsum"),
        (lambda: np.dot(x.data, y.T), "@"),
        (lambda: np.reshape(x, (2, 1)), "Tensor's .reshape"),
        (lambda: np.mean(x, axis=0), "Tensor's .mean"),
    ):
        with pytest.raises(TypeError, match=instead):
            lose()
        with tg.no_grad():  # where no graph is made, none ends
            assert "mean" in instead or isinstance(lose(), np.ndarray | np.generic)
    assert np.concatenate([x.detach(), y.data]).shape == (2, 2)
    assert np.allclose(x, y) and np.shape(x) == (1, 2) and not np.zeros_like(x).any()


def test_weights_and_scales_that_get_no_gradient_are_refused():
    one = tg.Tensor(np.ones(3), requires_grad=True)
    with pytest.raises(ValueError, match="weight gets no gradient"):
        F.cross_entropy(leaf(2, 3), np.array([0, 1]), weight=one)
    with pytest.raises(ValueError, match="scale gets no gradient"):
        F.scaled_dot_product_attention(
            leaf(2, 3), leaf(2, 3), leaf(2, 3), scale=tg.Tensor(1.0, requires_grad=True)
        )


def test_powers_of_zero_by_their_exponent():
    """0 where the exponent is not negative, else the limit."""
    base, exponent = np.array([0.0, 0, 0, -0.0]), np.array([2.0, 0, -1, -1])
    b = tg.Tensor(exponent, requires_grad=True)
    with np.errstate(divide="ignore"):
        out = tg.Tensor(base) ** b
    out.backward(np.ones(4))
    np.testing.assert_array_equal(b.grad, [0, 0, -np.inf, np.inf])


@pytest.mark.parametrize(
    "cut",
    [
        tg.Tensor.relu,
        lambda x: x.clip(0),
        lambda x: -(-x).clip(None, 0),
        lambda x: tg.maximum(x, 0.0),
        lambda x: -tg.minimum(0.0, -x),
    ],
    ids=["relu", "clip", "clip from above", "maximum", "minimum"],
)
def test_what_was_cut_off_takes_no_part_of_an_infinite_gradient(cut):
    x = tg.Tensor([-1.0, 4.0, -3.0], requires_grad=True)
    with np.errstate(divide="ignore"):
        cut(x).sqrt().sum().backward()  # the root of 0 has an infinite slope
    assert x.grad.tolist() == [0, 0.25, 0]


@pytest.mark.parametrize("name", ["max", "min"])
def test_the_gradient_of_an_extreme_that_is_nan_is_nan(name):
    x = tg.Tensor([[1.0, np.nan, 3.0], [1.0, 2.0, 3.0]], requires_grad=True)
    getattr(x, name)(axis=1).sum().backward()
    assert np.isnan(x.grad[0]).all() and x.grad[1].sum() == 1


def test_the_variance_of_large_numbers_is_that_of_their_deviations():
    rows = np.array([[1e6 + 0.1] * 96, [3e38] * 96, 1e6 + np.arange(96) % 5], np.float32)
    x = tg.Tensor(rows, requires_grad=True)
    out = x.var(axis=1)
    out.sum().backward()
    exact = rows.astype(np.float64)
    np.testing.assert_allclose(out.data, exact.var(axis=1), rtol=1e-3)
    np.testing.assert_allclose(x.grad, (exact - exact.mean(axis=1, keepdims=True)) / 48, atol=1e-3)


@pytest.mark.parametrize("shape", [(100_000, 2), (2, 100_000), (4, 50_000, 2)], ids=str)
def test_long_sums_are_right_however_they_lie_in_memory(shape):
    x = tg.Tensor(np.full(shape, 0.1, np.float32))
    for view in (x, x.permute(*range(x.ndim)[::-1]), x[..., ::2], x[..., :1]):
        for axis in (None, *range(x.ndim)):
            exact = view.data.astype(np.float64).sum(axis)
            np.testing.assert_allclose(view.sum(axis).data, exact, rtol=1e-6)


def test_the_variance_of_float16_takes_a_mean_that_float16_cannot_hold():
    x = tg.Tensor(np.array([1000, 1000, 1000, 1001], np.float16), requires_grad=True)
    x.var().backward()
    assert x.var().item() == 0.1875
    np.testing.assert_array_equal(x.grad, [-0.125, -0.125, -0.125, 0.375])


def test_sums_of_small_ints_do_not_overflow():
    assert tg.Tensor(np.array([200, 100], np.uint8)).sum().item() == 300
    assert tg.Tensor(np.array([2**63, 5], np.uint64)).sum().item() == 2**63 + 5


def test_sigmoid_keeps_its_tails():
    x = np.array([-80, -20, -9, 0, 9, 80], np.float32)
    expected = 1 / (1 + np.exp(-x.astype(np.float64)))
    np.testing.assert_allclose(tg.Tensor(x).sigmoid().data, expected, rtol=1e-6)
    assert np.isnan(tg.Tensor([np.nan]).sigmoid().data).all()


def test_dtypes_that_are_not_numbers_are_refused():
    for dtype in (object, "U3", np.complex64):
        with pytest.raises(TypeError, match="floats, ints or booleans"):
            tg.Tensor([1.0], dtype=dtype)


def test_ints_beside_float32_stay_float32_in_joins_and_einsum():
    x, i = tg.Tensor([1.0, 2.0]), tg.Tensor([1, 2])
    assert tg.concatenate([x, i]).dtype == tg.stack([x, i]).dtype == np.float32
    assert tg.einsum("i,i->", x, i).dtype == np.float32


def test_einsum_with_a_broadcast_axis_has_gradients():
    assert tg.gradcheck(lambda a, b: tg.einsum("ij,j->i", a, b), np.ones((2, 3)), np.ones(1))


def test_large_gradients_are_measured_and_clipped():
    parameter = tg.nn.Parameter(np.zeros(2, np.float32))
    parameter.grad = np.full(2, 1e30, np.float32)
    norm = tg.optim.clip_grad_norm_([parameter], 1.0)
    assert norm == pytest.approx(np.sqrt(2) * 1e30)
    assert np.linalg.norm(parameter.grad) == pytest.approx(1, rel=1e-5)
    with pytest.raises(TypeError, match=r"nn\.Parameters"):
        tg.optim.clip_grad_norm_([leaf(2)], 1.0)


def test_tensors_format_and_index():
    assert f"{tg.Tensor(1.23456):.2f}" == "1.23"
    assert [10, 20, 30][tg.Tensor(1)] == 20


def test_a_checkpoint_that_runs_differently_again_is_refused():
    dropout = tg.nn.Dropout(0.5, np.random.default_rng(0))
    y = tg.checkpoint(dropout, leaf(8)).sum()
    dropout.eval()
    with pytest.raises(RuntimeError, match="do the same"):
        y.backward()


@pytest.mark.parametrize("dtype", [">f4", ">f8", "<f4", np.float16, np.longdouble])
def test_other_byte_orders_and_precisions_compute_the_same(dtype):
    """Compiled kernels read memory as float32 or float64: everything else must be converted."""
    numbers = np.linspace(-2, 2, 12).reshape(3, 4)
    given = tg.Tensor(numbers.astype(dtype), requires_grad=True)
    exact = tg.Tensor(numbers, requires_grad=True)
    for x in (given, exact):
        y = tg.functional.layer_norm(x.gelu("tanh") + x, 4)
        loss = tg.functional.cross_entropy(y, np.array([0, 1, 3]))
        loss.backward()
    assert given.dtype.isnative and given.grad.dtype == given.dtype
    np.testing.assert_allclose(
        given.grad.astype(float), exact.grad, atol=2e-3 if dtype == np.float16 else 1e-6
    )
