"""The tape: graphs walked once, arrays guarded until then, memory flat, user ops held to rules."""

import gc
import os
import sys
import threading

import numpy as np
import psutil
import pytest
from numpy.lib.stride_tricks import sliding_window_view

import tinygrad_edu as tg
from tinygrad_edu import Tensor, tape
from tinygrad_edu.kernels.allocator import RECYCLER
from tinygrad_edu.locks import locks


def leaf(*values, dtype=None):
    return Tensor(list(values), requires_grad=True, dtype=dtype)


# Walks.


def test_fan_out_adds_up():
    x = leaf(3.0)
    (x * x).sum().backward()
    assert x.grad.tolist() == [6]
    (x * x + x).sum().backward()
    assert x.grad.tolist() == [13]


def test_a_chain_of_100_000_ops():
    x = leaf(1.0)
    y = x
    for _ in range(100_000):
        y = y + 1.0
    y.sum().backward()
    assert x.grad.tolist() == [1]
    assert y.tolist() == [100_001]


def test_a_long_graph_that_is_dropped_unwalked():
    x = leaf(1.0)
    y = x.exp()
    for _ in range(100_000):
        y = y * 1.0
    del y
    x.data[0] = 2.0


def test_60_stacked_diamonds():
    x = leaf(1.0, dtype=np.float64)
    y = x
    for _ in range(60):
        y = y + y
    y.sum().backward()
    assert x.grad[0] == y.data[0] == 2.0**60


def test_diamonds_of_three_arms_visit_each_op_once():
    calls = []

    class Same(tg.Function):
        @staticmethod
        def forward(ctx, x):
            return x + 0

        @staticmethod
        def backward(ctx, grad):
            calls.append(1)
            return grad

    x = leaf(1.0, dtype=np.float64)
    y = x
    for _ in range(20):
        h = Same.apply(y)
        y = h * 1.0 + h * 2.0 + h
    y.sum().backward()
    assert len(calls) == 20
    assert x.grad[0] == 4.0**20


def test_a_graph_walked_twice_raises():
    x = leaf(1.0, 2.0)
    y = (x * x).sum()
    y.backward()
    with pytest.raises(RuntimeError, match="graph already consumed"):
        y.backward()
    assert x.grad.tolist() == [2, 4]


@pytest.mark.parametrize(("name", "op"), [("Exp", Tensor.exp), ("Add", lambda x: x + 1.0)])
def test_a_shared_part_walked_twice_raises(name, op):
    x = leaf(1.0, 2.0)
    shared = op(x)
    a, b = shared.sum(), (shared * 3).sum()
    a.backward()
    with pytest.raises(RuntimeError, match=rf"graph already consumed.*{name}"):
        b.backward()
    with pytest.raises(RuntimeError, match="graph already consumed"):
        shared.tanh().sum().backward()


def test_backward_needs_a_graph_and_an_open_tape():
    x = leaf(1.0, 2.0)
    y = (x * 2).sum()
    with tg.no_grad(), pytest.raises(RuntimeError, match="inside no_grad"):
        y.backward()
    with tg.no_grad():
        z = (x * 2).sum()
    assert not z.requires_grad and z._made_by is None
    with pytest.raises(RuntimeError, match="no_grad"):
        z.backward()
    with pytest.raises(RuntimeError, match="requires_grad"):
        Tensor([1.0]).sum().backward()
    y.backward()
    assert x.grad.tolist() == [2, 2]


def test_results_under_no_grad_are_leaves():
    x = leaf(1.0, 2.0)
    with tg.no_grad():
        y = x * 2
    y.requires_grad = True
    (y * x).sum().backward()
    assert y.grad.tolist() == [1, 2]
    assert x.grad.tolist() == [2, 4]


def test_backward_on_a_leaf_adds_to_its_own_copy():
    x, g = leaf(1.0, 2.0), np.array([3.0, 4.0], np.float32)
    x.backward(g)
    x.backward(g)
    assert x.grad.tolist() == [6, 8] and g.tolist() == [3, 4]


@pytest.mark.parametrize("make", [lambda a: leaf(*a), tg.nn.Parameter])
def test_leaves_never_share_gradient_memory(make):
    x, y = make([1.0, 2.0]), make([3.0, 4.0])
    cotangent = np.ones(2, np.float32)
    (x + y).backward(cotangent)
    x.grad[0] = 9
    assert y.grad.tolist() == [1, 1] and cotangent.tolist() == [1, 1]


# no_grad.


def test_no_grad_nests_decorates_and_survives_exceptions():
    x = leaf(1.0)

    @tg.no_grad()
    def double(depth):
        return double(depth - 1) if depth else x * 2

    assert not double(3).requires_grad
    with tg.no_grad():
        with tg.no_grad():
            pass
        assert not (x * 2).requires_grad
    assert (x * 2).requires_grad

    @tg.no_grad()
    def fails():
        raise KeyError

    for _ in range(2):
        with pytest.raises(KeyError):
            fails()
        assert (x * 2).requires_grad


def test_no_grad_is_per_thread():
    x, block = leaf(1.0), tg.no_grad()
    inside, leave, seen = threading.Event(), threading.Event(), []

    def other():
        with tg.no_grad(), block:
            inside.set()
            leave.wait(10)
        seen.append((x * 2).requires_grad)

    thread = threading.Thread(target=other)
    with block:
        thread.start()
        inside.wait(10)
    here = (x * 2).requires_grad
    leave.set()
    thread.join()
    assert here and seen == [True]


# Saved arrays.


def test_a_saved_array_is_read_only_until_the_walk():
    x = leaf(1.0, 2.0, 3.0)
    y = (x * x).sum()
    for write in (
        lambda: x.data.__setitem__(0, 5.0),
        lambda: x.data[:2].__setitem__(0, 5.0),
        lambda: x.data.reshape(3, 1).__setitem__(0, 5.0),
        lambda: x.reshape(3, 1).data.__setitem__(0, 5.0),
        lambda: np.add(x.data, 1, out=x.data),
    ):
        with pytest.raises(ValueError, match="read-only"):
            write()
    y.backward()
    assert x.grad.tolist() == [2, 4, 6]
    x.data[0] = 5.0
    assert x.tolist() == [5, 2, 3]


def test_saving_a_view_guards_the_array_below():
    x = leaf(1.0, 2.0, 3.0, 4.0)
    y = x.reshape(2, 2).T.exp()
    z = x.reshape(2, 2) * x.reshape(2, 2)
    with pytest.raises(ValueError, match="read-only"):
        x.data[0] = 5.0
    (z.sum() + y.sum()).backward()
    x.data[0] = 5.0


def test_saving_a_sliding_window_guards_the_array_below():
    """NumPy puts an object of its own between the two."""

    def forward(ctx, x):
        ctx.save_for_backward(sliding_window_view(x, 2))
        return x * 2

    x = leaf(1.0, 2.0, 3.0)
    y = function(forward, lambda ctx, grad: grad * 2).apply(x)
    with pytest.raises(ValueError, match="read-only"):
        x.data[0] = 5.0
    y.sum().backward()
    x.data[0] = 5.0
    assert not locks.held


def test_a_dropped_graph_opens_its_arrays():
    x = leaf(1.0, 2.0)
    y, z = x * x, x.log()
    del y
    with pytest.raises(ValueError, match="read-only"):
        x.data[0] = 5.0
    del z
    x.data[0] = 5.0
    assert not locks.held


def test_a_forward_that_fails_opens_its_arrays():
    class Fails(tg.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            raise KeyError

    x = leaf(1.0)
    with pytest.raises(KeyError):
        Fails.apply(x)
    x.data[0] = 2.0


def test_a_context_that_cannot_be_made_leaves_no_trace(monkeypatch):
    class Odd:
        @property
        def shape(self):
            raise KeyError("no shape")

    ignored = []
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)
    with pytest.raises(KeyError):
        function(lambda ctx, x, odd: x, lambda ctx, g: (g, None)).apply(leaf(1.0), Odd())
    gc.collect()
    assert not ignored


def test_what_is_saved_need_not_be_an_array():
    def forward(ctx, x, power):
        ctx.save_for_backward(x, power, None, "text")
        return x**power

    def backward(ctx, grad):
        x, power, nothing, text = ctx.saved_tensors
        assert nothing is None and text == "text"
        return grad * power * x ** (power - 1), None

    x = leaf(1.0, 2.0)
    function(forward, backward).apply(x, 3).sum().backward()
    assert x.grad.tolist() == [3, 12]


def test_a_view_saved_beside_its_base_opens_with_it():
    x = leaf(1.0, 2.0, 3.0)
    kept = x.data[::2]

    class Pair(tg.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(kept, x)
            return x * 2

        @staticmethod
        def backward(ctx, grad):
            return grad * 2

    y = Pair.apply(x)
    assert not kept.flags.writeable
    y.sum().backward()
    kept[0] = 7
    x.data[1] = 8
    assert x.tolist() == [7, 8, 3]


def test_saved_results_are_guarded_too():
    x = leaf(1.0, 2.0)
    y = x.exp()
    with pytest.raises(ValueError, match="read-only"):
        y.data[0] = 0
    y.sum().backward()
    y.data[0] = 0


def test_nobody_writes_into_a_tensor_through_a_view_of_it():
    x = Tensor([1.0, 2.0, 3.0, 4.0])
    for view in (x.reshape(2, 2), x.unsqueeze(0), x.T, x[1:], x.split(2)[1]):
        with pytest.raises(ValueError, match="read-only"):
            view.data[0] = 9
    x.data[0] = 5.0
    assert x.reshape(2, 2).tolist() == [[5, 2], [3, 4]]


def test_outside_a_graph_arrays_stay_writable():
    x = leaf(1.0, 2.0)
    with tg.no_grad():
        x.exp()
    y = x + 1.0  # needs nothing for backward
    x.data[0] = 3.0
    y.sum().backward()


def test_assigning_data_makes_the_old_graph_raise():
    for replaced, use in (("x", lambda y: y * y), ("y", lambda y: y * y), ("y", lambda y: y + 1.0)):
        x = leaf(1.0, 2.0)
        y = x.exp()
        z = (use(y) + x * x).sum()
        target = x if replaced == "x" else y
        target.data = np.zeros(2, np.float32)
        with pytest.raises(RuntimeError, match=r"\.data was replaced.*forward again"):
            z.backward()
    w = tg.nn.Parameter([1.0, 2.0])
    z = (w * w).sum()
    w.assign([np.zeros(1, np.float32), np.ones(1, np.float32)])
    with pytest.raises(RuntimeError, match=r"\.data was replaced"):
        z.backward()
    x.data = [3.0, 4.0]
    x.grad = None
    (x * x).sum().backward()
    assert x.grad.tolist() == [6, 8]


@pytest.mark.parametrize("make", [lambda a: Tensor(a, requires_grad=True), tg.nn.Parameter])
def test_data_may_change_dtype_but_not_shape(make):
    x = make(np.ones(2, np.float32))
    (x * 2).sum().backward()
    x.data = np.ones(2)
    assert x.dtype == x.grad.dtype == np.float64
    with pytest.raises(ValueError, match=r"\(2,\).*\(3,\)"):
        x.data = np.ones(3)
    with pytest.raises(TypeError, match="int64"):
        x.data = [1, 2]
    assert x.tolist() == [1, 1]


@pytest.mark.parametrize("optimizer", [tg.optim.SGD, tg.optim.AdamW])
def test_a_step_while_a_stale_graph_lives(optimizer):
    w = tg.nn.Parameter([[1.0, 2.0]])
    opt = optimizer([w], lr=0.1, weight_decay=0.0)
    stale = (w * w).sum()
    (w * 3).sum().backward()
    opt.step()
    assert np.all(w.data < [[1.0, 2.0]])
    with pytest.raises(RuntimeError, match=r"\.data was replaced"):
        stale.backward()
    with pytest.raises(ValueError, match="read-only"):
        (w * w, w.data.fill(0))


# What backward computes and keeps.


def test_only_wanted_gradients_are_computed_and_saved():
    seen = []

    class Watch(tg.Function):
        @staticmethod
        def forward(ctx, a, b, c):
            seen.append(ctx.needs_input_grad)
            ctx.save_for_backward(a)
            return a * b

        @staticmethod
        def backward(ctx, grad):
            return grad, None, None

    a = leaf(1.0)
    Watch.apply(a, Tensor([2.0]), 3.0).sum().backward()
    assert seen == [(True, False, False)]
    with tg.no_grad():
        Watch.apply(a, Tensor([2.0]), 3.0)
    assert seen[1] == (False, False, False)

    constant = Tensor([2.0])
    product = a * constant
    arrays = [entry[1] for entry in product._made_by[0]._saved if entry is not None]
    assert len(arrays) == 1 and arrays[0] is constant.data
    product.sum().backward()
    assert constant.grad is None
    weight = tg.nn.Parameter(np.ones((2, 3), np.float32), requires_grad=False)
    out = tg.functional.linear(Tensor(np.ones((1, 3)), True, np.float32), weight)
    assert [entry is None for entry in out._made_by[0]._saved] == [True, False]


def test_the_walk_frees_as_it_goes():
    x = Tensor(np.ones(100_000, np.float32), requires_grad=True)
    y = x
    for _ in range(10):
        y = y.tanh()
    y = y.sum()
    before = RECYCLER.live_bytes
    y.backward()
    assert before - RECYCLER.live_bytes >= 8 * x.data.nbytes


def test_parameter_gradients_have_the_parameter_dtype():
    half = Tensor(np.ones((2, 2), np.float16), requires_grad=True)
    single = tg.nn.Parameter(np.ones((2, 2), np.float32))
    double = Tensor(np.ones((2, 2)), requires_grad=True)
    y = (half * single + single @ double + tg.where(double.data > 0, half, double)).exp()
    y.sum().backward()
    assert y.dtype == np.float64
    assert (half.grad.dtype, single.grad.dtype) == (np.float16, np.float32)
    assert double.grad.dtype == np.float64


def test_memory_is_flat_without_the_garbage_collector():
    rng = np.random.default_rng(0)
    model = tg.nn.Sequential(
        tg.nn.Linear(64, 256, rng=rng), Tensor.tanh, tg.nn.LayerNorm(256), tg.nn.Dropout(0.1, rng),
        tg.nn.Linear(256, 32, rng=rng),
    )  # fmt: skip
    optimizer = tg.optim.AdamW(model.parameters(), lr=1e-3)
    x = rng.standard_normal((128, 64), dtype=np.float32)
    target = rng.integers(0, 32, 128)
    process = psutil.Process(os.getpid())

    def train(steps):
        for _ in range(steps):
            loss = tg.functional.cross_entropy(tg.checkpoint(model, Tensor(x)), target)
            optimizer.zero_grad()
            loss.backward()
            tg.optim.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        return loss.item()

    train(2)  # compiles kernels, which leaves cycles of Numba's
    gc.collect()
    gc.disable()
    try:
        first = train(20)
        mapped, resident = RECYCLER.mapped_bytes, process.memory_info().rss
        last = train(200)
        assert last < first
        assert RECYCLER.mapped_bytes == mapped
        assert process.memory_info().rss - resident < 8e6
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        ours = [x for x in gc.garbage if isinstance(x, (Tensor, tape.Context, np.ndarray))]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert ours == []
    assert not locks.held


# Functions of users.


def function(forward, backward=lambda ctx, grad: grad):
    """A Function with the given halves."""
    parts = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type("Mine", (tg.Function,), parts)


def test_a_function_with_several_results():
    op = function(lambda ctx, x: (x * 2, x * 3), lambda ctx, g, h: 2 * g + 3 * h)
    x = leaf(1.0, 2.0)
    a, b = op.apply(x)
    (a * 10 + b).sum().backward()
    assert x.grad.tolist() == [23, 23]
    x.zero_grad()
    op.apply(x)[1].sum().backward()
    assert x.grad.tolist() == [3, 3]


def test_a_function_with_numbers_and_keywords():
    def forward(ctx, x, power, scale=1.0):
        ctx.save_for_backward(x)
        ctx.power, ctx.scale = power, scale
        return scale * x**power

    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * ctx.scale * ctx.power * x ** (ctx.power - 1), None

    x = leaf(1.0, 2.0)
    function(forward, backward).apply(x, 3, scale=2.0).sum().backward()
    assert x.grad.tolist() == [6, 24]


def test_a_backward_may_use_the_array_it_returns_again():
    buffer = np.empty(2, np.float32)
    op = function(lambda ctx, x: x * 2, lambda ctx, g: np.multiply(g, 2, out=buffer))
    x = leaf(1.0, 2.0)
    y = x * 1.0
    (op.apply(y) + op.apply(y) * 10).sum().backward()
    assert x.grad.tolist() == [22, 22]


def test_a_function_that_returns_its_input_or_a_part_of_it():
    for forward, backward, grad in (
        (lambda ctx, x: x, lambda ctx, g: g, [1, 1]),
        (lambda ctx, x: x[:1], lambda ctx, g: np.append(g, 0), [1, 0]),
    ):
        x = leaf(1.0, 2.0)
        y = function(forward, backward).apply(x)
        assert y is not x
        with pytest.raises(ValueError, match="read-only"):
            y.data[0] = 5
        y.sum().backward()
        assert x.grad.tolist() == grad


@pytest.mark.parametrize(
    ("error", "message", "forward", "backward"),
    [
        (RuntimeError, "2 gradients for 1 inputs", None, lambda ctx, g: (g, g)),
        (RuntimeError, "0 gradients for 1 inputs", None, lambda ctx, g: ()),
        (RuntimeError, "None for input 0", None, lambda ctx, g: None),
        (RuntimeError, r"\(3,\), expected \(2,\)", None, lambda ctx, g: np.ones(3)),
        (ValueError, "read-only", None, lambda ctx, g: np.multiply(g, 2, out=g)),
        (TypeError, "Mine.forward gave list", lambda ctx, x: [x], None),
        (TypeError, "Mine.forward gave Tensor", lambda ctx, x: Tensor(x), None),
        (TypeError, "gave int64.*detach", lambda ctx, x: x.astype(np.int64), None),
    ],
)
def test_functions_that_break_the_rules(error, message, forward, backward):
    op = function(forward or (lambda ctx, x: x * 2), backward or (lambda ctx, g: g))
    with pytest.raises(error, match=message):
        (op.apply(leaf(1.0, 2.0)) * 2).sum().backward()


def test_a_gradient_left_out_for_a_tensor_raises():
    op = function(lambda ctx, a, b: a * b, lambda ctx, grad: grad)
    with pytest.raises(RuntimeError, match="1 gradients for 2 inputs"):
        op.apply(leaf(1.0), leaf(2.0)).sum().backward()


def test_a_missing_transpose_is_named():
    op = function(lambda ctx, x: x.T.copy())
    x = Tensor(np.ones((2, 3)), requires_grad=True)
    with pytest.raises(RuntimeError, match="missing transpose"):
        op.apply(x).sum().backward()


def test_tensors_whose_gradient_would_be_lost_are_refused():
    op = function(lambda ctx, x, other=None: x * 2)
    for call in (
        lambda w: op.apply(Tensor([1.0]), other=w),
        lambda w: op.apply([w, w]),
    ):
        with pytest.raises(TypeError, match="positional"):
            call(leaf(2.0))


def test_a_function_without_halves():
    with pytest.raises(NotImplementedError, match="forward"):
        tg.Function.apply(leaf(1.0))


# NaN and infinity.


def test_detect_nan_names_op_and_phase():
    x = leaf(-1.0, 1.0)
    with np.errstate(all="ignore"):
        with (
            tg.detect_nan(),
            pytest.raises(tg.NonFiniteError, match=r"Log.*NaN.*forward") as caught,
        ):
            x.log()
        assert (caught.value.op, caught.value.phase) == ("Log", "forward")
        zero = leaf(0.0, 1.0)
        with tg.detect_nan():
            y = zero.sqrt().sum()
            with pytest.raises(tg.NonFiniteError, match=r"Sqrt.*infinity.*backward") as caught:
                y.backward()
        assert (caught.value.op, caught.value.phase) == ("Sqrt", "backward")
        x.log()


def test_detect_nan_names_the_module():
    class Root(tg.nn.Module):
        def forward(self, x):
            return x.sqrt()

    root = Root()
    with tg.detect_nan(), np.errstate(all="ignore"):
        with pytest.raises(tg.NonFiniteError, match="in Root") as caught:
            root(leaf(-1.0))
        assert caught.value.module is root
        y = root(leaf(0.0)).sum()
        with pytest.raises(tg.NonFiniteError) as caught:
            y.backward()
        assert caught.value.module is root


def test_a_function_cannot_overwrite_its_inputs():
    """The numbers may be saved elsewhere, and the gradient there would be another's."""

    class Doubled(tg.Function):
        @staticmethod
        def forward(ctx, x):
            x *= 2
            return x

        @staticmethod
        def backward(ctx, grad):
            return grad * 2

    x = Tensor([1.0, 2.0], requires_grad=True) + 0.0
    with pytest.raises(ValueError, match="read-only"):
        Doubled.apply(x)
    assert x.tolist() == [1.0, 2.0]
