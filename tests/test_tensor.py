"""The Tensor: dtypes, operators, indexing, moving axes, reductions, and errors that name shapes."""

import operator

import numpy as np
import pytest

import tinygrad_edu as tg
from tinygrad_edu import Tensor
from tinygrad_edu.ops import movement


def leaf(*shape, seed=0):
    return Tensor(np.random.default_rng(seed).standard_normal(shape), requires_grad=True)


@pytest.mark.parametrize(
    ("data", "dtype"),
    [
        (1.5, np.float32),
        ([1.0, 2], np.float32),
        ([], np.float32),
        (3, np.int64),
        ([[1, 2]], np.int64),
        (True, np.bool_),
        (np.float64(1), np.float64),
        (np.ones(2, np.float16), np.float16),
        (np.ones(2, np.int8), np.int8),
    ],
)
def test_dtype_follows_the_data(data, dtype):
    assert Tensor(data).dtype == dtype
    assert Tensor(data, dtype=np.float64).dtype == np.float64


def test_data_is_copied():
    source = np.ones(3)
    x = Tensor(source)
    y, z, n = Tensor(x), x.detach(), x.numpy()
    source[0], y.data[1], z.data[1], n[1] = 5, 6, 7, 8
    assert x.tolist() == [1, 1, 1]


@pytest.mark.parametrize("data", [None, "abc", [1 + 2j], [object()]])
def test_what_is_not_a_number_is_refused(data):
    with pytest.raises(TypeError, match="floats, ints or booleans"):
        Tensor(data)


def test_ragged_lists_and_integer_gradients_are_refused():
    with pytest.raises(ValueError, match="rectangular"):
        Tensor([[1], [2, 3]])
    with pytest.raises(TypeError, match=r"int64.*float32"):
        Tensor([1, 2], requires_grad=True)


OPERATORS = [
    lambda a, b: a + b,
    lambda a, b: a - b,
    lambda a, b: a * b,
    lambda a, b: a / b,
    lambda a, b: a**b,
]


@pytest.mark.parametrize("op", OPERATORS)
@pytest.mark.parametrize(
    "other", [3, 2.5, np.array([1.0, 2.0, 4.0], np.float32), np.float32(1.5), [1.0, 2.0, 4.0]]
)
def test_operators_mix_with_numbers_and_arrays_on_both_sides(op, other):
    x = np.array([[0.5, 1.5, 2.5]], np.float32)
    plain = np.asarray(other, np.float32)
    for ours, theirs in (
        (op(Tensor(x), other), op(x, plain)),
        (op(other, Tensor(x)), op(plain, x)),
    ):
        assert type(ours) is Tensor
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours.data, theirs, rtol=1e-6)


def test_matmul_with_arrays_on_both_sides():
    a, b = np.arange(6.0).reshape(2, 3), np.arange(12.0).reshape(3, 4)
    for product in (Tensor(a) @ Tensor(b), a @ Tensor(b), Tensor(a) @ b):
        assert type(product) is Tensor
        np.testing.assert_array_equal(product.data, a @ b)


def test_integer_arithmetic_and_division():
    x = Tensor([7, 8])
    assert (x + 1).dtype == np.int64
    assert (x + 0.5).dtype == np.float32
    assert (x / 2).dtype == np.float32
    assert (x / 2).tolist() == [3.5, 4.0]
    assert (Tensor([1.0]) * np.arange(3)).dtype == np.float32  # an index keeps float32
    assert (Tensor([True, True]).sum()).item() == 2
    assert (Tensor([True, False]) + 1).tolist() == [2, 1]


def test_squares_have_the_dtype_of_other_powers():
    for dtype, exponent in ((np.int8, np.int64), (np.float32, np.float64), (np.bool_, np.int64)):
        x = np.ones(2, dtype)
        for n in (exponent(2), exponent(3)):
            assert (Tensor(x) ** n).dtype == (x**n).dtype
    assert (Tensor(np.array([100], np.int8)) ** np.int64(2)).tolist() == [10_000]


def test_comparisons_are_boolean_and_hash_is_identity():
    x, y = Tensor([1.0, 2.0, 3.0]), Tensor([1.0, 5.0, 0.0])
    expected = {
        "==": [True, False, False],
        "!=": [False, True, True],
        "<": [False, True, False],
        "<=": [True, True, False],
        ">": [False, False, True],
        ">=": [True, False, True],
    }
    results = {"==": x == y, "!=": x != y, "<": x < y, "<=": x <= y, ">": x > y, ">=": x >= y}
    for name, result in results.items():
        assert result.dtype == np.bool_
        assert result.tolist() == expected[name], name
    assert type(np.array([1.0, 0.0, 0.0]) < x) is Tensor
    assert (np.array([1.0, 0.0, 0.0]) < x).tolist() == [False, True, True]
    assert len({x, y, x}) == 2
    assert (x == None) is False  # noqa: E711


@pytest.mark.parametrize(
    "index",
    [
        1,
        -1,
        slice(0, 2),
        slice(None, None, -2),
        (slice(None), 1),
        (Ellipsis, None, 2),
        [0, 0, 2],
        np.array([[0, 1], [2, 2]]),
        (np.array([0, 0, 1]), np.array([1, 1, 3])),
        np.arange(12).reshape(3, 4) % 3 == 0,
        Tensor([2, 2, 0]),
        (Tensor([True, False, True]), 1),
        (slice(None), [1, 1]),
    ],
)
def test_indexing_and_its_gradient(index):
    x = leaf(3, 4)
    plain = tuple(i.data if isinstance(i, Tensor) else i for i in index) if isinstance(
        index, tuple
    ) else index.data if isinstance(index, Tensor) else index  # fmt: skip
    y = x[index]
    np.testing.assert_array_equal(y.data, x.data[plain])
    cotangent = np.random.default_rng(1).standard_normal(y.shape)
    y.backward(cotangent)
    expected = np.zeros((3, 4))
    np.add.at(expected, plain, cotangent)
    np.testing.assert_allclose(x.grad, expected)


@pytest.mark.parametrize("index", [np.array([0, 1]), [0, 1]])
def test_an_index_changed_after_forward_changes_nothing(index):
    x = leaf(3)
    y = x[index]
    index[0] = 2
    y.sum().backward()
    assert x.grad.tolist() == [1, 1, 0]


def test_iteration_length_and_item():
    x = Tensor([[1.0, 2.0], [3.0, 4.0]])
    assert [row.tolist() for row in x] == [[1, 2], [3, 4]]
    assert len(x) == 2
    assert Tensor([[4.0]]).item() == 4.0
    assert float(Tensor(2.0)) == 2.0 and int(Tensor(3)) == 3
    with pytest.raises(ValueError, match=r"\(2, 2\)"):
        x.item()
    with pytest.raises(TypeError, match="0-d"):
        len(Tensor(1.0))


def test_moving_axes():
    x = Tensor(np.arange(24.0).reshape(2, 3, 4))
    np.testing.assert_array_equal(x.T.data, x.data.T)
    np.testing.assert_array_equal(x.transpose(0, -1).data, x.data.swapaxes(0, -1))
    np.testing.assert_array_equal(x.transpose(2, -1).data, x.data)
    np.testing.assert_array_equal(x.permute(1, 2, 0).data, x.data.transpose(1, 2, 0))
    np.testing.assert_array_equal(x.permute((1, 2, 0)).data, x.data.transpose(1, 2, 0))
    np.testing.assert_array_equal(x.T.reshape(6, -1).data, x.data.T.reshape(6, -1))
    assert x.unsqueeze(0).shape == (1, 2, 3, 4)
    assert x.unsqueeze(-1).shape == (2, 3, 4, 1)
    assert x.unsqueeze(1).unsqueeze(0).squeeze().shape == (2, 3, 4)
    assert x.unsqueeze(1).unsqueeze(0).squeeze(0).shape == (2, 1, 3, 4)
    with pytest.raises(ValueError, match=r"axis 1 of shape \(2, 3, 4\)"):
        x.squeeze(1)
    with pytest.raises(ValueError, match=r"all 3 axes"):
        x.permute(0, 1)
    with pytest.raises(ValueError, match="out of bounds"):
        x.unsqueeze(5)


def test_split_takes_gradients_that_lie_side_by_side_as_they_are():
    whole = np.arange(60.0).reshape(4, 15)
    parts = [whole[:, :5], whole[:, 5:7], whole[:, 7:]]
    joined = movement.side_by_side(parts, axis=1)
    assert np.shares_memory(joined, whole) and np.array_equal(joined, whole)
    column = movement.side_by_side([whole[1:2], whole[2:]], axis=0)
    assert np.array_equal(column, whole[1:])
    neighbours = memoryview(whole.copy().reshape(60).data)
    for apart in (
        [np.frombuffer(neighbours[:20]), np.frombuffer(neighbours[20:])],  # owned apart
        parts[::-1],  # in another order
        [parts[0], parts[2]],  # with a gap
        [parts[0], parts[1].copy(), parts[2]],
        [whole[:, :10:2], whole[:, 10:]],  # with different strides
        [parts[0], parts[1].view(np.int64), parts[2]],
        [whole[:, :5], whole[:, :5]],  # the same one twice
    ):
        assert movement.side_by_side(apart, axis=apart[0].ndim - 1) is None


def test_split_parts_and_gradient_of_unused_parts():
    x = leaf(7, 2)
    parts = x.split(3)
    assert [part.shape for part in parts] == [(3, 2), (3, 2), (1, 2)]
    assert [part.shape for part in x.split([5, 0, 2])] == [(5, 2), (0, 2), (2, 2)]
    assert [part.shape for part in x[:0].split(3)] == [(0, 2)]
    (parts[1] * 2).sum().backward()
    np.testing.assert_array_equal(x.grad[:, 0], [0, 0, 0, 2, 2, 2, 0])
    with pytest.raises(ValueError, match=r"\[5, 1\] do not add up to 7"):
        x.split([5, 1])
    with pytest.raises(ValueError, match="at least 1"):
        x.split(0)


@pytest.mark.parametrize("name", ["max", "min"])
def test_tied_extrema_share_the_gradient(name):
    x = Tensor([[2.0, 2.0, 1.0], [3.0, 3.0, 3.0]], requires_grad=True)
    getattr(x, name)(axis=1).backward([6.0, 6.0])
    expected = {"max": [[3, 3, 0], [2, 2, 2]], "min": [[0, 0, 6], [2, 2, 2]]}
    assert x.grad.tolist() == expected[name]


def test_tied_maximum_and_minimum_halve_the_gradient():
    for function in (tg.maximum, tg.minimum):
        a, b = Tensor([1.0, 5.0], requires_grad=True), Tensor([1.0, 2.0], requires_grad=True)
        function(a, b).sum().backward()
        assert a.grad[0] == b.grad[0] == 0.5
        assert (a.grad[1], b.grad[1]) == ((1, 0) if function is tg.maximum else (0, 1))


@pytest.mark.parametrize("axis", [None, 0, -1, (0, 2)])
@pytest.mark.parametrize("keepdims", [False, True])
def test_reductions_agree_with_numpy(axis, keepdims):
    x = np.random.default_rng(0).standard_normal((2, 3, 4))
    for name in ("sum", "mean", "max", "min", "var"):
        ours = getattr(Tensor(x), name)(axis=axis, keepdims=keepdims)
        expected = getattr(np, name)(x, axis=axis, keepdims=keepdims)
        assert ours.shape == expected.shape
        np.testing.assert_allclose(ours.data, expected, rtol=1e-12)
    if not isinstance(axis, tuple):
        picked = Tensor(x).argmax(axis, keepdims)
        assert picked.dtype == np.int64 and not picked.requires_grad
        np.testing.assert_array_equal(picked.data, np.argmax(x, axis, keepdims=keepdims))


def test_clip_and_relu_of_ints_and_booleans():
    ints, flags = Tensor([1, 5]), Tensor([True, False])
    for low, high, expected in (
        (2, None, [2, 5]),
        (0.5, 2.5, [1, 2.5]),
        (None, 2.5, [1, 2.5]),
        (2, 2.5, [2, 2.5]),
        (np.array([2.0, 9.0]), None, [2, 9]),
    ):
        assert ints.clip(low, high).tolist() == expected
    assert ints.clip(2, 3).dtype == np.int64 and ints.clip(2, 3.5).dtype == np.float32
    small = Tensor(np.array([1, 5], np.int8))
    assert small.clip(2, 3).dtype == np.int8
    assert small.clip(np.array([2, 300])).tolist() == [2, 300]
    assert flags.clip(0, 1).tolist() == flags.relu().tolist() == [1, 0]
    assert flags.relu().dtype == np.int64
    assert flags.clip(0.5).tolist() == [1, 0.5]
    assert Tensor([-1, 1]).relu().tolist() == [0, 1]


def test_clip_with_arrays_as_bounds():
    """Large enough to be computed in blocks, the bounds changed before backward, and in float64."""
    x = Tensor(np.random.default_rng(0).standard_normal((300, 400)), True, np.float32)
    x.data[0] = 0.1
    low, high = np.full(400, -0.5), np.full((300, 1), 0.1)
    inside = (x.data >= -0.5) & (x.data <= np.float32(0.1))
    y = x.clip(low, high)
    low[:], high[:] = 9, 9
    y.backward(np.ones(x.shape))
    np.testing.assert_array_equal(x.grad, inside)


def test_var_ddof_and_its_gradient():
    x = leaf(5)
    x.var(ddof=1).backward()
    np.testing.assert_allclose(x.var(ddof=1).item(), np.var(x.data, ddof=1))
    np.testing.assert_allclose(x.grad, 2 / 4 * (x.data - x.data.mean()))


@pytest.mark.parametrize("axis", [None, 0, (0, 1)])
def test_averages_of_many_float16_do_not_overflow(axis):
    values = np.tile(np.array([[10, 12]], np.float16), (70000, 1))
    x = Tensor(values, requires_grad=True)
    for name in ("mean", "var"):
        ours = getattr(x, name)(axis=axis)
        assert ours.dtype == np.float16
        expected = getattr(np, name)(values.astype(np.float64), axis=axis)
        np.testing.assert_allclose(ours.data, expected, rtol=1e-3)
    x.mean(axis).sum().backward()
    count = 70000 if axis == 0 else 140000
    np.testing.assert_array_equal(x.grad, np.full_like(values, 1 / count))


def test_broadcast_gradients_are_summed():
    a, b = leaf(2, 3, 1), leaf(4, seed=1)
    cotangent = np.random.default_rng(2).standard_normal((2, 3, 4))
    (a * b).backward(cotangent)
    np.testing.assert_allclose(a.grad, (cotangent * b.data).sum(-1, keepdims=True))
    np.testing.assert_allclose(b.grad, (cotangent * a.data).sum((0, 1)))


def test_where_stack_concatenate_and_einsum():
    a, b = leaf(2, 3), leaf(2, 3, seed=1)
    mask = a.data > b.data
    tg.where(mask, a, b).sum().backward()
    np.testing.assert_array_equal(a.grad, mask)
    np.testing.assert_array_equal(b.grad, ~mask)
    x, y = a.data, b.data
    np.testing.assert_array_equal(tg.stack([a, b], axis=-1).data, np.stack([x, y], -1))
    np.testing.assert_array_equal(tg.concatenate([a, y], axis=1).data, np.concatenate([x, y], 1))
    np.testing.assert_allclose(tg.einsum("ij,kj->ik", a, b).data, x @ y.T)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ValueError, r"\(2, 3\) @ \(2, 3\).*3 and 2", lambda x: x @ x),
        (ValueError, "1-D", lambda x: x @ Tensor(2.0)),
        (TypeError, "boolean condition, got float64", lambda x: tg.where(x, x, x)),
        (ValueError, r"\(2, 3\).*\(4,\)", lambda x: x + np.ones(4)),
        (ValueError, r"\(2, 3\), \(3,\)", lambda x: tg.stack([x, x[0]])),
        (ValueError, "at least one", lambda x: tg.concatenate([])),
        (ValueError, "at least one", lambda x: tg.stack([])),
        (ValueError, r"axis 0, got .*\(2, 3\), \(3,\)", lambda x: tg.concatenate([x, x[0]])),
        (ValueError, r"axis 1, got .*\(2, 3\), \(3,\)", lambda x: tg.concatenate([x, x[0]], 1)),
        (ValueError, r"axis 1, got .*\(1, 3\)", lambda x: tg.concatenate([x, x[:1]], 1)),
        (ValueError, r"size 6 into shape \(4,\)", lambda x: x.reshape(4)),
        (ValueError, "out of bounds", lambda x: x.sum(axis=2)),
        (IndexError, "out of bounds", lambda x: x[5]),
        (TypeError, "one axis", lambda x: x.softmax((0, 1))),
        (TypeError, "concatenate works along one axis", lambda x: tg.concatenate([x], axis=None)),
        (TypeError, "stack works along one axis", lambda x: tg.stack([x, x], axis=None)),
        (TypeError, "split works along one axis", lambda x: x.split(1, axis=None)),
        (TypeError, "unsqueeze works along one axis", lambda x: x.unsqueeze(None)),
        (TypeError, r"one axis, got axis=\(0, 1\)", lambda x: x.unsqueeze((0, 1))),
        (ValueError, "min, max or both", lambda x: x.clip()),
        (TypeError, r"got a Tensor: use tg\.maximum", lambda x: x.clip(Tensor(0.0), 1.0)),
        (TypeError, r"got a Tensor: use tg\.maximum", lambda x: x.clip(max=x)),
        (ValueError, "'erf'", lambda x: x.gelu("erf")),
        (ValueError, "3 in one operand and 2", lambda x: tg.einsum("ij,jk->ik", x, x)),
        (TypeError, r"whole numbers as sizes, got \(2\.7, 3\)", lambda x: x.reshape(2.7, 3)),
        (TypeError, r"reshape needs .*got \(2\.0, 3\)", lambda x: x.reshape([2.0, 3])),
        (TypeError, r"split needs .*got \[0\.5, 1\.5\]", lambda x: x.split([0.5, 1.5])),
        (TypeError, r"split needs .*got 1\.5", lambda x: x.split(1.5)),
        (ValueError, r"'\.\.\.i\.\.\.' is not letters", lambda x: tg.einsum("...i...->i", x)),
        (ValueError, "'i->j' is not letters", lambda x: tg.einsum("ij->i->j", x)),
        (ValueError, "'i1' is not letters", lambda x: tg.einsum("i1->i", x)),
        (TypeError, "as a string, got Tensor", lambda x: tg.einsum(x, "ij->i")),
        (ValueError, "names 1 operands, got 2", lambda x: tg.einsum("ij->i", x, x)),
        (TypeError, "unsupported operand", lambda x: x + None),
        (RuntimeError, r"\(2, 3\)", lambda x: x.backward()),
        (ValueError, r"\(3, 2\), expected \(2, 3\)", lambda x: x.backward(np.ones((3, 2)))),
        (RuntimeError, "detach", lambda x: setattr(x * 2, "requires_grad", False)),
        (ValueError, r"\(2, 3\)", lambda x: setattr(x, "grad", np.ones(3))),
    ],
)
def test_errors_name_what_was_given(error, message, call):
    with pytest.raises(error, match=message):
        call(leaf(2, 3))


def test_setitem_and_copy_free_arrays_are_refused():
    x = leaf(3)
    with pytest.raises(TypeError, match=r"tg\.where"):
        x[0] = 1.0
    with pytest.raises(ValueError, match=r"\.data"):
        np.array(x, copy=False)
    assert np.asarray(x).tolist() == x.tolist()


@pytest.mark.parametrize("make", [Tensor, tg.nn.Parameter])
def test_an_update_that_would_be_lost_is_refused(make):
    """`w -= ...` makes another tensor, and whoever held the leaf would go on with the old one."""
    w = make([1.0, 2.0], requires_grad=True)
    x = w
    x += 1.0  # in forward it is a new value
    x *= w
    x.sum().backward()
    assert w.grad.tolist() == [3, 5] and w.tolist() == [1, 2]
    for update in (
        lambda w: operator.isub(w, 0.1 * w.grad),
        lambda w: tg.no_grad()(operator.imul)(make([1.0], requires_grad=True), 2.0),
        lambda w: tg.no_grad()(operator.iadd)(w, w),
        lambda w: tg.no_grad()(operator.itruediv)(w, 2.0),
    ):
        with pytest.raises(TypeError, match=r"assign to \.data"):
            update(w)
    w.data -= 0.5 * w.grad
    assert w.tolist() == [-0.5, -0.5]


def test_assigning_grad_copies_and_casts():
    x, g = Tensor([1.0, 2.0], requires_grad=True), np.array([3.0, 4.0])
    x.grad = g
    g[0] = 9
    assert x.grad.dtype == np.float32
    assert x.grad.tolist() == [3, 4]


def test_repr_tells_values_dtype_and_gradient():
    assert repr(Tensor([1.0, 2.5])) == "Tensor([1.  2.5])"
    assert "dtype=float64" in repr(Tensor(np.ones(2)))
    assert "requires_grad=True" in repr(leaf(2))


def test_ints_that_do_not_fit_are_refused_and_compared_by_value():
    small = Tensor(np.array([1, 44, 255], np.uint8))
    assert (small == 300).tolist() == [False] * 3
    assert (small > -1).tolist() == (small < 256).tolist() == [True] * 3
    assert (small == 44).tolist() == [False, True, False]
    assert (small + 5).dtype == np.uint8
    for wrong in (
        lambda: small + 300,
        lambda: tg.maximum(small, -5),
        lambda: Tensor([3, 300], dtype=np.uint8),
        lambda: Tensor(2**63),
    ):
        with pytest.raises(OverflowError, match="does not fit into"):
            wrong()


def test_a_gradient_has_the_dtype_that_data_has_by_then():
    x = Tensor([1.0, 2.0], requires_grad=True)
    y = x * 2
    x.data = x.data.astype(np.float64)
    y.sum().backward()
    assert x.grad.dtype == np.float64 and x.grad.tolist() == [2.0, 2.0]


@pytest.mark.parametrize("layout", ["first axis", "last axis", "both"])
@pytest.mark.parametrize(("dtype", "rtol"), [(np.float16, 1e-3), (np.float32, 3e-7)])
def test_long_sums_lose_no_small_terms(layout, dtype, rtol):
    """As many terms as a running sum in this dtype would stop at, or lose digits in."""
    n, axis = (
        300_000 if dtype == np.float32 else 5000,
        {"first axis": 0, "last axis": 1}.get(layout),
    )
    x = np.random.default_rng(0).uniform(0.5, 1, (n, 2)).astype(dtype)
    x = np.ascontiguousarray(x.T) if layout == "last axis" else x
    exact, more = x.astype(np.float64), {"rtol": rtol, "atol": 0}
    t = Tensor(x)
    np.testing.assert_allclose(t.sum(axis).data, exact.sum(axis), **more)
    np.testing.assert_allclose(t.mean(axis).data, exact.mean(axis), **more)
    np.testing.assert_allclose(t.var(axis).data, exact.var(axis), rtol=5 * rtol)
    if axis is not None:
        powers = np.exp(exact)
        shares = powers / powers.sum(axis, keepdims=True)
        np.testing.assert_allclose(t.softmax(axis).data, shares, rtol=3 * rtol, atol=1e-7)
        np.testing.assert_allclose(t.log_softmax(axis).data, np.log(shares), rtol=rtol)
    if layout == "first axis":
        w = Tensor(np.ones(2, dtype), requires_grad=True)
        (t * w).backward(np.ones((n, 2), dtype))
        np.testing.assert_allclose(w.grad, exact.sum(0), **more)


def test_an_element_picked_very_often_gets_all_of_its_gradient():
    x = Tensor(np.ones(2, np.float16), requires_grad=True)
    x[np.zeros(5000, int)].sum().backward()
    assert x.grad.tolist() == [5000, 0]


@pytest.mark.parametrize(
    ("b", "dtype"), [(300, "e"), (2e19, "f"), (1e-23, "f"), (1e170, "d"), (1e-170, "d")]
)
def test_the_gradient_of_a_quotient_goes_over_no_square(b, dtype):
    x = Tensor(np.array([b], dtype), requires_grad=True)
    (x.detach() / x).sum().backward()
    np.testing.assert_allclose(x.grad, [-1 / b], rtol=2e-3)


def test_gradients_at_the_edges_of_formulas():
    x = Tensor(np.array([np.inf, -np.inf, 0, 2.0]), requires_grad=True)
    (x**0).sum().backward()
    assert x.grad.tolist() == [0, 0, 0, 0]
    for choose in (tg.maximum, tg.minimum):  # NaN goes on to whoever looks for it
        a, b = (Tensor(np.array(v), requires_grad=True) for v in ([np.nan, 1.0], [1.0, np.nan]))
        choose(a, b).sum().backward()
        assert a.grad.tolist() == b.grad.tolist() == [1, 1]
    x = Tensor(np.ones((3, 1)), requires_grad=True)
    with np.errstate(all="ignore"):
        x.var(1, ddof=1).sum().backward()
    assert np.isnan(x.grad).all()
    for a, b in ((0, 1), (1, 0)):
        a, b = (Tensor(np.ones(n), requires_grad=True) for n in (a, b))
        tg.einsum("a,a->a", a, b).sum().backward()
        assert a.grad.shape == a.shape and b.grad.shape == b.shape and not b.grad.any()
