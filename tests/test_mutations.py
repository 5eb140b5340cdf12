"""Bugs planted in every backward: `gradcheck` must go red for each, and name the mistake.

The matrices are square, so that no planted bug can be caught by its shape alone.
"""

import numpy as np
import pytest

import tinygrad_edu as tg
from tinygrad_edu import functional as F
from tinygrad_edu import ops, tape
from tinygrad_edu.ops.linear import as_column, as_row
from tinygrad_edu.tensor import apply

RNG = np.random.default_rng(7)
SQUARE = RNG.uniform(0.5, 2, (3, 3))
OTHER = RNG.uniform(0.5, 2, (3, 3))
ROW = RNG.uniform(0.5, 2, 3)
IDS = np.array([0, 2, 1])
CHOICE = np.array([[True, False, True], [False, False, True], [True, True, False]])
HEADS = [RNG.standard_normal((2, 3, 3)) for _ in range(3)]


def dropped(x):
    return F.dropout(x, 0.3, rng=np.random.default_rng(0))


HEALTHY = {
    ops.Abs: (lambda x: abs(x), SQUARE),
    ops.Add: (lambda a, b: a + b, SQUARE, OTHER),
    ops.Attention: (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        *HEADS,
    ),
    ops.Cast: (lambda x: apply(ops.Cast, x, dtype=np.dtype(np.float64)), SQUARE),
    ops.Clip: (lambda x: x.clip(0.1, 1.9999), SQUARE),
    ops.Concatenate: (lambda a, b: tg.concatenate([a, b], 1), SQUARE, OTHER),
    ops.CrossEntropy: (lambda x: F.cross_entropy(x, IDS), SQUARE),
    ops.Divide: (lambda a, b: a / b, SQUARE, OTHER),
    ops.Dropout: (dropped, SQUARE),
    ops.Einsum: (lambda a, b: tg.einsum("ij,jk->ik", a, b), SQUARE, OTHER),
    ops.Embedding: (lambda w: F.embedding(np.array([1, 0, 1, 2]), w), SQUARE),
    ops.Exp: (lambda x: x.exp(), SQUARE),
    ops.Gelu: (lambda x: x.gelu(), SQUARE),
    ops.Index: (lambda x: x[[2, 0, 2, 1]], SQUARE),
    ops.LayerNorm: (lambda x, w, b: F.layer_norm(x, 3, w, b), SQUARE, ROW, ROW - 1),
    ops.Linear: (lambda x, w, b, r: F.linear(x, w, b, residual=r), SQUARE, OTHER, ROW, SQUARE - 1),
    ops.LinearCrossEntropy: (lambda x, w: F.linear_cross_entropy(x, w, IDS), SQUARE, OTHER),
    ops.Log: (lambda x: x.log(), SQUARE),
    ops.LogSoftmax: (lambda x: x.log_softmax(), SQUARE),
    ops.Matmul: (lambda a, b: a @ b, SQUARE, OTHER),
    ops.MergeHeads: (lambda x: F.merge_heads(x.reshape(1, 1, 3, 3)), SQUARE),
    ops.Max: (lambda x: x.max(axis=0), SQUARE),
    ops.Maximum: (tg.maximum, SQUARE, OTHER),
    ops.Mean: (lambda x: x.mean(axis=0), SQUARE),
    ops.Min: (lambda x: x.min(axis=0), SQUARE),
    ops.Minimum: (tg.minimum, SQUARE, OTHER),
    ops.Multiply: (lambda a, b: a * b, SQUARE, OTHER),
    ops.Negate: (lambda x: -x, SQUARE),
    ops.Permute: (lambda x: x.T, SQUARE),
    ops.Power: (lambda a, b: a**b, SQUARE, OTHER),
    ops.Relu: (lambda x: x.relu(), SQUARE - 1.01),
    ops.Reshape: (lambda x: x.reshape(9), SQUARE),
    ops.SelfAttention: (lambda x: F.self_attention(x.reshape(1, 3, 3), 1, is_causal=True), SQUARE),
    ops.Sigmoid: (lambda x: x.sigmoid(), SQUARE),
    ops.Softmax: (lambda x: x.softmax(), SQUARE),
    ops.Split: (lambda x: x.split(2), SQUARE),
    ops.SplitHeads: (lambda x: F.split_heads(x.reshape(1, 3, 3), 3), SQUARE),
    ops.Sqrt: (lambda x: x.sqrt(), SQUARE),
    ops.Stack: (lambda a, b: tg.stack([a, b]), SQUARE, OTHER),
    ops.Subtract: (lambda a, b: a - b, SQUARE, OTHER),
    ops.Sum: (lambda x: x.sum(axis=0), SQUARE),
    ops.Tanh: (lambda x: x.tanh(), SQUARE),
    ops.Variance: (lambda x: x.var(axis=0), SQUARE),
    ops.Where: (lambda a, b: tg.where(CHOICE, a, b), SQUARE, OTHER),
}

CHANGES = {
    "wrong sign": lambda g: -g,
    "constant factor: the gradient is 2 times": lambda g: 2 * g,
    "constant factor: the gradient is 0.5 times": lambda g: g / 2,
    "transposed": lambda g: g.swapaxes(-1, -2) if g.ndim >= 2 else g,
    "zero gradient": lambda g: np.zeros_like(g),
}
ELEMENTWISE = [
    ops.Add, ops.Subtract, ops.Multiply, ops.Divide, ops.Power, ops.Maximum, ops.Minimum, ops.Where,
]  # fmt: skip
SMALL = [(3,), (1, 3), (3, 1), (1,), (), (2, 4, 1, 1)]


def plant(monkeypatch, op, position, change):
    """Passes the gradient that `op.backward` gives for its input at `position` through `change`."""
    healthy = op.backward

    def backward(ctx, *grads):
        results = healthy(ctx, *grads)
        results = list(results) if isinstance(results, tuple) else [results]
        results[position] = change(np.asarray(results[position]))
        return tuple(results)

    monkeypatch.setattr(op, "backward", staticmethod(backward))


def red(f, *inputs):
    with pytest.raises(tg.GradcheckError) as caught:
        tg.gradcheck(f, *inputs)
    return str(caught.value)


def test_every_op_has_bugs_planted():
    assert set(HEALTHY) == set(ops.CATALOGUE)


@pytest.mark.parametrize("op", HEALTHY, ids=lambda op: op.__name__)
def test_healthy_is_green(op):
    assert tg.gradcheck(*HEALTHY[op])


@pytest.mark.parametrize("op", HEALTHY, ids=lambda op: op.__name__)
@pytest.mark.parametrize("named", CHANGES)
def test_planted_in_backward(monkeypatch, op, named):
    f, *inputs = HEALTHY[op]
    first = 1 if op is ops.Where else 0  # the condition comes before the inputs
    for wrong in range(len(inputs)):
        if named == "transposed" and inputs[wrong].ndim < 2:
            continue
        with monkeypatch.context() as patch:
            plant(patch, op, wrong + first, CHANGES[named])
            message = red(f, *inputs)
        assert f"likely cause: {named}" in message
        assert f"the gradient of input {wrong} of f" in message


def one_slice(grad, shape, what="gradient"):
    """`tape.unbroadcast`, but it takes the first of the gradients that should be summed."""
    extra = grad.ndim - len(shape)
    grad = grad[(0,) * extra]
    return grad[tuple(slice(0, n) for n in shape)]


def mean_of_slices(grad, shape, what="gradient"):
    extra = grad.ndim - len(shape)
    axes = tuple(range(extra)) + tuple(
        extra + i for i, n in enumerate(shape) if n != grad.shape[extra + i]
    )
    return grad.mean(axis=axes).reshape(shape)


@pytest.mark.parametrize(
    ("op", "shape"),
    [(op, shape) for op in ELEMENTWISE for shape in SMALL] + [(ops.Matmul, (1, 3, 3))],
    ids=lambda x: getattr(x, "__name__", str(x)),
)
@pytest.mark.parametrize(
    ("unbroadcast", "named"),
    [(one_slice, "missing sum over broadcast axis"), (mean_of_slices, "a mean, not a sum")],
)
def test_wrong_broadcast_sum(monkeypatch, op, shape, unbroadcast, named):
    rng = np.random.default_rng(7)
    small, large = rng.uniform(0.5, 2, shape), rng.uniform(0.5, 2, (2, 4, 3, 3))
    large[0, 0] = {ops.Maximum: 0.1, ops.Minimum: 2.5}.get(op, large[0, 0])  # no slice of zeros
    f = HEALTHY[op][0]
    if op is ops.Where:
        condition = (large > 1.2) | (np.arange(2) == 0)[:, None, None, None]
        f = lambda a, b: tg.where(condition, a, b)  # noqa: E731
    if op is ops.Matmul:
        small, large = rng.standard_normal((1, 3, 3)), rng.standard_normal((4, 3, 3))
    assert tg.gradcheck(f, small, large)
    monkeypatch.setattr(tape, "unbroadcast", unbroadcast)
    message = red(f, small, large)
    assert named in message
    assert "the gradient of input 0 of f" in message


# Products written without their transposes.


def matmul_backward(b_transposed, a_transposed):
    def backward(ctx, grad):
        a, b = ctx.saved_tensors
        right = as_column(b).swapaxes(-1, -2) if b_transposed else b
        left = as_row(a).swapaxes(-1, -2) if a_transposed else a
        return grad @ right, left @ grad

    return backward


def linear_backward(weight_transposed, grad_transposed):
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        weight = weight.rows(0, len(weight))
        dweight = grad.T @ x if grad_transposed else grad @ x
        dx = grad @ (weight.T if weight_transposed else weight)
        return dx, dweight, grad.sum(axis=0), grad

    return backward


def einsum_backward(first, second):
    def backward(ctx, grad):
        a, b = ctx.saved_tensors
        return np.einsum(first, grad, b), np.einsum(second, grad, a)

    return backward


@pytest.mark.parametrize(
    ("op", "backward", "named"),
    [
        (ops.Matmul, matmul_backward(True, True), None),
        (ops.Matmul, matmul_backward(False, True), "input 1 is used untransposed"),
        (ops.Matmul, matmul_backward(True, False), "input 0 is used untransposed"),
        (ops.Linear, linear_backward(False, True), None),
        (ops.Linear, linear_backward(True, True), "input 1 is used untransposed"),
        (ops.Linear, linear_backward(False, False), "incoming gradient is used untransposed"),
        (ops.Einsum, einsum_backward("ik,jk->ij", "ik,ij->jk"), None),
        (ops.Einsum, einsum_backward("ij,jk->ik", "ik,ij->jk"), "input 1 is used untransposed"),
        (ops.Einsum, einsum_backward("ik,jk->ij", "jk,ij->ik"), "input 0 is used untransposed"),
    ],
)
def test_products_without_their_transposes(monkeypatch, op, backward, named):
    monkeypatch.setattr(op, "backward", staticmethod(backward))
    if named is None:
        assert tg.gradcheck(*HEALTHY[op])
    else:
        assert (
            f"likely cause: missing transpose: {'the ' if 'incoming' in named else ''}{named}"
            in red(*HEALTHY[op])
        )
