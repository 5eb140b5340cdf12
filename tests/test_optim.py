"""Optimizers against their formulas and PyTorch, clipping, schedules and bad hyper-parameters."""

import copy
import itertools
import math
import tracemalloc

import numpy as np
import pytest

import tinygrad_edu as tg
from tinygrad_edu.nn import Parameter
from tinygrad_edu.optim import SGD, AdamW, WarmupCosine, clip_grad_norm_

NAN = float("nan")


def parameters(dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    return [Parameter(rng.standard_normal(shape).astype(dtype)) for shape in ((3, 4), (4,), ())]


def give_gradients(params, step):
    rng = np.random.default_rng(100 + step)
    for parameter in params:
        parameter.grad = rng.standard_normal(parameter.shape)


def test_adamw_follows_the_formula_and_decays_matrices_only():
    params = parameters()
    expected = [p.numpy() for p in params]
    m, v = [0 * w for w in expected], [0 * w for w in expected]
    optimizer = AdamW(params, lr=0.01, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.3)
    for t in range(1, 8):
        give_gradients(params, t)
        for i, p in enumerate(params):
            m[i] = 0.8 * m[i] + 0.2 * p.grad
            v[i] = 0.95 * v[i] + 0.05 * p.grad**2
            decay = 0.3 if p.ndim >= 2 else 0.0
            update = (m[i] / (1 - 0.8**t)) / (np.sqrt(v[i] / (1 - 0.95**t)) + 1e-6)
            expected[i] = expected[i] * (1 - 0.01 * decay) - 0.01 * update
        optimizer.step()
    for parameter, w in zip(params, expected, strict=True):
        np.testing.assert_allclose(parameter.data, w, rtol=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_follows_the_formula_and_decays_matrices_only(momentum):
    params = parameters()
    expected = [p.numpy() for p in params]
    velocity = [0 * w for w in expected]
    optimizer = SGD(params, lr=0.1, momentum=momentum, weight_decay=0.2)
    for t in range(5):
        give_gradients(params, t)
        for i, p in enumerate(params):
            u = p.grad + (0.2 if p.ndim >= 2 else 0.0) * expected[i]
            velocity[i] = momentum * velocity[i] + u
            expected[i] = expected[i] - 0.1 * velocity[i]
        optimizer.step()
    for parameter, w in zip(params, expected, strict=True):
        np.testing.assert_allclose(parameter.data, w, rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_against_pytorch(name, dtype):
    torch = pytest.importorskip("torch")
    params = parameters(dtype)
    twins = [torch.nn.Parameter(torch.tensor(p.data)) for p in params]
    options = {"lr": 0.02} | ({"momentum": 0.9} if name == "SGD" else {"betas": (0.9, 0.98)})
    groups = [
        {"params": [p for p in twins if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in twins if p.ndim < 2], "weight_decay": 0.0},
    ]
    ours = getattr(tg.optim, name)(params, weight_decay=0.1, **options)
    theirs = getattr(torch.optim, name)(groups, **options)
    for step in range(10):
        give_gradients(params, step)
        for parameter, twin in zip(params, twins, strict=True):
            twin.grad = torch.tensor(parameter.grad)
        norm = clip_grad_norm_(params, 1.5)
        assert norm == pytest.approx(float(torch.nn.utils.clip_grad_norm_(twins, 1.5)), rel=1e-5)
        ours.step()
        theirs.step()
    for parameter, twin in zip(params, twins, strict=True):
        rtol = 1e-5 if dtype == np.float32 else 1e-10
        np.testing.assert_allclose(parameter.data, twin.detach().numpy(), rtol=rtol, atol=rtol)
        assert parameter.dtype == dtype


def test_state_is_allocated_at_construction():
    params = parameters(np.float32)
    optimizer = AdamW(params)
    held = [p.storage.state[name] for p in params for name in ("m", "v")]
    assert all(array.dtype == np.float32 and not array.any() for array in held)
    give_gradients(params, 0)
    arrays = [p.data for p in params]
    optimizer.step()
    after = [p.storage.state[name] for p in params for name in ("m", "v")]
    assert all(a is b for a, b in zip(held, after, strict=True))
    assert all(a is p.data for a, p in zip(arrays, params, strict=True))
    SGD(params, momentum=0.9)
    assert list(params[0].storage.state) == ["velocity"]


def test_state_follows_the_dtype_of_its_parameter():
    (p, *_) = parameters(np.float32)
    optimizer = AdamW([p])
    give_gradients([p], 0)
    optimizer.step()
    before = p.storage.state
    p.data = p.data.astype(np.float64)
    for name, array in p.storage.state.items():
        assert array.dtype == np.float64
        np.testing.assert_array_equal(array, before[name])


def test_another_optimizer_starts_afresh():
    params, fresh = parameters(), parameters()
    first = AdamW(params, lr=0.0)
    give_gradients(params, 0)
    first.step()
    for group in (params, fresh):
        optimizer = AdamW(group, lr=0.1)
        give_gradients(group, 1)
        optimizer.step()
    for a, b in zip(params, fresh, strict=True):
        np.testing.assert_array_equal(a.data, b.data)


def test_parameters_without_gradient_stay():
    params = parameters()
    before = params[0].numpy()
    params[1].grad = np.ones(4)
    AdamW(params, weight_decay=0.5).step()
    np.testing.assert_array_equal(params[0].data, before)
    assert params[0].grad is None


def test_parameters_are_updated_together_as_they_would_be_alone():
    """Large and small, decaying or not, in three dtypes and another memory order."""
    rng = np.random.default_rng(0)
    shapes = [(3, 5), (70_000,), (0,), (1,), (300, 200), (4,), (2, 2)]
    dtypes = [np.float32, np.float32, np.float32, np.float64, np.float32, np.float16, np.float16]
    numbers = [rng.standard_normal((2, *s)).astype(t) for s, t in zip(shapes, dtypes, strict=True)]

    def trained(groups):
        parameters = [Parameter(w) for w, _ in numbers]
        optimizers = [AdamW([parameters[i] for i in group], 0.1) for group in groups]
        for p, (_, g) in zip(parameters, numbers, strict=True):
            p.grad = np.asfortranarray(g)
        norm = clip_grad_norm_(parameters, 1.0)
        clipped = [p.grad.copy() for p in parameters]
        for optimizer in optimizers:
            optimizer.step()
        return norm, [*clipped, *(p.numpy() for p in parameters)]

    norm, together = trained([range(len(shapes))])
    alone = trained([[i] for i in range(len(shapes))])[1]
    assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(together, alone))
    assert norm == pytest.approx(math.sqrt(sum((g.astype(float) ** 2).sum() for _, g in numbers)))
    for found, (_, g) in zip(together, numbers, strict=False):
        assert np.array_equal(found, g * g.dtype.type(1 / (norm + 1e-6)))


def test_clipping_scales_a_parameter_once_however_often_it_is_listed():
    parameter = Parameter(np.zeros(4, np.float32))
    parameter.grad = np.full(4, 2, np.float32)
    assert clip_grad_norm_([parameter, parameter], 1.0) == 4
    assert np.allclose(parameter.grad, 0.5)


def test_state_dict_round_trip_is_bit_equal():
    def train(params, optimizer, steps):
        for step in steps:
            give_gradients(params, step)
            optimizer.lr = 0.01 * (step + 1)
            optimizer.step()

    straight, halves = parameters(np.float32), parameters(np.float32)
    train(straight, AdamW(straight), range(6))
    first = AdamW(halves)
    train(halves, first, range(3))
    state = first.state_dict()
    assert state["steps"] == 3 and state["lr"] == pytest.approx(0.03)
    resumed = [Parameter(p.numpy()) for p in halves]
    train(halves, first, range(3, 4))  # the saved state is a copy
    second = AdamW(resumed)
    second.load_state_dict(state)
    train(resumed, second, range(3, 6))
    for a, b in zip(straight, resumed, strict=True):
        np.testing.assert_array_equal(a.data, b.data)


@pytest.mark.parametrize("gradient", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("make", [AdamW, lambda p, lr: SGD(p, lr, momentum=0.9)])
def test_state_of_float16_parameters_does_not_underflow(make, gradient):
    short, full = (Parameter(np.zeros(3, dtype)) for dtype in (np.float16, np.float32))
    for p in (short, full):
        lr = 1e-3 if make is AdamW else 1e-3 / gradient
        optimizer = make([p], lr=lr)
        for step in range(20):
            p.grad = np.full(3, np.float16(gradient))
            optimizer.step()
            if step == 9:
                state = optimizer.state_dict()
                optimizer = make([p], lr=lr)
                optimizer.load_state_dict(state)
    assert short.dtype == np.float16
    np.testing.assert_allclose(short.data, full.data, rtol=5e-3)
    short.data = short.data.astype(np.float32)
    short.data = short.data.astype(np.float16)
    for kind, array in short.storage.state.items():
        np.testing.assert_array_equal(array, full.storage.state[kind])


def test_foreign_state_is_refused_and_changes_nothing():
    params = parameters()
    optimizer = AdamW(params)
    give_gradients(params, 0)
    optimizer.step()
    before = optimizer.state_dict()
    wrong = optimizer.state_dict()
    wrong["steps"], wrong["v"] = 9, [np.zeros(3)] * 3
    with pytest.raises(ValueError, match=r"'v' has shapes .*\(3,\).*\(3, 4\)"):
        optimizer.load_state_dict(wrong)
    with pytest.raises(ValueError, match=r"expected.*'m'"):
        optimizer.load_state_dict(SGD(parameters(), momentum=0.5).state_dict())
    for change, message in (
        ({"v": [np.full((3, 4), "x"), np.zeros(4), 0.0]}, "'v' holds <U1, not numbers"),
        ({"m": [np.zeros((3, 4)), np.zeros(4, complex), 0.0]}, "'m' holds complex128"),
        ({"lr": -5}, "lr must be .*got -5"),
        ({"lr": NAN, "steps": 9}, "lr must be .*got nan"),
        ({"steps": -1}, "steps must be .*got -1"),
        ({"steps": 2.7, "lr": 9}, r"steps must be a whole number, got 2\.7"),
    ):
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(before | change)
    after = optimizer.state_dict()
    assert after["lr"] == before["lr"]
    assert after["steps"] == before["steps"] == 1
    for name in ("m", "v"):
        for a, b in zip(after[name], before[name], strict=True):
            np.testing.assert_array_equal(a, b)


def test_clip_grad_norm():
    params = parameters()
    give_gradients(params, 0)
    before = [p.grad.copy() for p in params]
    norm = math.sqrt(sum((g**2).sum() for g in before))
    assert clip_grad_norm_(params, norm + 1) == pytest.approx(norm)
    for p, g in zip(params, before, strict=True):
        np.testing.assert_array_equal(p.grad, g)
    assert clip_grad_norm_((p for p in params), norm / 4) == pytest.approx(norm)
    for p, g in zip(params, before, strict=True):
        np.testing.assert_allclose(p.grad, g / 4, rtol=1e-5)
    params[1].grad = None
    clip_grad_norm_(params, 1e-3)
    assert params[1].grad is None
    assert abs(params[0].grad).max() <= 1e-3
    params[2].grad = np.array(NAN)
    kept = params[0].grad.copy()
    assert math.isnan(clip_grad_norm_(params, 1e-9))
    np.testing.assert_array_equal(params[0].grad, kept)


@pytest.mark.parametrize("max_norm", [-1.0, NAN])
def test_bad_clipping_norms(max_norm):
    with pytest.raises(ValueError, match=f"max_norm must be .*got {max_norm}"):
        clip_grad_norm_(parameters(), max_norm)


def test_warmup_cosine():
    schedule = WarmupCosine(1.0, warmup_steps=10, total_steps=110, min_lr=0.1)
    rates = [schedule(step) for step in range(130)]
    assert rates[0] == pytest.approx(1 / 11)
    assert np.allclose(np.diff(rates[:11]), 1 / 11)
    assert rates[10] == 1.0 == max(rates)
    assert all(a > b for a, b in itertools.pairwise(rates[10:111]))
    assert rates[60] == pytest.approx(0.55)
    assert rates[35] == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi / 4)))
    assert rates[110:] == [0.1] * 20
    assert WarmupCosine(1.0, 0, 10)(0) == 1.0
    assert WarmupCosine(1.0, 0, 0)(0) == 0.0


def test_steps_of_a_schedule_are_whole_and_warm_up_fits():
    schedule = WarmupCosine(1.0, 2, 10)
    for step in (-3, 1.5, NAN):
        with pytest.raises(ValueError, match=f"step must be .*got {step}"):
            schedule(step)
    with pytest.raises(ValueError, match="warmup_steps must be at most total_steps, 10, got 11"):
        WarmupCosine(1.0, 11, 10)
    with pytest.raises(ValueError, match=r"warmup_steps must be a whole number, got 1\.5"):
        WarmupCosine(1.0, 1.5, 10)
    assert WarmupCosine(1.0, 10, 10)(10) == 0.0


@pytest.mark.parametrize("value", [-1e-3, NAN, float("inf")])
@pytest.mark.parametrize(
    "make",
    [
        lambda p, x: AdamW(p, lr=x),
        lambda p, x: AdamW(p, eps=x),
        lambda p, x: AdamW(p, weight_decay=x),
        lambda p, x: AdamW(p, betas=(x, 0.9)),
        lambda p, x: AdamW(p, betas=(0.9, x)),
        lambda p, x: SGD(p, lr=x),
        lambda p, x: SGD(p, momentum=x),
        lambda p, x: SGD(p, weight_decay=x),
        lambda p, x: WarmupCosine(x, 1, 2),
        lambda p, x: WarmupCosine(1.0, x, 2),
        lambda p, x: WarmupCosine(1.0, 1, x),
        lambda p, x: WarmupCosine(1.0, 1, 2, x),
    ],
)
def test_bad_hyper_parameters(make, value):
    params = parameters()
    first = AdamW(params)
    give_gradients(params, 0)
    first.step()
    with pytest.raises(ValueError, match=f"must be .*got {value}"):
        make(params, value)
    assert params[0].storage.state["m"].any()  # a refused optimizer touches nothing


def test_what_is_no_parameter_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        AdamW([])
    with pytest.raises(TypeError, match="got Tensor"):
        SGD([tg.Tensor([1.0], requires_grad=True)])
    weight = Parameter([1.0])
    optimizer = SGD([weight, weight], lr=1.0)
    weight.grad = [1.0]
    optimizer.step()
    assert weight.data.tolist() == [0]
    optimizer.zero_grad()
    assert weight.grad is None


def test_an_optimizer_notices_that_another_one_took_over():
    p = tg.nn.Parameter(np.ones(3))
    p.grad = np.ones(3)
    old, other = tg.optim.AdamW([p]), tg.nn.Parameter(np.ones(2))
    old.step()
    new = tg.optim.SGD([p, other])
    for call in (old.step, old.state_dict):
        with pytest.raises(RuntimeError, match="another optimizer was made for a parameter"):
            call()
    new.step()


def test_a_read_only_gradient_is_not_scaled_behind_its_owners_back():
    parameter = Parameter(np.ones((200, 200), np.float32))
    for p in (parameter, Parameter(np.ones(3, np.float32))):
        p.grad = np.full(p.shape, 5, np.float32)
        p.grad.flags.writeable = False
        with pytest.raises(ValueError, match="read-only"):
            clip_grad_norm_([p], 1.0)
        assert (p.grad == 5).all()


def test_two_parameters_with_one_storage_are_updated_once():
    p = Parameter(np.zeros(40_000, np.float32))
    optimizer = SGD([p, copy.copy(p)], 1.0)
    p.grad = np.ones(40_000, np.float32)
    optimizer.step()
    assert (p.data == -1).all()


def test_gradients_given_in_part_are_completed_before_they_count():
    for use in ("norm", "step"):
        junk = [np.full((300, 200), np.nan, np.float32) for _ in range(3)]
        del junk  # what uninitialised memory may hold
        p = Parameter(np.zeros((300, 200), np.float32))
        p.storage.add_grad_rows(0, np.ones((5, 200), np.float32))
        if use == "norm":
            assert clip_grad_norm_([p], math.inf) == pytest.approx(math.sqrt(1000))
        else:
            SGD([p], 1.0).step()
            assert p.data.sum() == -1000


def test_short_dtypes_are_copied_one_array_at_a_time():
    parameters = [Parameter(np.ones((300, 300), np.float16)) for _ in range(20)]
    optimizer = AdamW(parameters, 1e-3)
    for p in parameters:
        p.grad = np.ones(p.shape, np.float16)
    tracemalloc.start()
    clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * 4 * 300 * 300  # four arrays in float32, and then some
