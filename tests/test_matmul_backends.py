"""The switch between backends: both train the same GPT."""

import numpy as np
import pytest

import tinygrad_edu as tg
from gpt import GPT, GPTConfig


@pytest.fixture(autouse=True)
def back_to_the_default():
    yield
    tg.set_matmul_backend("numba")


def losses(steps=3):
    model = GPT(GPTConfig(65, 32, 2, 2, 32, dropout=0.1), np.random.default_rng(0))
    optimizer = tg.optim.AdamW(model.parameters(), 1e-2)
    rng, out = np.random.default_rng(1), []
    for _ in range(steps):
        x, y = rng.integers(65, size=(2, 4, 32))
        optimizer.zero_grad()
        _, loss = model(x, y)
        loss.backward()
        optimizer.step()
        out.append(loss.item())
    return out


def test_numba_trains_like_numpy():
    tg.set_matmul_backend("numpy")
    expected = losses()
    tg.set_matmul_backend("numba")
    np.testing.assert_allclose(losses(), expected, rtol=1e-4)


def test_numba_leaves_other_dtypes_to_numpy():
    tg.set_matmul_backend("numba")
    a = np.arange(6).reshape(2, 3)
    np.testing.assert_array_equal((tg.Tensor(a) @ tg.Tensor(a.T)).data, a @ a.T)


@pytest.mark.parametrize("name", ["numba", "numpy"])
def test_a_product_that_is_added_brings_its_bias(name):
    tg.set_matmul_backend(name)
    a, b, bias = np.ones((2, 3)), np.ones((3, 4)), np.arange(4.0)
    out = np.full((2, 4), 10.0)
    tg.kernels.matmul(a, b, out, bias=bias, accumulate=True)
    np.testing.assert_array_equal(out, 13 + np.broadcast_to(bias, out.shape))


class Subclass(np.ndarray):
    pass


@pytest.mark.parametrize(
    "left, right, result",
    [
        ("f", "d", "d"),
        ("d", "f", "d"),
        (">f4", ">f4", "f"),
        (">f4", "f", "f"),
        ("i", "f", "d"),
        ("f", "f", ">f4"),
        ("f", "f", "d"),
    ],
)
@pytest.mark.parametrize("sub", ["a", "b", "out", ""])
def test_short_products_of_unlike_arrays(left, right, result, sub):
    """The short way reads array objects as they lie in memory, so it must know what they are."""
    arrays = {
        "a": np.arange(12).reshape(3, 4).astype(left),
        "b": np.arange(8).reshape(4, 2).astype(right),
        "out": np.empty((3, 2), result),
    }
    expected = arrays["a"].astype("d") @ arrays["b"].astype("d")
    if sub:
        arrays[sub] = arrays[sub].view(Subclass)
    np.testing.assert_array_equal(
        tg.kernels.matmul(arrays["a"], arrays["b"], arrays["out"]), expected
    )


def test_an_unknown_backend_is_named():
    with pytest.raises(ValueError, match="'blis': choose one of 'numpy', 'numba'"):
        tg.set_matmul_backend("blis")
