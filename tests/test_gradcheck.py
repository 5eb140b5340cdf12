"""The gradient reference itself: what it accepts, what it reports, and what it leaves alone."""

import numpy as np
import pytest

import tinygrad_edu as tg
from tinygrad_edu.differences import NOWHERE, Probe, Slope, settle

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


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_one_infinite_element_is_wrong(value):
    """Infinity is within any share of itself."""
    f = own(lambda x: x * 2, lambda x, g: np.where(x == 3, value, g * 2))
    message = red(f, np.array([1.0, 3.0, 2.0]))
    assert f"worst at (1,): backward gives {value}" in message and "1 of 3 elements" in message
    assert "backward gives NaN or infinity where f itself is finite" in message


def test_tolerance_is_relative():
    slightly_wrong = own(lambda x: 1e-9 * x, lambda x, g: 1.0001e-9 * g)
    assert "ratio 1.0001" in red(slightly_wrong, np.ones(2))
    assert tg.gradcheck(slightly_wrong, np.ones(2), tolerance=1e-3)


NORMAL = np.random.default_rng(0).standard_normal
INPUTS, FITTED = RNG.standard_normal((6, 3)), RNG.standard_normal((3, 2))
RIGHT = {
    "relu of a large product": (
        lambda x, w: (x @ w).relu(),
        NORMAL((200, 64)),
        NORMAL((64, 128)),
    ),
    "relu of a product": (lambda x, w: (x @ w).relu(), NORMAL((50, 20)), NORMAL((20, 30))),
    "max of many": (lambda x: x.max(1), NORMAL((300, 100))),
    "relu close to its kink": (lambda x: x.relu(), np.array([1e-6, -1e-7, 1.0])),
    "softmax far from 0": (lambda x: x.softmax(), 1000 + NORMAL(5)),
    "log_softmax far from 0": (lambda x: x.log_softmax(), 1000 + NORMAL(5)),
    "layer_norm far from 0": (lambda x: tg.functional.layer_norm(x, 5), 1000 + NORMAL((2, 5))),
    "reciprocal of mixed scales": (lambda x: 1 / x, np.array([1e-6, 1e6])),
    "log close to 0": (lambda x: x.log(), np.array([1e-6, 1.0])),
}


def times(f, factor):
    """`f`, with a gradient that is `factor` times the right one for each input."""
    scaled = own(lambda x: x, lambda x, g: g * factor)
    return lambda *inputs: f(*map(scaled, inputs))


@pytest.mark.filterwarnings("ignore:invalid value encountered in log")
@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("seed", [None, 1, 2])
def test_steps_too_long_for_f_are_not_called_wrong_gradients(name, seed):
    f, *inputs = RIGHT[name]
    assert tg.gradcheck(f, *inputs, rng=None if seed is None else np.random.default_rng(seed))


@pytest.mark.filterwarnings("ignore:invalid value encountered in log")
@pytest.mark.parametrize(
    "name", [name for name in RIGHT if "large" not in name and "many" not in name]
)
@pytest.mark.parametrize("factor", [0, -1, 1.001, 2])
def test_shorter_steps_let_no_wrong_gradient_through(name, factor):
    f, *inputs = RIGHT[name]
    red(times(f, factor), *(x[:8] for x in inputs[:1]), *inputs[1:])


def test_a_wrong_gradient_of_a_huge_f_is_found():
    """The squares of its outputs overflow."""
    x = np.array([1e120, -2e120])
    assert tg.gradcheck(lambda x: x * x, x)
    assert "zero gradient" in red(own(np.square, lambda x, g: 0 * g), x)


@pytest.mark.parametrize("seed", [None, 1, 2])
@pytest.mark.parametrize(
    ("f", "x"),
    [
        (lambda x: (x - 1) ** 2, np.ones(3)),
        (lambda x: (x.exp() - 1) ** 2, np.zeros(3)),
        (lambda w: ((INPUTS @ w - INPUTS @ FITTED) ** 2).mean(), FITTED),
    ],
)
def test_a_loss_of_zero_at_its_minimum_is_right(f, x, seed):
    """What is left of the differences there is the rounding of the inputs that were moved."""
    rng = None if seed is None else np.random.default_rng(seed)
    assert tg.gradcheck(f, x, rng=rng)
    assert "is wrong" in red(
        lambda x: f(x) + own(lambda x: 0 * x, lambda x, g: 1e-9 * g)(x).sum(), x
    )


@pytest.mark.parametrize("seed", [None, 1, 2])
@pytest.mark.parametrize(
    "f",
    [
        lambda x: tg.functional.layer_norm(x, 4).sum(),
        lambda x: tg.functional.layer_norm(x, 4, np.ones(4), np.zeros(4)).mean(),
        lambda x: (x - x.mean(1, keepdims=True)).sum(1),
        lambda x: x.softmax().sum(-1) - 1,
        lambda x: x.exp().log() - x,
    ],
)
def test_an_f_of_nothing_but_rounding_is_right(f, seed):
    """What cancels leaves differences, and gradients, of 1e-16 and the like."""
    x = np.random.default_rng(seed).standard_normal((3, 4))
    assert tg.gradcheck(f, x)
    assert "is wrong" in red(
        lambda x: f(x) + own(lambda x: 0 * x, lambda x, g: 1e-9 * g)(x).sum(), x
    )


def test_a_wrong_gradient_is_named_far_from_zero():
    message = red(times(lambda x: x.softmax(), 2), 1000 + NORMAL(5))
    assert "likely cause: constant factor: the gradient is 2 times" in message


@pytest.mark.parametrize("factor", [1.001, 1.00001, 1.0000033, 0.999, -1, 0])
@pytest.mark.parametrize("f", [np.sin, np.exp, np.tanh, np.square, np.reciprocal])
def test_small_errors_on_smooth_functions_are_found(f, factor):
    x = np.random.default_rng(1).uniform(0.5, 2, (4, 5))
    derivative = {
        np.sin: np.cos,
        np.exp: np.exp,
        np.tanh: lambda x: 1 - np.tanh(x) ** 2,
        np.square: lambda x: 2 * x,
        np.reciprocal: lambda x: -1 / x**2,
    }[f]
    assert tg.gradcheck(own(f, lambda x, g: g * derivative(x)), x)
    assert "is wrong" in red(own(f, lambda x, g: g * derivative(x) * factor), x)


def test_a_wrong_element_next_to_zero_is_found():
    """A step to its own scale would not show it."""
    x = np.array([1e-12, 1e-5, 1.0])
    for k in (0, 1):
        wrong = own(np.sin, lambda x, g, k=k: g * np.cos(x) + 0.01 * (np.arange(3) == k))
        assert f"worst at ({k},)" in red(wrong, x)


def test_zeros_on_a_staircase_finer_than_the_step_are_wrong():
    """Rounding to float32 inside f: at the shortest steps nothing moves."""
    stairs = own(lambda x: x.astype(np.float32).astype(float), lambda x, g: 0 * g)
    for x in np.random.default_rng(1).uniform(0.5, 2, 20):
        assert "zero gradient" in red(stairs, x)


def test_a_short_step_confirms_only_what_stands_above_its_noise():
    kink = Slope(1.2, 1e-11, False, 1.5, 0.3)
    noisy = Slope(1.0, 5e-4, True, 1.0, 1e-4)
    clear = Slope(1.0, 1e-6, True, 1.0, 1e-7)
    close = Slope(1 + 1e-5, 1e-11, True, 1.0, 1e-7)  # a first step that misses by little
    stairs = Slope(2.0, 1e-11, True, 2.0, 1e-3)
    assert settle([kink, clear], 1 + 5e-7, 1e-6) is clear
    assert settle([kink, noisy], 1 + 4e-4, 1e-6) is kink
    assert settle([close, Slope(1.0, 1e-5, True, 1.0, 1e-7)], 1.0, 1e-6) is close
    assert settle([stairs, clear], 1.0, 1e-6) is stairs
    assert settle([NOWHERE, clear], 1.0, 1e-6) is clear
    assert settle([NOWHERE, noisy], 1.0, 1e-6) is NOWHERE
    assert settle([kink, noisy, clear], np.nan, 1e-6) is clear


@pytest.mark.parametrize("directions", [1, 3])
def test_every_direction_asks_with_a_cotangent_of_its_own(directions):
    seen = []
    f = own(lambda x: x, lambda x, g: (seen.append(g.tolist()), g)[1])
    assert tg.gradcheck(f, np.ones(3), directions=directions)
    assert len({tuple(g) for g in seen}) == directions


def test_two_steps_cancel_the_error_of_one():
    """(20 h)^2 / 6 with a step of one size, 1e-5; the error of both together goes as h^4."""
    x, one = np.array([0.3]), np.ones(1)
    slope = Probe(lambda x: (20 * x).exp(), (x,)).slope({0: x}, 0, one, [one])
    assert slope.value == pytest.approx(20 * np.exp(6), rel=1e-9)


@pytest.mark.parametrize("directions", [0, -1, 0.5, None])
def test_directions_that_check_nothing(directions):
    with pytest.raises(ValueError, match=f"directions must be 1 or more, not {directions}"):
        tg.gradcheck(lambda x: x, 1.0, directions=directions)


@pytest.mark.parametrize("rng", [3, np.random, np.random.RandomState(3)])
def test_what_is_not_a_generator(rng):
    with pytest.raises(TypeError, match=r"rng must be a numpy.random.Generator, not .*"):
        tg.gradcheck(lambda x: x, 1.0, rng=rng)


def test_a_factor_next_to_1_is_printed_in_full():
    message = red(own(np.sin, lambda x, g: g * np.cos(x) * 1.0000033), np.array([0.5, 1.0]))
    assert "ratio 1.000003\n" in message and "the gradient is 1.000003 times" in message


def test_what_cannot_be_checked_is_named():
    class Cube(tg.Function):
        pass

    with pytest.raises(TypeError, match=r"Cube is a class: pass its \.apply"):
        tg.gradcheck(Cube, np.ones(3))
    with pytest.raises(ValueError, match=r"got list, Tensor int64: write numbers as 1\.0"):
        tg.gradcheck(lambda a, b: b, [1.0, 2.0], tg.Tensor([1, 2]))
