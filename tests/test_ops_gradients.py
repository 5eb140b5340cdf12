"""One table lists every public differentiable operation; each entry goes through `tg.gradcheck`.

An entry draws a function and its inputs: 0-d, size 0, size 1, broadcast, every `axis` and
`keepdims`. The test then feeds the inputs plain, with transposed memory, or through a strided
slice. Values are spread apart and away from 0, so that no kink is near.
"""

import math
import operator
import types

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import tinygrad_edu as tg
from tinygrad_edu import functional as F
from tinygrad_edu import ops, tape
from tinygrad_edu.tensor import apply

settings.register_profile(
    "gradients",
    max_examples=20,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],  # the inputs are tiny as drawn: a failure is shown at once
    suppress_health_check=list(HealthCheck),
)
PROFILE = settings.get_profile("gradients")

SHAPES = [(), (1,), (3,), (0,), (2, 3), (3, 1), (2, 0), (2, 1, 3), (2, 2, 3)]
PAIRS = [
    ((), ()), ((3,), (3,)), ((2, 3), (3,)), ((2, 3), (2, 1)), ((), (2, 3)), ((1,), (3,)),
    ((1, 1), (2, 3)), ((2, 1, 3), (4, 1)), ((0, 3), (3,)), ((0, 3), (1, 3)), ((2, 3), (1, 0, 1, 1)),
]  # fmt: skip
MATRICES = [
    ((2, 3), (3, 4)), ((3,), (3,)), ((3,), (3, 2)), ((2, 3), (3,)), ((2, 2, 3), (3, 2)),
    ((2, 1, 2, 3), (3, 3, 2)), ((2, 2, 3), (3,)), ((3,), (2, 3, 2)), ((1, 1), (1, 1)),
    ((0, 3), (3, 2)), ((2, 0), (0, 2)), ((2, 3), (2, 3, 2)), ((1, 2, 3), (4, 3, 2)),
]  # fmt: skip


def apart(seed, *shapes, low=-2.0, high=2.0):
    """Arrays in (low, high) whose elements, taken together, keep a distance of each other and 0."""
    rng = np.random.default_rng(seed)
    n = sum(map(math.prod, shapes))
    n += n % 2  # so that 0 lies midway between two of an even number of slots
    slots = rng.permutation(n) + 0.5 + rng.uniform(-0.2, 0.2, n)
    pool = low + (high - low) * slots / max(n, 1)
    ends = np.cumsum([math.prod(shape) for shape in shapes])[:-1]
    parts = np.split(pool[: sum(map(math.prod, shapes))], ends)
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


class Draw:
    """What an entry draws from: values by shape, and choices."""

    def __init__(self, data):
        self.data = data

    def pick(self, *options):
        return self.data.draw(st.sampled_from(options))

    def values(self, *shapes, low=-2.0, high=2.0):
        return apart(self.data.draw(st.integers(0, 999)), *shapes, low=low, high=high)

    def one(self, **limits):
        return self.values(self.pick(*SHAPES), **limits)

    def two(self, **limits):
        shapes = self.pick(*PAIRS)
        return self.values(*shapes[:: self.pick(1, -1)], **limits)

    def axis(self, ndim, single=False):
        options = [*range(-ndim, ndim)]
        if not single:
            options += [None, *([(0, -1), (1, 0)] if ndim > 1 else [])]
        return self.pick(*options)


TABLE = {}


def entry(*names):
    def add(case):
        for name in names:
            TABLE[name] = case
        return case

    return add


def unary(name, f, **limits):
    TABLE[name] = lambda d: (f, *d.one(**limits))


def binary(name, f, **limits):
    TABLE[name] = lambda d: (f, *d.two(**limits))


unary("Tensor.__neg__", lambda x: -x)
unary("Tensor.__abs__", abs)
unary("Tensor.abs", lambda x: x.abs())
unary("Tensor.exp", lambda x: x.exp())
unary("Tensor.log", lambda x: x.log(), low=0.3)
unary("Tensor.sqrt", lambda x: x.sqrt(), low=0.3)
unary("Tensor.tanh", lambda x: x.tanh())
unary("Tensor.sigmoid", lambda x: x.sigmoid())
unary("Tensor.relu", lambda x: x.relu())
unary("Tensor.T", lambda x: x.T)
unary("cast", lambda x: apply(ops.Cast, x, dtype=np.dtype(np.float64)))
binary("Tensor.__add__", lambda a, b: a + b)
binary("Tensor.__sub__", lambda a, b: a - b)
binary("Tensor.__mul__", lambda a, b: a * b)
binary("Tensor.__truediv__", lambda a, b: a / b, low=0.3)
binary("Tensor.__pow__", lambda a, b: a**b, low=0.3)
binary("maximum", tg.maximum)
binary("minimum", tg.minimum)


@entry("Tensor.__pow__ by a number")
def _(d):
    p = d.pick(2, 3, -1, 0.5, 0, 1)
    return lambda x: x**p, *d.one(low=-2.0 if p == int(p) else 0.3)


def reflected(name, f):
    """The other operand is a Python number, a NumPy array or a NumPy number."""

    def case(d):
        c = d.pick(1.5, np.array([1.2, 0.7, 2.0]), np.float64(2))
        return lambda x: f(c, x), *d.values(d.pick((), (3,), (2, 3), (2, 1), (0, 3)), low=0.3)

    TABLE[f"Tensor.__r{name}__"] = case


reflected("add", operator.add)
reflected("sub", operator.sub)
reflected("mul", operator.mul)
reflected("truediv", operator.truediv)
reflected("pow", operator.pow)


@entry("Tensor.gelu", "functional.gelu")
def _(d):
    how = d.pick("none", "tanh")
    return d.pick(lambda x: x.gelu(how), lambda x: F.gelu(x, how)), *d.one()


@entry("Tensor.clip")
def _(d):
    low, high = d.pick((-0.5001, None), (None, 0.5001), (-0.7003, 0.4007))
    (x,) = d.one()
    x[np.abs(np.abs(x) - 0.5) < 0.03] = 0.9
    x[(np.abs(x + 0.7003) < 0.03) | (np.abs(x - 0.4007) < 0.03)] = 0.9
    return lambda x: x.clip(low, high), x


def reduction(name):
    def case(d):
        shapes = SHAPES if name == "sum" else [s for s in SHAPES if 0 not in s]
        (x,) = d.values(d.pick(*shapes))
        axis = d.axis(x.ndim)
        options = {"axis": axis, "keepdims": d.pick(False, True)}
        count = math.prod(x.shape[i] for i in ops.reduce.as_axes(axis, x.ndim))
        if name == "var" and count > 1:
            options["ddof"] = d.pick(0, 1)
        return lambda x: getattr(x, name)(**options), x

    TABLE[f"Tensor.{name}"] = case


def row_function(name):
    def case(d):
        (x,) = d.values(d.pick(*SHAPES[1:]))
        axis = d.axis(x.ndim, single=True)
        return lambda x: getattr(x, name)(axis), x

    def functional_case(d):
        (x,) = d.values(d.pick(*SHAPES[1:]))
        axis = d.axis(x.ndim, single=True)
        return lambda x: getattr(F, name)(x, axis), x

    TABLE[f"Tensor.{name}"], TABLE[f"functional.{name}"] = case, functional_case


for reducer in ("sum", "mean", "var", "max", "min"):
    reduction(reducer)
for normalizer in ("softmax", "log_softmax"):
    row_function(normalizer)


@entry("Tensor.reshape")
def _(d):
    shape = d.pick((6,), (3, 2), (2, -1), (1, 6, 1))
    return lambda x: x.reshape(shape), *d.values(d.pick((2, 3), (3, 2), (6,)))


@entry("Tensor.permute", "Tensor.transpose")
def _(d):
    order = d.pick((2, 0, 1), (0, 2, 1), (2, 1, 0), (-1, 0, 1))
    f = d.pick(
        lambda x: x.permute(*order), lambda x: x.transpose(*order), lambda x: x.transpose(0, -1)
    )
    return f, *d.values(d.pick((2, 3, 4), (1, 2, 2), (0, 2, 3)))


@entry("Tensor.squeeze", "Tensor.unsqueeze")
def _(d):
    axis = d.pick(0, 1, 2, -1, -2)
    f = d.pick(lambda x: x.squeeze(), lambda x: x.squeeze(1), lambda x: x.unsqueeze(axis))
    return f, *d.values(d.pick((2, 1, 3), (1, 1), (0, 1)))


@entry("Tensor.__getitem__", "Tensor.__iter__")
def _(d):
    mask = np.array([[True, False, True], [False, True, True]])
    ids = tg.Tensor(np.array([1, 0, 1, 1]))
    indices = [
        0, -1, slice(None), (1, 2), (slice(None), slice(None, None, -2)), (..., None), ids,
        (ids, np.array([0, 2, 0, 0])), mask, (slice(None), [2, 2, 0]), np.zeros(0, int),
        (slice(0, 0),), (None, slice(None), 1), (np.array([[0, 1], [1, 1]]), slice(1, None)),
    ]  # fmt: skip
    index = indices[d.pick(*range(len(indices)))]
    return d.pick(lambda x: x[index], lambda x: x[index], lambda x: tuple(x)), *d.values((2, 3))


@entry("Tensor.split")
def _(d):
    axis, size = d.pick((0, 2), (0, 1), (0, [1, 3]), (0, [4, 0]), (1, 2), (-1, [1, 2]), (1, 5))
    used = d.pick(slice(None), slice(0, 1), slice(-1, None))  # parts nobody uses get zeros
    return lambda x: x.split(size, axis)[used], *d.values((4, 3))


@entry("where")
def _(d):
    condition = d.pick(True, False, [True, False, True], [[True], [False]], np.zeros((2, 3), bool))
    c = d.pick(np.array(condition), tg.Tensor(condition))
    shapes = d.pick(((2, 3), (3,)), ((3,), (2, 1)), ((), (2, 3)), ((1, 3), (2, 3)), ((0, 2, 3), ()))
    return lambda a, b: tg.where(c, a, b), *d.values(*shapes)


@entry("concatenate")
def _(d):
    axis, *shapes = d.pick((0, (2, 3), (1, 3)), (1, (2, 3), (2, 0), (2, 2)), (-1, (3,), (1,)))
    return lambda *xs: tg.concatenate(xs, axis), *d.values(*shapes)


@entry("stack")
def _(d):
    shape, n = d.pick((), (3,), (2, 3), (0, 2)), d.pick(1, 2, 3)
    axis = d.pick(*range(-len(shape) - 1, len(shape) + 1))
    return lambda *xs: tg.stack(xs, axis), *d.values(*[shape] * n)


@entry("Tensor.__matmul__", "Tensor.__rmatmul__")
def _(d):
    a, b = d.values(*d.pick(*MATRICES))
    kind = d.pick("both", "left", "right")
    if kind == "both":
        return lambda x, y: x @ y, a, b
    return (lambda x: x @ b, a) if kind == "left" else (lambda y: a @ y, b)


@entry("einsum")
def _(d):
    subscripts, *shapes = d.pick(
        ("ij,jk->ik", (2, 3), (3, 4)), ("ij,jk", (2, 3), (3, 1)), ("ij->ji", (2, 3)),
        ("ij->", (2, 3)), ("ii->i", (3, 3)), ("ii", (3, 3)),
        ("...ij,...jk->...ik", (2, 2, 3), (3, 2)),
        ("bij,bjk->bik", (1, 2, 3), (4, 3, 2)), ("i,j->ij", (2,), (3,)), ("i,i->", (0,), (0,)),
        ("ij,j,i->i", (2, 3), (3,), (2,)), ("ij,kj->k", (2, 3), (2, 3)),
        ("iij,j->i", (2, 2, 3), (3,)),
        (",i->i", (), (3,)), ("ij,ij->ij", (2, 3), (1, 3)), ("ijk->j", (2, 3, 2)),
    )  # fmt: skip
    return lambda *xs: tg.einsum(subscripts, *xs), *d.values(*shapes)


@entry("functional.linear")
def _(d):
    lead, k, n = d.pick((), (2,), (2, 3), (0,), (2, 0)), d.pick(1, 3), d.pick(1, 2)
    bias, residual = d.pick((), ((n,),)), d.pick((), ((*lead, n),))

    def linear(x, w, *more):
        named = {"residual": more[-1]} if residual else {}
        return F.linear(x, w, more[0] if bias else None, **named)

    return linear, *d.values((*lead, k), (n, k), *bias, *residual)


@entry("functional.split_heads")
def _(d):
    (b, t, heads, width), parts = d.pick((2, 3, 2, 2), (1, 1, 1, 1), (0, 2, 1, 3)), d.pick(1, 2, 3)
    used = d.pick(slice(None), slice(0, 1), slice(-1, None))
    x = d.values((b, t, parts * heads * width))
    return lambda x: F.split_heads(x, heads, parts)[used], *x


@entry("functional.self_attention")
def _(d):
    (b, t, heads, width), causal = (
        d.pick((2, 3, 2, 2), (1, 1, 1, 1), (2, 0, 3, 1), (0, 2, 1, 3), (1, 2, 2, 0)),
        d.pick(True, False),
    )
    p, rng = d.pick(0.0, 0.4), np.random.default_rng
    attend = F.self_attention
    return lambda x: attend(x, heads, p, causal, rng=rng(5)), *d.values((b, t, 3 * heads * width))


@entry("functional.merge_heads")
def _(d):
    return F.merge_heads, *d.values(d.pick((2, 3, 2, 2), (1, 1, 1, 1), (2, 0, 3, 1), (1, 3, 2, 1)))


@entry("functional.embedding")
def _(d):
    ids = d.pick(np.array(2), np.array([0, 2, 2]), np.array([[1, 1], [3, 1]]), np.zeros((0,), int))
    padding = d.pick(None, None, 1, -1) if not np.isin(ids, (1, 3)).any() else None
    return lambda w: F.embedding(ids, w, padding), *d.values((4, d.pick(1, 3)))


@entry("functional.layer_norm", "functional.rms_norm")
def _(d):
    shape, row = d.pick(
        ((2, 3), (3,)), ((4,), (4,)), ((2, 2, 3), (2, 3)), ((0, 3), (3,)), ((2, 3, 4), (4,)),
        ((2, 1), (1,)),
    )  # fmt: skip
    eps = d.pick(1e-5, 0.1)
    if d.pick("layer", "rms") == "rms":
        return lambda x, *w: F.rms_norm(x, row, *w, eps=eps), *d.values(shape, *d.pick((), (row,)))
    return lambda x, *w: F.layer_norm(x, row, *w, eps=eps), *d.values(
        shape, *d.pick((), (row,), (row, row))
    )


def loss_options(d, rest, classes, axis):
    """A target (ids, some of them ignored, or probabilities) and the options of a loss."""
    rng = np.random.default_rng(d.pick(*range(5)))
    options = {
        "reduction": d.pick("mean", "sum", "none"),
        "label_smoothing": d.pick(0.0, 0.1),
        "weight": d.pick(None, rng.uniform(0.5, 2, classes)),
    }
    if d.pick("ids", "ids", "probabilities") == "probabilities":
        target = rng.dirichlet(np.ones(classes), rest)
        return np.moveaxis(target, -1, axis), options
    ids = rng.integers(0, classes, rest)
    if ids.size > 1 and d.pick(False, True):
        ids.flat[0], options["ignore_index"] = 1, 1
        ids.flat[1] = 0
    return ids, options


@entry("functional.cross_entropy")
def _(d):
    shape = d.pick((3,), (2, 3), (4, 2), (2, 3, 2), (2, 3, 2, 2))
    axis = min(1, len(shape) - 1)
    rest = shape[:axis] + shape[axis + 1 :]
    target, options = loss_options(d, rest, shape[axis], axis)
    return lambda x: F.cross_entropy(x, target, **options), *d.values(shape)


@entry("functional.linear_cross_entropy")
def _(d):
    lead, k, c = d.pick((), (2,), (2, 3)), d.pick(1, 3), d.pick(2, 4)
    target, options = loss_options(d, lead, c, len(lead))
    biased = d.pick(False, True)
    return lambda x, w, b=None: F.linear_cross_entropy(
        x, w, target, linear_bias=b, **options
    ), *d.values((*lead, k), (c, k), *([(c,)] if biased else []))


@entry("functional.dropout")
def _(d):
    p, seed = d.pick(0.0, 0.3, 1.0), d.pick(1, 2)
    training = d.pick(True, True, False)
    return lambda x: F.dropout(x, p, training, rng=np.random.default_rng(seed)) * 1, *d.one()


@entry("functional.scaled_dot_product_attention")
def _(d):
    lead = d.pick((), (2,), (2, 2), (1, 2, 2))
    t, s, causal = d.pick((3, 3, True), (2, 4, True), (3, 2, False), (1, 3, True), (0, 2, True))
    rng = np.random.default_rng(d.pick(3, 4))
    allowed = rng.random((t, s)) < 0.6
    allowed[:, 0] = True
    mask = d.pick(
        None, None, allowed, rng.standard_normal((t, s)), rng.standard_normal((*lead, 1, s))
    )
    p, scale, heads = d.pick(0.0, 0.0, 0.4), d.pick(None, 0.3), d.pick(1, 2)
    grouped = len(lead) > 1 and heads == 2
    kv = (*lead[:-1], 1) if grouped else lead

    def f(q, k, v):
        return F.scaled_dot_product_attention(
            q, k, v, mask, p, causal, scale, grouped, rng=np.random.default_rng(5)
        )

    return f, *d.values((*lead, t, 2), (*kv, s, 2), (*kv, s, 3))


@entry("checkpoint")
def _(d):
    def block(x, w):
        return F.dropout((x @ w).tanh(), 0.3, rng=np.random.default_rng(1)) + x.sum()

    return lambda x, w: tg.checkpoint(block, x, w), *d.values(d.pick((2, 3), (3,), (0, 3)), (3, 2))


def run(name, data):
    f, *inputs = TABLE[name](Draw(data))
    layout = data.draw(st.sampled_from(["plain", "transposed memory", "strided"]))
    if layout == "transposed memory":
        return f, [x.T.copy().T for x in inputs]
    if layout == "strided":
        return (
            lambda *xs: f(*(x[..., ::2] if x.ndim else x for x in xs)),
            [np.repeat(x, 2, axis=-1) if x.ndim else x for x in inputs],
        )
    return f, inputs


MANY_CASES = {  # entries that choose among many forms
    "einsum", "Tensor.__getitem__", "Tensor.__matmul__", "functional.cross_entropy",
    "functional.linear_cross_entropy", "functional.scaled_dot_product_attention",
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_gradient(name):
    @settings(PROFILE, max_examples=100 if name in MANY_CASES else 20)
    @given(st.data(), st.integers(0, 999))
    def check(data, seed):
        f, inputs = run(name, data)
        assert tg.gradcheck(f, *inputs, rng=np.random.default_rng(seed))

    check()


def broadcast(y):  # the cotangent of a sum: one number, with strides of 0
    return y.sum(), (y * np.ones(y.shape)).sum()


def repeated(y):  # each row one number
    factors = np.arange(1.0, 1 + math.prod(y.shape[:-1])).reshape(y.shape[:-1])
    return (y.sum(-1) * factors).sum(), (y * np.repeat(factors[..., None], y.shape[-1], -1)).sum()


def transposed(y):
    factors = np.arange(1.0, 1 + y.size).reshape(y.T.shape)
    return (y.T * factors).sum(), (y * factors.T.copy()).sum()


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("tail", [broadcast, repeated, transposed])
def test_gradient_of_a_cotangent_that_lies_oddly_in_memory(name, tail):
    """The same numbers, as a view with strides that a kernel may not expect, and dense."""

    @settings(PROFILE, max_examples=30 if name in MANY_CASES else 10)
    @given(st.data())
    def check(data):
        f, inputs = run(name, data)
        found = []
        for which in (0, 1):
            xs = [tg.Tensor(x, requires_grad=True) for x in inputs]
            outs = f(*xs)
            outs = [y for y in (outs if isinstance(outs, (tuple, list)) else [outs]) if y.ndim]
            if outs:
                sum((tail(y)[which] for y in outs), tg.Tensor(0.0)).backward()
            found.append([x.grad for x in xs])
        for odd, dense in zip(*found, strict=True):
            assert (odd is None) == (dense is None)
            if odd is not None:
                np.testing.assert_allclose(odd, dense, rtol=1e-9, atol=1e-9)

    check()


def test_padding_row_of_an_embedding_gets_no_gradient():
    """Against the derivative, as in PyTorch: so gradcheck cannot be asked."""
    for padding_idx in (1, -2):
        weight = tg.Tensor(np.ones((3, 2)), requires_grad=True)
        F.embedding(np.array([1, 0, 1, 2, 2]), weight, padding_idx).sum().backward()
        assert weight.grad.tolist() == [[1, 1], [0, 0], [2, 2]]


# Completeness: what is public is either in the table or listed here as having no gradient.

NO_GRADIENT = set(
    "__init__ __setitem__ __index__ __format__ __len__ __bool__ __float__ __int__ __array__ "
    "__array_function__ __repr__ __hash__ __eq__ __iadd__ __isub__ __imul__ __itruediv__ "
    "__ne__ __lt__ __le__ __gt__ __ge__ data grad requires_grad shape ndim size dtype numpy item "
    "tolist detach zero_grad backward argmax".split()
)
NOT_OPS = set(
    "Function GradcheckError NonFiniteError Tensor detect_nan functional gradcheck memory nn "
    "no_grad optim set_matmul_backend set_num_threads".split()
)


def public_ops():
    for name, value in vars(tg.Tensor).items():
        private = name.startswith("_") and not name.endswith("__")
        if isinstance(value, (types.FunctionType, property)) and not private:
            if name not in NO_GRADIENT:
                yield f"Tensor.{name}"
    for name, value in vars(F).items():
        if isinstance(value, types.FunctionType) and value.__module__ == F.__name__:
            if name != "normalize":  # what layer_norm and rms_norm share
                yield f"functional.{name}"
    yield from set(tg.__all__) - NOT_OPS


def test_every_public_op_is_in_the_table():
    assert set(public_ops()) - set(TABLE) == set()


def test_the_table_uses_every_op_of_the_catalogue(monkeypatch):
    used = set()

    class Recorder(tape.Context):
        def __init__(self, op, tensors, arrays):
            used.add(op)
            super().__init__(op, tensors, arrays)

    monkeypatch.setattr(tape, "Context", Recorder)

    @settings(PROFILE)
    @given(st.data())
    def draw_all(data):
        for name in TABLE:
            f, inputs = run(name, data)
            f(*(tg.Tensor(x) for x in inputs))

    draw_all()
    assert set(ops.CATALOGUE) - used == set()
