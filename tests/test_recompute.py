"""Recomputation: the same bits as without, and loud where it could not be."""

import concurrent.futures

import numpy as np
import pytest

import tinygrad_edu as tg
from tinygrad_edu import Tensor
from tinygrad_edu import functional as F


class Block(tg.nn.Module):
    def __init__(self, rng):
        self.norm = tg.nn.LayerNorm(8)
        self.up, self.down = tg.nn.Linear(8, 16, rng=rng), tg.nn.Linear(16, 8, rng=rng)
        self.drop = tg.nn.Dropout(0.3, rng)

    def forward(self, x):
        return x + self.drop(self.down(self.up(self.norm(x)).gelu()))


def run(mode):
    rng = np.random.default_rng(7)
    blocks = [Block(rng) for _ in range(3)]
    inputs = np.random.default_rng(1).standard_normal((4, 8)).astype(np.float32)
    x = Tensor(inputs, requires_grad=True)
    x.grad = np.full((4, 8), 0.1)  # what is there already takes part in the order of the sums

    def inner(h):
        return blocks[1](tg.checkpoint(blocks[0], h) if mode == "nested" else blocks[0](h))

    h = tg.checkpoint(inner, x) if mode != "plain" else inner(x)
    h = tg.checkpoint(blocks[2], h) if mode != "plain" else blocks[2](h)
    loss = (h * h + x * h).sum()
    loss.backward()
    return [loss.data, x.grad, *(p.grad for block in blocks for p in block.parameters())]


@pytest.mark.parametrize("mode", ["checkpoint", "nested"])
def test_gradients_are_the_same_bits(mode):
    for ours, expected in zip(run(mode), run("plain"), strict=True):
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_sums_keep_their_order_around_a_checkpoint(dtype):
    values = np.random.default_rng(0).standard_normal((6, 400)).astype(dtype)

    def gradient(wrap):
        x = Tensor(values[0], requires_grad=True)
        h = x * 1.0
        f = lambda a: a * values[1] + a * values[2] + a * values[3]  # noqa: E731
        y = h * values[4] + wrap(f, h) + h * values[5]
        y.backward(values[1])
        return x.grad

    np.testing.assert_array_equal(gradient(tg.checkpoint), gradient(lambda f, a: f(a)))


def test_arguments_that_are_not_tensors_arrive_as_they_are():
    ids = np.array([2, 0])
    seen = []

    def f(x, array, number, nothing, text):
        seen.append((type(array), number, nothing, text))
        return x[array] * number

    x = Tensor([1.0, 2.0, 3.0], requires_grad=True)
    tg.checkpoint(f, x, ids, 3.0, None, "a").sum().backward()
    assert seen == [(np.ndarray, 3.0, None, "a")] * 2
    assert x.grad.tolist() == [3, 0, 3]


def test_parameters_from_the_closure_get_gradients():
    w = tg.nn.Parameter([2.0, 3.0])
    tg.checkpoint(lambda x: x * w, Tensor([5.0, 7.0])).sum().backward()
    assert w.grad.tolist() == [5, 7]


def test_a_function_that_returns_its_input_or_a_parameter():
    x, w = Tensor([1.0, 2.0], requires_grad=True), tg.nn.Parameter([1.0, 2.0])
    same = tg.checkpoint(lambda a: a, x)
    same.backward([3.0, 4.0])
    with pytest.raises(ValueError, match="read-only"):
        same.data[0] = 9  # which is x.data
    out = tg.checkpoint(lambda: w)
    out.backward([5.0, 6.0])
    assert x.grad.tolist() == [3, 4]
    assert w.grad.tolist() == [5, 6]
    assert not np.shares_memory(out.data, w.data)


def test_an_input_without_use_gets_zeros():
    x, y = Tensor([1.0], requires_grad=True), Tensor([2.0], requires_grad=True)
    tg.checkpoint(lambda a, b: b * 2, x, y).backward([1.0])
    assert x.grad.tolist() == [0] and y.grad.tolist() == [2]


def test_a_parameter_changed_before_backward_raises():
    layer = tg.nn.Linear(3, 3)
    y = tg.checkpoint(lambda x: layer(x).tanh(), Tensor(np.ones((2, 3), np.float32))).sum()
    with pytest.raises(ValueError, match="read-only"):
        layer.weight.data[0, 0] = 1
    layer.weight.data = layer.weight.data * 2
    with pytest.raises(RuntimeError, match=r"\.data was replaced"):
        y.backward()


def test_a_frozen_parameter_changed_before_backward_raises():
    frozen, x = tg.nn.Parameter([3.0], requires_grad=False), Tensor([2.0], requires_grad=True)
    tg.checkpoint(lambda x: x * frozen, x).backward()
    assert x.grad.tolist() == [3] and frozen.grad is None
    y = tg.checkpoint(lambda x: x * frozen, x)
    with pytest.raises(ValueError, match="read-only"):
        frozen.data[0] = 7
    frozen.data = [7.0]
    with pytest.raises(RuntimeError, match=r"\.data was replaced"):
        y.backward()


def test_a_result_from_outside_must_be_an_input():
    h = Tensor([1.0, 2.0], requires_grad=True).exp()
    with pytest.raises(ValueError, match="pass it to checkpoint as an input"):
        tg.checkpoint(lambda x: x * h, Tensor([1.0, 1.0]))


def test_only_one_tensor_may_come_out():
    with pytest.raises(TypeError, match="one Tensor, got tuple"):
        tg.checkpoint(lambda x: (x, x), Tensor([1.0], requires_grad=True))


def test_without_gradients_it_just_calls():
    with tg.no_grad():
        out = tg.checkpoint(lambda x: x * 2, Tensor([1.0], requires_grad=True))
    assert not out.requires_grad and out.tolist() == [2]


def test_a_result_wants_a_gradient_if_something_in_it_does():
    x, w = Tensor([1.0, 2.0]), tg.nn.Parameter([3.0, 4.0])
    out = tg.checkpoint(lambda a: a * 2, x)
    assert not out.requires_grad and out.tolist() == [2, 4]
    assert (out * w).requires_grad
    x.data[0] = 5  # which no graph holds any more
    assert tg.checkpoint(lambda a: a * w, x).requires_grad
    x.requires_grad = True
    assert tg.checkpoint(lambda a: a * 2, x).requires_grad
    frozen = tg.nn.Parameter([1.0], requires_grad=False)
    assert not tg.checkpoint(lambda a: a * frozen, Tensor([1.0])).requires_grad


def test_only_the_inputs_are_kept():
    x = Tensor(np.ones((50, 40), np.float32), requires_grad=True)
    y = tg.checkpoint(lambda a: a.exp().tanh().exp().sum(), x)
    saved = [entry for entry in y._made_by[0]._saved if entry is not None]
    assert [entry[0][0] for entry in saved] == [x]


def test_masks_drawn_while_recomputing_do_not_move_the_generator():
    rng = np.random.default_rng(3)
    x = Tensor(np.ones((5, 5), np.float32), requires_grad=True)
    y = tg.checkpoint(lambda a: F.dropout(a, 0.5, True, rng), x)
    before = rng.bit_generator.state
    y.backward(np.ones((5, 5)))
    assert rng.bit_generator.state == before
    np.testing.assert_array_equal(x.grad, y.data)


def test_a_second_run_that_differs_is_said():
    x, runs = Tensor(np.ones(3), requires_grad=True), []

    def draws_more(x):
        runs.append(1)
        for _ in runs:
            x = F.dropout(x, 0.5, rng=np.random.default_rng(0))
        return x

    y = tg.checkpoint(draws_more, x)
    with pytest.raises(RuntimeError, match="drew more random numbers"):
        y.sum().backward()

    def another_shape(x):
        runs.append(1)
        return x * 1 if len(runs) == 3 else x.sum()

    y = tg.checkpoint(another_shape, x)
    with pytest.raises(RuntimeError, match=r"gave shape \(3,\), and \(\) when it was run again"):
        y.sum().backward()


def test_checkpoints_in_several_threads_draw_their_own_numbers():
    def gradient(seed):
        x, rng = Tensor(np.ones(2000), requires_grad=True), np.random.default_rng(seed)
        for _ in range(20):
            tg.checkpoint(lambda x: F.dropout(x * 2, 0.5, rng=rng), x).sum().backward()
        return x.grad.copy()

    expected = [gradient(seed) for seed in range(4)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(gradient, range(4)))
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
