"""The functionals: values and gradients against PyTorch, and errors that name what was given."""

import contextlib

import numpy as np
import pytest

import tinygrad_edu as tg
from tinygrad_edu import Tensor
from tinygrad_edu import functional as F
from tinygrad_edu.kernels import attention, cross_entropy

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape)


def agree(ours, theirs, *arrays, rtol=1e-10):
    """Value and every gradient of `ours(*Tensors)` equal `theirs(*torch tensors)`."""
    torch = pytest.importorskip("torch")
    mine = [Tensor(a, requires_grad=True) for a in arrays]
    twins = [torch.tensor(a, requires_grad=True) for a in arrays]
    out, expected = ours(*mine), theirs(torch, *twins)
    np.testing.assert_allclose(out.data, expected.detach().numpy(), rtol=rtol, atol=rtol)
    cotangent = np.random.default_rng(5).standard_normal(out.shape)
    out.backward(cotangent)
    expected.backward(torch.tensor(cotangent))
    for a, b in zip(mine, twins, strict=True):
        np.testing.assert_allclose(a.grad, b.grad.numpy(), rtol=rtol, atol=rtol)


def TF(torch):
    return torch.nn.functional


@pytest.mark.parametrize("lead", [(), (5,), (2, 3)])
def test_linear(lead):
    x, w, b = normal(*lead, 4), normal(6, 4), normal(6)
    agree(F.linear, lambda t, *a: TF(t).linear(*a), x, w, b)
    agree(F.linear, lambda t, *a: TF(t).linear(*a), x, w)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("shape", [(7, 5, 4), (300, 90, 64), (2, 1100, 4096)])
def test_linear_adds_a_residual_as_a_sum_would(backend, shape):
    """The bits of linear(x, w, b) + r, whether the weight is used whole or some rows at a time."""
    m, n, k = shape
    x, w, b, r = (normal(*s).astype(np.float32) for s in ((2, m, k), (n, k), (n,), (2, m, n)))
    tg.set_matmul_backend(backend)
    try:
        for bias in (None, b):
            found = F.linear(x, w, bias, residual=r).data
            assert np.array_equal(found, (F.linear(x, w, bias) + Tensor(r)).data)
            strided = F.linear(x, w, bias, residual=Tensor(np.asfortranarray(r))).data
            assert np.array_equal(found, strided)
    finally:
        tg.set_matmul_backend("numba")


@pytest.mark.parametrize("parts", [1, 3])
def test_heads_are_split_and_merged(parts):
    b, t, heads, width = 2, 5, 3, 4
    x = normal(b, t, parts * heads * width)
    found = F.split_heads(x, heads, parts)
    assert [part.shape for part in found] == [(b, heads, t, width)] * parts
    for i, part in enumerate(found):
        for h in range(heads):
            start = (i * heads + h) * width
            assert np.array_equal(part.data[:, h], x[:, :, start : start + width])
        start = i * heads * width
        assert np.array_equal(F.merge_heads(part).data, x[:, :, start : start + heads * width])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"dropout_p": 0.3}], ids=str)
def test_self_attention_is_the_three_ops_it_stands_for(dtype, options):
    """To the bit, whatever the strides of the input and of its gradient."""
    x = np.asfortranarray(normal(2, 70, 3 * 3 * 4).astype(dtype))
    cotangent = normal(70, 2, 3 * 4).astype(dtype).swapaxes(0, 1)
    found = []
    for in_one in (True, False):
        qkv, more = Tensor(x, requires_grad=True), {**options, "rng": np.random.default_rng(1)}
        if in_one:
            y = F.self_attention(qkv, 3, **more)
        else:
            parts = F.split_heads(qkv, 3, 3)
            y = F.merge_heads(F.scaled_dot_product_attention(*parts, **more))
        y.backward(cotangent)
        found.append((y.data, qkv.grad))
    assert found[0][0].dtype == found[0][1].dtype == dtype
    assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))


def test_self_attention_converts_short_dtypes_once(monkeypatch):
    seen = []
    for name in ("attention", "attention_backward"):
        kernel = getattr(attention, name)

        def watched(*arrays, kernel=kernel):
            found = kernel(*arrays)
            seen.extend(x.dtype for x in (*arrays, *found) if isinstance(x, np.ndarray))
            return found

        monkeypatch.setattr(attention, name, watched)
    x = Tensor(normal(2, 5, 12).astype(np.float16), requires_grad=True)
    F.self_attention(x, 2).backward(np.ones((2, 5, 4), np.float16))
    assert seen.count(np.dtype(np.float16)) == 1  # the upstream gradient, which is read once


@pytest.mark.parametrize("padding_idx", [None, 1, -1])
def test_embedding(padding_idx):
    ids = np.array([[0, 3, 3], [1, 5, 1]])
    agree(
        lambda w: F.embedding(ids, w, padding_idx),
        lambda t, w: TF(t).embedding(t.tensor(ids), w, padding_idx),
        normal(6, 4),
    )


@pytest.mark.parametrize("shape", [4, (4,), (3, 4)])
def test_layer_norm(shape):
    full = (shape,) if isinstance(shape, int) else shape
    x, w, b = normal(2, 3, 4), normal(*full), normal(*full)
    agree(
        lambda x, w, b: F.layer_norm(x, shape, w, b, 1e-3),
        lambda t, x, w, b: TF(t).layer_norm(x, full, w, b, 1e-3),
        x, w, b,
    )  # fmt: skip
    agree(lambda x: F.layer_norm(x, shape), lambda t, x: TF(t).layer_norm(x, full), x)


@pytest.mark.parametrize("eps", [None, 1e-2])
def test_rms_norm(eps):
    agree(
        lambda x, w: F.rms_norm(x, (3, 4), w, eps),
        lambda t, x, w: TF(t).rms_norm(x, (3, 4), w, eps),
        normal(2, 3, 4), normal(3, 4),
    )  # fmt: skip
    zeros = np.zeros((2, 3), np.float32)
    assert np.all(np.isfinite(F.rms_norm(zeros, 3).data))


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu(approximate):
    agree(
        lambda x: F.gelu(x, approximate),
        lambda t, x: TF(t).gelu(x, approximate=approximate),
        np.concatenate([normal(50) * 3, [0.0, -30.0, 30.0]]),
    )


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_softmax_and_log_softmax(dim):
    x = normal(3, 4, 5) * 10
    agree(lambda x: F.softmax(x, dim), lambda t, x: TF(t).softmax(x, dim), x)
    agree(lambda x: F.log_softmax(x, dim), lambda t, x: TF(t).log_softmax(x, dim), x)
    assert np.all(np.isfinite(F.log_softmax(np.array([1e4, -1e4])).data))


SHAPES = [(5,), (6, 5), (2, 5, 3), (2, 5, 3, 4)]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_cross_entropy(shape, weighted, label_smoothing, reduction):
    rest = shape[:1] + shape[2:] if len(shape) > 1 else ()
    target = RNG.integers(0, 5, rest)
    if target.size > 3:
        target.reshape(-1)[1] = 7  # the ignored one
    weight = np.abs(normal(5)) if weighted else None
    options = {"reduction": reduction, "label_smoothing": label_smoothing, "ignore_index": 7}
    agree(
        lambda x: F.cross_entropy(x, target, weight, **options),
        lambda t, x: TF(t).cross_entropy(
            x, t.tensor(target), None if weight is None else t.tensor(weight), **options
        ),
        normal(*shape) * 4,
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_with_probabilities(shape, weighted):
    target = np.abs(normal(*shape))
    target /= target.sum(axis=min(1, len(shape) - 1), keepdims=True)
    weight = np.abs(normal(5)) if weighted else None
    for reduction in ("mean", "none"):
        options = {"reduction": reduction, "label_smoothing": 0.1}
        agree(
            lambda x, o=options: F.cross_entropy(x, target, weight, **o),
            lambda t, x, o=options: TF(t).cross_entropy(
                x, t.tensor(target), None if weight is None else t.tensor(weight), **o
            ),
            normal(*shape),
        )


@pytest.mark.parametrize("lead", [(), (7,), (2, 3)])
@pytest.mark.parametrize("kind", ["ids", "probabilities"])
def test_linear_cross_entropy(lead, kind):
    target = RNG.integers(0, 6, lead) if kind == "ids" else np.abs(normal(*lead, 6))
    weight = np.abs(normal(6))
    for reduction in ("mean", "sum", "none"):
        options = {"reduction": reduction, "label_smoothing": 0.1}
        options |= {"ignore_index": 3} if kind == "ids" else {}

        def theirs(t, x, w, b, options=options):
            logits = TF(t).linear(x, w, b).reshape(-1, 6)
            flat = t.tensor(target.reshape(-1) if kind == "ids" else target.reshape(-1, 6))
            loss = TF(t).cross_entropy(logits, flat, t.tensor(weight), **options)
            return loss.reshape(lead) if options["reduction"] == "none" else loss

        agree(
            lambda x, w, b, o=options: F.linear_cross_entropy(
                x, w, target, linear_bias=b, weight=weight, **o
            ),
            theirs,
            normal(*lead, 4), normal(6, 4), normal(6),
        )  # fmt: skip


def test_a_batch_in_which_nothing_counts_moves_no_weight():
    """The mean over no rows is NaN, as in PyTorch; the gradient is zero."""
    x, w = Tensor(normal(2, 4), requires_grad=True), Tensor(normal(3, 4), requires_grad=True)
    for loss in (
        lambda ids: F.cross_entropy(F.linear(x, w), ids),
        lambda ids: F.linear_cross_entropy(x, w, ids),
    ):
        x.grad = w.grad = None
        with np.errstate(invalid="ignore"):
            value = loss(np.array([-100, -100]))
        value.backward()
        assert np.isnan(value.item())
        assert not x.grad.any() and not w.grad.any()


def test_ignored_rows_need_no_classes():
    x = Tensor(np.zeros((2, 0)), requires_grad=True)
    loss = F.cross_entropy(x, [-100, -100], weight=np.zeros(0), reduction="sum")
    loss.backward()
    assert loss.item() == 0 and x.grad.shape == (2, 0)


@pytest.mark.parametrize(
    ("weight", "target", "smoothing"),
    [
        ([1.0, -1.0, 2.0], [0, 1], 0.0),
        ([0.0, 1.0, 2.0], [0, 0], 0.1),
        ([1.0, -1.0, 2.0], [0, 1], 0.1),
    ],
)
def test_a_mean_over_weights_that_sum_to_zero_has_no_finite_gradient(weight, target, smoothing):
    x, w = Tensor(normal(2, 4), requires_grad=True), Tensor(normal(3, 4), requires_grad=True)
    options = {"weight": np.array(weight), "label_smoothing": smoothing}
    for loss in (
        lambda: F.cross_entropy(F.linear(x, w), target, **options),
        lambda: F.linear_cross_entropy(x, w, target, **options),
    ):
        x.grad = w.grad = None
        with np.errstate(invalid="ignore", divide="ignore"):
            value = loss()
            value.backward()
        assert np.isinf(value.item())
        assert not np.isfinite(x.grad).any() and not np.isfinite(w.grad).any()


def test_the_mean_loss_of_many_float16_rows_does_not_overflow():
    x = np.tile(normal(2, 4).astype(np.float16), (40_000, 1))
    target = np.zeros(len(x), int)
    for targets in (target, np.eye(4, dtype=np.float16)[target]):
        logits, few = Tensor(x, requires_grad=True), Tensor(x[:2], requires_grad=True)
        loss, mean = F.cross_entropy(logits, targets), F.cross_entropy(few, targets[:2])
        (loss * 8192).backward()
        (mean * 1).backward()
        assert loss.dtype == np.float16
        np.testing.assert_allclose(loss.data, mean.data, rtol=2e-3)
        np.testing.assert_allclose(logits.grad[:2], few.grad * (8192 / 40_000), rtol=3e-3)


@pytest.mark.parametrize("where", ["plain", "recompute", "too many", "chip"])
def test_linear_cross_entropy_keeps_its_logits_where_memory_allows(where, monkeypatch):
    """Then backward has two products to make, and not three."""
    products, matmul = [], cross_entropy.matmul
    monkeypatch.setattr(
        cross_entropy, "matmul", lambda *a, **k: products.append(1) or matmul(*a, **k)
    )
    if where == "too many":
        monkeypatch.setattr(cross_entropy, "KEPT_LOGITS", 5 * 6 * 8 - 1)
    with tg.memory.Chip("1MB") if where == "chip" else contextlib.nullcontext():
        x, w = tg.nn.Parameter(normal(5, 4)), tg.nn.Parameter(normal(6, 4))
        loss = F.linear_cross_entropy(x, w, np.arange(5), recompute=where == "recompute")
        assert len(products) == 1
        loss.backward()
        assert len(products) == (3 if where == "plain" else 4)


ATTENTION = [
    ((2, 4, 5, 8), (2, 4, 5, 8), {}),
    ((2, 4, 5, 8), (2, 4, 5, 8), {"is_causal": True}),
    ((2, 4, 5, 8), (2, 4, 7, 8), {"scale": 0.3}),
    ((5, 8), (6, 8), {}),
    ((3, 5, 8), (3, 5, 8), {"is_causal": True}),
    ((2, 3, 2, 5, 8), (2, 3, 2, 6, 8), {}),
    ((2, 6, 5, 8), (2, 2, 5, 8), {"enable_gqa": True, "is_causal": True}),
    ((2, 6, 5, 8), (2, 1, 7, 8), {"enable_gqa": True}),
]


@pytest.mark.parametrize(("d", "e"), [(0, 2), (3, 0), (0, 0)])
def test_attention_with_heads_of_no_size(d, e):
    """Without queries and keys to compare, all values count alike."""
    q, k, v = (Tensor(normal(1, 2, 3, n), requires_grad=True) for n in (d, d, e))
    out = F.scaled_dot_product_attention(q, k, v)
    out.sum().backward()
    assert out.shape == (1, 2, 3, e)
    if d == 0:
        np.testing.assert_allclose(out.data, v.data.mean(2, keepdims=True).repeat(3, axis=2))
    for x, grad in ((q, 0.0), (k, 0.0), (v, 1.0)):
        np.testing.assert_allclose(x.grad, np.full(x.shape, grad))


def test_attention_of_inputs_that_share_memory_with_themselves():
    """Axes of stride 0 say nothing of the others: rows of x.T are not contiguous."""
    x = normal(3, 4)
    odd = Tensor(x).T[None, None]
    dense = Tensor(x.T.copy()[None, None])
    for causal in (False, True):
        results = [
            F.scaled_dot_product_attention(y, y, y, is_causal=causal).data for y in (odd, dense)
        ]
        np.testing.assert_allclose(*results)


@pytest.mark.parametrize(("q", "k", "options"), ATTENTION)
def test_attention(q, k, options):
    agree(
        lambda *a: F.scaled_dot_product_attention(*a, **options),
        lambda t, *a: TF(t).scaled_dot_product_attention(*a, **options),
        normal(*q), normal(*k), normal(*k[:-1], 3),
    )  # fmt: skip


@pytest.mark.parametrize("lead", [(2, 4), (2, 3, 2)])
@pytest.mark.parametrize("mask_lead", ["none", "heads", "all"])
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_attention_masks(lead, mask_lead, kind):
    shape = {"none": (), "heads": (lead[-1],), "all": lead}[mask_lead] + (5, 6)
    mask = RNG.random(shape) < 0.6 if kind == "bool" else normal(*shape)
    if kind == "bool":
        mask[..., 0] = True
    agree(
        lambda *a: F.scaled_dot_product_attention(*a, attn_mask=mask),
        lambda t, *a: TF(t).scaled_dot_product_attention(*a, attn_mask=t.tensor(mask)),
        normal(*lead, 5, 8), normal(*lead, 6, 8), normal(*lead, 6, 8),
    )  # fmt: skip


def test_causal_attention_aligns_at_the_end():
    q, k, v = normal(1, 2, 6, 4), normal(1, 2, 6, 4), normal(1, 2, 6, 4)
    full = F.scaled_dot_product_attention(q, k, v, is_causal=True).data
    last = F.scaled_dot_product_attention(q[:, :, 4:], k, v, is_causal=True).data
    np.testing.assert_allclose(last, full[:, :, 4:], rtol=1e-12)


def test_dropout_keeps_the_mean_and_masks_the_gradient():
    x = Tensor(np.ones(20_000, np.float32), requires_grad=True)
    y = F.dropout(x, 0.25, rng=np.random.default_rng(0))
    y.sum().backward()
    np.testing.assert_array_equal(x.grad, y.data)
    assert set(np.unique(y.data)) == {0, np.float32(1 / 0.75)}
    assert abs((y.data == 0).mean() - 0.25) < 0.02
    again = F.dropout(x, 0.25, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(again.data, y.data)
    other = F.dropout(x, 0.25, rng=np.random.default_rng(1))
    assert np.any(other.data != y.data)
    assert F.dropout(x, 0.5, training=False) is x and F.dropout(x, 0.0) is x
    assert not F.dropout(x, 1.0).data.any()


def test_attention_dropout_masks_the_weights():
    q, k, v = normal(1, 2, 40, 8), normal(1, 2, 40, 8), np.ones((1, 2, 40, 1))
    call = F.scaled_dot_product_attention
    a, b = (call(q, k, v, dropout_p=0.5, rng=np.random.default_rng(0)).data for _ in range(2))
    np.testing.assert_array_equal(a, b)
    assert a.std() > 0.01 and abs(a.mean() - 1) < 0.15


def test_targets_changed_after_forward_change_nothing():
    for target in (np.array([0, 1]), np.full((2, 3), 1 / 3)):
        grads = []
        for change in (False, True):
            logits, given = Tensor(np.eye(2, 3), requires_grad=True), target.copy()
            weight = Tensor(np.arange(1.0, 4))
            loss = F.cross_entropy(logits, given, weight)
            if change:
                given[:], weight.data[:] = 2, 9
            loss.backward()
            grads.append(logits.grad)
        np.testing.assert_array_equal(*grads)


def test_mixed_precision_of_plain_arrays_and_integers():
    assert F.softmax([1, 2, 3]).dtype == np.float32
    assert F.softmax(np.ones(3)).dtype == np.float64
    assert F.cross_entropy(np.ones((2, 3), np.float32), [0, 1]).dtype == np.float32


def test_the_way_to_integer_ids_that_the_error_names():
    ids, table = Tensor([1.0, 0.0]), normal(2, 3)
    with pytest.raises(TypeError, match=r"float32: tg\.Tensor\(ids, dtype=np\.int64\) converts"):
        F.embedding(ids, table)
    converted = Tensor(ids, dtype=np.int64)
    assert np.array_equal(F.embedding(converted, table).data, table[::-1])


X = np.ones((2, 3))
ones, attend = np.ones, F.scaled_dot_product_attention
ERRORS = {
    "linear inner": (ValueError, r"\(2, 3\).*\(4, 5\)", lambda: F.linear(X, ones((4, 5)))),
    "linear 1-d weight": (ValueError, r"weight \(3,\)", lambda: F.linear(X, ones(3))),
    "linear 0-d input": (ValueError, r"input \(\)", lambda: F.linear(1.0, ones((4, 3)))),
    "linear bias": (
        ValueError,
        r"\(3,\), expected \(4,\)",
        lambda: F.linear(X, ones((4, 3)), ones(3)),
    ),
    "linear residual": (
        ValueError,
        r"residual has shape \(4,\), expected \(2, 4\)",
        lambda: F.linear(X, ones((4, 3)), residual=ones(4)),
    ),
    "linear residual dtype": (
        TypeError,
        "float64.*float32",
        lambda: F.linear(X, ones((4, 3)), residual=ones((2, 4), np.float32)),
    ),
    "split_heads axes": (
        ValueError,
        r"\(2, 3\), expected \(B, T, n\)",
        lambda: F.split_heads(X, 1),
    ),
    "split_heads width": (ValueError, "2 x 2 heads", lambda: F.split_heads(ones((1, 2, 6)), 2, 2)),
    "split_heads none": (ValueError, "1 x 0 heads", lambda: F.split_heads(ones((1, 2, 6)), 0)),
    "split_heads half": (TypeError, "1.5", lambda: F.split_heads(ones((1, 2, 6)), 1.5)),
    "self_attention width": (
        ValueError,
        r"self_attention.*\(1, 2, 8\).*3 x 2 heads",
        lambda: F.self_attention(ones((1, 2, 8)), 2),
    ),
    "self_attention p": (
        ValueError,
        "self_attention: dropout_p.*1.5",
        lambda: F.self_attention(ones((1, 2, 6)), 2, 1.5),
    ),
    "merge_heads axes": (ValueError, r"\(2, 3\), expected", lambda: F.merge_heads(X)),
    "linear dtype": (TypeError, "float64.*float32", lambda: F.linear(X, ones((4, 3), np.float32))),
    "linear text": (TypeError, "<U1", lambda: F.linear("a", X)),
    "embedding float ids": (TypeError, "float64", lambda: F.embedding(X, X)),
    "embedding bool ids": (TypeError, "bool", lambda: F.embedding(X > 0, X)),
    "embedding high": (IndexError, r"2 at \(1,\).*0 .. 1", lambda: F.embedding([0, 2], X)),
    "embedding negative": (IndexError, "-1", lambda: F.embedding([-1], X)),
    "embedding table": (ValueError, r"\(3,\)", lambda: F.embedding([0], ones(3))),
    "embedding padding": (ValueError, "padding_idx 2", lambda: F.embedding([0], X, 2)),
    "layer_norm shape": (ValueError, r"\(2, 3\).*\(2,\)", lambda: F.layer_norm(X, 2)),
    "layer_norm no axes": (ValueError, r"\(\)", lambda: F.layer_norm(X, ())),
    "layer_norm weight": (
        ValueError,
        r"weight has shape \(2,\)",
        lambda: F.layer_norm(X, 3, ones(2)),
    ),
    "layer_norm bias": (
        ValueError,
        r"bias has shape \(2,\)",
        lambda: F.layer_norm(X, 3, None, ones(2)),
    ),
    "layer_norm dtype": (
        TypeError,
        "weight float32",
        lambda: F.layer_norm(X, 3, ones(3, np.float32)),
    ),
    "rms_norm shape": (ValueError, r"\(2, 3\).*\(3, 3\)", lambda: F.rms_norm(X, (3, 3))),
    "rms_norm weight": (ValueError, r"\(2,\)", lambda: F.rms_norm(X, 3, ones(2))),
    "gelu": (ValueError, "'exact'", lambda: F.gelu(X, "exact")),
    "softmax axis": (ValueError, "axis 2 is out of bounds", lambda: F.softmax(X, 2)),
    "log_softmax axis": (TypeError, "one axis", lambda: F.log_softmax(X, None)),
    "cross_entropy scalar": (ValueError, r"\(\)", lambda: F.cross_entropy(1.0, 0)),
    "cross_entropy one-hot ids": (
        ValueError,
        r"int64 and shape \(2, 3\).* probabilities \(floats\) of shape \(2, 3\)",
        lambda: F.cross_entropy(X, np.eye(3, dtype=int)[:2]),
    ),
    "cross_entropy shape": (
        ValueError,
        r"shape \(3,\): expected class ids \(integers\) of shape \(2,\)",
        lambda: F.cross_entropy(X, [0, 1, 2]),
    ),
    "cross_entropy high": (IndexError, r"3 at \(1,\)", lambda: F.cross_entropy(X, [0, 3])),
    "cross_entropy negative": (IndexError, "-1", lambda: F.cross_entropy(X, [0, -1])),
    "cross_entropy float": (
        ValueError,
        r"float64 and shape \(2,\)",
        lambda: F.cross_entropy(X, ones(2)),
    ),
    "cross_entropy bool": (TypeError, "bool", lambda: F.cross_entropy(X, [True, False])),
    "cross_entropy weight": (
        ValueError,
        r"\(2,\), expected \(3,\)",
        lambda: F.cross_entropy(X, [0, 1], ones(2)),
    ),
    "cross_entropy reduction": (
        ValueError,
        "'avg'",
        lambda: F.cross_entropy(X, [0, 1], reduction="avg"),
    ),
    "cross_entropy smoothing": (
        ValueError,
        "got 1.5",
        lambda: F.cross_entropy(X, [0, 1], label_smoothing=1.5),
    ),
    "cross_entropy smoothing nan": (
        ValueError,
        "nan",
        lambda: F.cross_entropy(X, [0, 1], label_smoothing=np.nan),
    ),
    "cross_entropy target gradient": (
        ValueError,
        "detach",
        lambda: F.cross_entropy(X, Tensor(X, True)),
    ),
    "linear_cross_entropy inner": (
        ValueError,
        r"\(2, 3\).*\(5, 4\)",
        lambda: F.linear_cross_entropy(X, ones((5, 4)), [0, 1]),
    ),
    "linear_cross_entropy target": (
        ValueError,
        r"shape \(3,\): expected class ids \(integers\) of shape \(2,\)",
        lambda: F.linear_cross_entropy(X, X, [0, 1, 0]),
    ),
    "linear_cross_entropy high": (
        IndexError,
        "0 .. 1",
        lambda: F.linear_cross_entropy(X, X, [0, 2]),
    ),
    "dropout p": (ValueError, "1.5", lambda: F.dropout(X, 1.5)),
    "dropout nan": (ValueError, "nan", lambda: F.dropout(X, np.nan)),
    "attention axes": (ValueError, r"\(2, 3\), key \(1, 2, 3\)", lambda: attend(X, X[None], X)),
    "attention one axis": (ValueError, r"\(3,\)", lambda: attend(X[0], X[0], X[0])),
    "attention width": (ValueError, r"\(2, 3\).*\(2, 4\)", lambda: attend(X, ones((2, 4)), X)),
    "attention keys": (ValueError, r"\(5, 3\)", lambda: attend(X, X, ones((5, 3)))),
    "attention heads": (
        ValueError,
        r"\(2, 2, 5, 8\)",
        lambda: attend(*(ones((2, h, 5, 8)) for h in (4, 2, 2))),
    ),
    "attention gqa": (
        ValueError,
        r"\(2, 3, 5, 8\)",
        lambda: attend(*(ones((2, h, 5, 8)) for h in (4, 3, 3)), enable_gqa=True),
    ),
    "attention causal": (
        ValueError,
        "as many keys",
        lambda: attend(X, X[:1], X[:1], is_causal=True),
    ),
    "attention dtype": (TypeError, "key float32", lambda: attend(X, X.astype(np.float32), X)),
    "attention mask dtype": (TypeError, "int64", lambda: attend(X, X, X, ones((2, 2), np.int64))),
    "attention mask shape": (
        ValueError,
        r"\(3, 3\).*\(2, 2\)",
        lambda: attend(X, X, X, ones((3, 3))),
    ),
    "attention mask gradient": (
        ValueError,
        "detach",
        lambda: attend(X, X, X, Tensor(ones((2, 2)), True)),
    ),
    "attention dropout": (ValueError, "-0.1", lambda: attend(X, X, X, dropout_p=-0.1)),
}


@pytest.mark.parametrize("name", ERRORS)
def test_one_clear_error(name):
    error, message, call = ERRORS[name]
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_small_transformer_agrees_with_pytorch():
    """Loss and every gradient of embedding, attention, norms and loss together, in float64."""
    ids, target = RNG.integers(0, 11, (2, 6)), RNG.integers(0, 11, (2, 6))
    arrays = [normal(11, 8), normal(24, 8), normal(8, 8), normal(8), normal(8), normal(32, 8)]
    arrays += [normal(8, 32)]

    def model(f, heads, loss, wte, qkv, out, scale, shift, up, down):
        x = f.embedding(ids_of[f], wte)
        h = f.layer_norm(x, (8,), scale, shift)
        q, k, v = (heads(f.linear(h, qkv[i : i + 8])) for i in (0, 8, 16))
        y = f.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + f.linear(y.transpose(1, 2).reshape(2, 6, 8), out)
        x = x + f.linear(f.gelu(f.linear(f.layer_norm(x, (8,)), up), approximate="tanh"), down)
        return loss(x, wte)

    torch = pytest.importorskip("torch")
    ids_of = {F: ids, TF(torch): torch.tensor(ids)}

    def heads(x):
        return x.reshape(2, 6, 2, 4).transpose(1, 2)

    agree(
        lambda *a: model(F, heads, lambda x, w: F.linear_cross_entropy(x, w, target), *a),
        lambda t, *a: model(
            TF(t),
            heads,
            lambda x, w: TF(t).cross_entropy(
                TF(t).linear(x, w).reshape(12, 11), t.tensor(target).reshape(12)
            ),
            *a,
        ),
        *arrays,
    )
    assert tg.functional is F


@pytest.mark.parametrize("value", [1000.1, 10000.1, 1e5 + 0.1, -3e6])
def test_layer_norm_of_a_constant_row_is_zero(value):
    x = Tensor(np.full((2, 768), value, np.float32), requires_grad=True)
    w = Tensor(np.ones(768, np.float32), requires_grad=True)
    y = F.layer_norm(x, 768, w)
    y.sum().backward()
    assert np.abs(y.data).max() < 1e-3 and np.abs(w.grad).max() < 2e-3


def test_what_self_attention_found_is_locked_until_backward():
    x = Tensor(normal(1, 3, 6), requires_grad=True)
    y = F.self_attention(x, 2)
    with pytest.raises(ValueError, match="read-only"):
        y.data[:] = 0
    y.data = np.zeros(y.shape)
    with pytest.raises(RuntimeError, match="SelfAttention saved"):
        (y * 1.0).sum().backward()
