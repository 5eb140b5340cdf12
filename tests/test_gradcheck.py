"""The gradient reference itself: what it accepts, what it reports, and what it leaves alone."""

import numpy as np
import pytest

import tinygrad_edu as tg

RNG = np.random.default_rng(3)


def red(f, *inputs, **options):
    with pytest.raises(tg.GradcheckError) as caught:
        tg.gradcheck(f, *inputs, **options)
    assert tg.gradcheck(f, *inputs, raise_exception=False, **options) is False
    return str(caught.value)


def own(forward, backward):
    """A user's Function of one input from two lambdas."""

    class Own(tg.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return forward(x)

        @staticmethod
        def backward(ctx, grad):
            return backward(*ctx.saved_tensors, grad)

    return Own.apply


@pytest.mark.parametrize(
    "x",
    [
        2.0,
        np.float32(2),
        np.array(2.0),
        np.ones(1),
        np.zeros((0, 3)),
        np.zeros((2, 2)),
        RNG.standard_normal((3, 4)).T,
        RNG.standard_normal((3, 4))[:, ::2],
        tg.Tensor(RNG.standard_normal((2, 3))),
        RNG.standard_normal((2, 2)) * 1e6,
        RNG.standard_normal((2, 2)) * 1e-6,
        np.array([1e-8, 1.0, 1e8]),
    ],
    ids=lambda x: f"{type(x).__name__}{getattr(x, 'shape', '')}",
)
def test_inputs_of_every_kind(x):
    assert tg.gradcheck(lambda x: x * x + x, x)
    assert tg.gradcheck(lambda x: (x * x, x.sum()), x)
    assert tg.gradcheck(lambda x: x, x)
    if np.size(x.data if isinstance(x, tg.Tensor) else x):
        assert "factor" in red(own(lambda x: x * x + x, lambda x, g: g * (2 * x + 1) * 1.001), x)


def test_other_inputs_pass_through():
    ids = np.array([0, 2])

    def f(x, picked, flag, name, n):
        assert picked is ids and flag is True and name == "exact" and n == 3
        return x[picked] * n

    assert tg.gradcheck(f, np.ones(3), ids, True, "exact", 3)


def test_inputs_are_untouched():
    x = tg.Tensor([1.0, 2.0], requires_grad=True)
    before = x.data
    assert tg.gradcheck(lambda x: x.exp(), x)
    assert x.grad is None and x.data is before and x.dtype == np.float32
    assert x.tolist() == [1, 2] and x.requires_grad


def test_works_inside_no_grad():
    with tg.no_grad():
        assert tg.gradcheck(lambda x: x.exp(), 1.0)


def test_the_callers_generator_decides():
    calls = []
    for seed in (1, 1, 2):
        seen = []
        f = own(lambda x: x, lambda x, g, seen=seen: (seen.append(g.copy()), g)[1])
        tg.gradcheck(f, np.ones(3), rng=np.random.default_rng(seed))
        calls.append(np.concatenate(seen))
    assert np.array_equal(calls[0], calls[1]) and not np.array_equal(calls[0], calls[2])


@pytest.mark.parametrize(
    ("backward", "named"),
    [
        (lambda x, g: -g * np.cos(x), "wrong sign"),
        (lambda x, g: 3 * g * np.cos(x), "constant factor: the gradient is 3 times"),
        (lambda x, g: 0 * g, "zero gradient"),
        (lambda x, g: (g * np.cos(x)).T.copy(), "transposed"),
        (lambda x, g: g * np.nan, "backward gives NaN or infinity"),
        (lambda x, g: g * np.cos(x) + (x == x[1, 2]), "no simple pattern"),
        (lambda x, g: g, "no simple pattern"),
    ],
)
def test_verdict_names_the_cause(backward, named):
    message = red(own(np.sin, backward), np.linspace(0.1, 1, 9).reshape(3, 3))
    assert f"likely cause: {named}" in message
    assert "input 0 of f, shape (3, 3)" in message


def test_verdict_points_at_the_worst_element():
    x = np.linspace(0.1, 1, 6).reshape(2, 3)
    message = red(own(np.sin, lambda x, g: g * np.cos(x) + (x == x[1, 0])), x)
    assert "worst at (1, 0)" in message and "1 of 6 elements" in message and "ratio" in message


def test_only_the_wrong_input_is_blamed():
    wrong = own(np.sin, lambda x, g: g)
    x = np.ones(2)
    assert "input 1 of f" in red(lambda a, b, c: a * c + wrong(b), x, x, x)
    assert "also wrong: input 2" in red(lambda a, b, c: a + wrong(b) * wrong(c), x, x, x)


def test_softmax_with_a_wrong_gradient_is_found():
    """A cotangent of ones would accept any multiple of its gradient."""
    wrong = own(lambda x: np.exp(x) / np.exp(x).sum(), lambda x, g: g * 0)
    assert "zero gradient" in red(wrong, np.array([0.1, 0.5, -1]))


def test_one_wrong_element_of_many_is_found():
    x = RNG.standard_normal(5000)

    def backward(x, g):
        grad = g * np.cos(x)
        grad[4321] += 0.01
        return grad

    assert "is wrong" in red(own(np.sin, backward), x)
    assert "2000 elements looked at, a random sample of 5000" in red(own(np.sin, lambda x, g: g), x)


@pytest.mark.parametrize(
    ("f", "x"),
    [
        (lambda x: x.relu(), [0.0, 1.0]),
        (lambda x: tg.where(x > 1, x, x * 3), [1.0, 2.0]),
        (lambda x: x.clip(0.0, 1.0), [1.0, 0.5]),
        (lambda x: tg.Tensor(np.floor(x.data)) + 0 * x, [1.0, 0.5]),
    ],
)
def test_kinks_are_not_called_wrong_gradients(f, x):
    assert "not differentiable at input 0 of f" in red(f, np.array(x))


def test_the_middle_of_a_symmetric_kink_is_accepted():
    assert tg.gradcheck(lambda x: abs(x), np.array([0.0, 1.0]))
    assert tg.gradcheck(tg.maximum, np.ones(2), np.ones(2))


def test_a_wrong_gradient_beside_a_kink_is_still_wrong():
    wrong = own(lambda x: np.maximum(x, 0), lambda x, g: 2 * g * (x > 0))
    assert "worst at (1,)" in red(wrong, np.array([0.0, 1.0]))


def test_random_f_is_reported():
    rng = np.random.default_rng(0)
    message = red(lambda x: tg.functional.dropout(x, 0.5, rng=rng), np.ones(20))
    assert "not deterministic" in message


def test_points_where_f_is_undefined_are_reported():
    with np.errstate(all="ignore"):
        assert "output 0 of f is nan at (1,)" in red(lambda x: x.log(), np.array([1.0, -1.0]))
        assert "not finite when input 0 moves" in red(lambda x: x.sqrt(), np.array([0.0, 1.0]))


def test_f_without_a_graph_is_reported():
    assert "not connected" in red(lambda x: tg.Tensor(x.data) * 2, 1.0)
    assert "zero gradient" in red(lambda x, y: x.detach() * y, 1.0, 2.0)


@pytest.mark.parametrize(
    ("f", "inputs", "error", "named"),
    [
        (lambda x: x.data, (1.0,), TypeError, "is a ndarray, not a Tensor"),
        (lambda x: (x, None), (1.0,), TypeError, "output 1 of f is a NoneType"),
        (lambda x: tg.Tensor(x.data, dtype=np.float32), (1.0,), TypeError, "float32"),
        (lambda x: x.argmax(), (np.ones(2),), TypeError, "int64"),
        (lambda x: x, (1, np.arange(3)), ValueError, "at least one floating-point"),
        (lambda x: x, (), ValueError, "at least one floating-point"),
    ],
)
def test_misuse_is_an_error_of_its_own(f, inputs, error, named):
    with pytest.raises(error, match=named):
        tg.gradcheck(f, *inputs)


def test_errors_of_backward_name_the_input():
    class Product(tg.Function):
        @staticmethod
        def forward(ctx, a, b):
            ctx.save_for_backward(a, b)
            return a @ b

        @staticmethod
        def backward(ctx, grad):
            a, b = ctx.saved_tensors
            return grad @ b.T, grad.T @ a

    message = red(Product.apply, RNG.standard_normal((2, 3)), RNG.standard_normal((3, 4)))
    assert "Product.backward, input 1" in message and "missing transpose" in message
    assert "for the gradient of input 1 of f" in message


def test_tolerance_is_relative():
    slightly_wrong = own(lambda x: 1e-9 * x, lambda x, g: 1.0001e-9 * g)
    assert "ratio 1.0001" in red(slightly_wrong, np.ones(2))
    assert tg.gradcheck(slightly_wrong, np.ones(2), tolerance=1e-3)
