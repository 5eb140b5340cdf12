"""Modules: names, ties, saving and loading, modes, and how the layers start."""

import numpy as np
import pytest

import tinygrad_edu as tg
from tinygrad_edu import functional as F
from tinygrad_edu import nn


class Tree(nn.Module):
    """Parameters in every place they may be."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.first = nn.Linear(3, 4, rng=rng)
        self.list = [nn.Linear(4, 4, bias=False, rng=rng), nn.Parameter([1.0])]
        self.by_name = {"a": nn.LayerNorm(4), "b": (nn.Parameter([2.0]),)}
        self.tied = self.first
        self.tied_weight = self.list[0].weight
        self.number, self.tensor = 3, tg.Tensor([1.0])
        self.parent = self  # a cycle


NAMES = [
    "first.weight",
    "first.bias",
    "list.0.weight",
    "list.1",
    "by_name.a.weight",
    "by_name.a.bias",
    "by_name.b.0",
]


def test_names_are_paths_and_ties_appear_once():
    tree = Tree()
    assert [name for name, _ in tree.named_parameters()] == NAMES
    parameters = tree.parameters()
    assert type(parameters) is list
    assert len({id(p) for p in parameters}) == len(parameters) == 7
    assert parameters[2] is tree.tied_weight
    assert [name for name, _ in tree.named_modules()] == ["", "first", "list.0", "by_name.a"]


def test_a_tied_parameter_gets_both_gradients_and_one_update():
    tree = Tree()
    (tree.list[0].weight.sum() + tree.tied_weight.sum() * 2).backward()
    assert np.all(tree.tied_weight.grad == 3)
    before = tree.tied_weight.numpy()
    tg.optim.SGD(tree.parameters(), lr=1.0).step()
    np.testing.assert_allclose(tree.tied_weight.data, before - 3, rtol=1e-6)
    tree.zero_grad()
    assert all(p.grad is None for p in tree.parameters())


def test_state_dict_round_trip():
    tree, other = Tree(), Tree()
    for i, parameter in enumerate(other.parameters()):
        parameter.data = np.full(parameter.shape, i + 0.5, np.float32)
    state = other.state_dict()
    assert list(state) == NAMES
    state["list.1"][0] += 0  # copies: writable, and apart from the model
    assert not any(np.shares_memory(state[n], p.data) for n, p in other.named_parameters())
    version = tree.parameters()
    tree.load_state_dict(state)
    assert all(a is b for a, b in zip(tree.parameters(), version, strict=True))
    for name, parameter in tree.named_parameters():
        np.testing.assert_array_equal(parameter.data, state[name])
        assert not np.shares_memory(parameter.data, state[name])


def test_loading_keeps_the_parameter_dtype():
    layer = nn.Linear(2, 2)
    layer.load_state_dict({k: v.astype(np.float64) for k, v in layer.state_dict().items()})
    assert layer.weight.dtype == np.float32


def test_load_errors_name_every_difference_and_change_nothing():
    tree = Tree()
    before = tree.state_dict()
    state = {name: array + 1 for name, array in before.items()}
    state["strange"], state["list.1"] = state.pop("first.bias"), np.zeros((2, 2))
    state["by_name.b.0"] = np.array(["x"])
    with pytest.raises(ValueError) as caught:
        tree.load_state_dict(state)
    for part in (
        "missing first.bias",
        "unexpected strange",
        "list.1 is (2, 2), expected (1,)",
        "by_name.b.0 holds <U1",
    ):
        assert part in str(caught.value)
    for name, array in tree.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_train_and_eval_reach_everything():
    model = nn.Sequential(nn.Dropout(0.9), nn.ModuleList([nn.Dropout(0.9)]))
    modules = [module for _, module in model.named_modules()]
    assert len(modules) == 4 and all(module.training for module in modules)
    assert model.eval() is model
    assert not any(module.training for module in modules)
    x = tg.Tensor(np.ones(100, np.float32))
    assert np.all(model[0](x).data == 1)
    assert model.train() is model
    assert np.any(model[0](x).data == 0)
    model.train(False)
    assert not modules[0].training


def test_sequential_and_module_list():
    rng = np.random.default_rng(0)
    a, b = nn.Linear(3, 4, rng=rng), nn.Linear(4, 2, rng=rng)
    model = nn.Sequential(a, tg.Tensor.relu, b)
    x = tg.Tensor(np.ones((5, 3), np.float32))
    np.testing.assert_array_equal(model(x).data, b(a(x).relu()).data)
    assert [name for name, _ in model.named_parameters()] == [
        "0.weight", "0.bias", "2.weight", "2.bias",
    ]  # fmt: skip
    layers = nn.ModuleList([a]).append(b)
    assert len(layers) == 2 and list(layers) == [a, b]
    assert layers[-1] is b and layers[0:1] == [a]
    with pytest.raises(IndexError):
        layers[2]


def test_unknown_attributes_and_missing_forward_raise():
    with pytest.raises(AttributeError):
        nn.Linear(2, 2).wieght  # noqa: B018
    with pytest.raises(NotImplementedError, match="Tree needs a forward"):
        Tree()(1)


def test_linear_starts_as_in_pytorch():
    layer = nn.Linear(100, 50, rng=np.random.default_rng(0))
    assert layer.weight.shape == (50, 100) and layer.bias.shape == (50,)
    for parameter in (layer.weight, layer.bias):
        assert parameter.dtype == np.float32
        assert 0.08 < np.abs(parameter.data).max() <= 0.1
    assert nn.Linear(3, 2, bias=False).bias is None
    again = nn.Linear(100, 50, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(layer.weight.data, again.weight.data)
    custom = nn.Linear(3, 2, init=lambda rng, shape: np.full(shape, 7, np.float32))
    assert np.all(custom.weight.data == 7) and np.all(custom.bias.data == 0)


def test_layers_compute_what_they_say():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 4)).astype(np.float32)
    layer = nn.Linear(4, 3, rng=rng)
    expected = x @ layer.weight.data.T + layer.bias.data
    np.testing.assert_allclose(layer(tg.Tensor(x)).data, expected, rtol=1e-5, atol=1e-6)
    centred = x - x.mean(1, keepdims=True)
    expected = centred / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(nn.LayerNorm(4)(x).data, expected, rtol=1e-4, atol=1e-5)
    expected = x / np.sqrt((x * x).mean(1, keepdims=True) + np.finfo(np.float32).eps)
    np.testing.assert_allclose(nn.RMSNorm(np.int64(4))(x).data, expected, rtol=1e-4, atol=1e-5)
    table = nn.Embedding(6, 4, padding_idx=2, rng=rng)
    ids = np.array([[0, 5], [2, 2]])
    np.testing.assert_array_equal(table(ids).data, table.weight.data[ids])
    table(ids).sum().backward()
    assert table.weight.grad[:, 0].tolist() == [1, 0, 0, 0, 0, 1]
    assert nn.LayerNorm(4, bias=False).bias is None


def test_two_parameters_with_one_name_are_refused():
    model = nn.Module()
    model.d = {1: nn.Parameter([1.0]), "1": nn.Parameter([2.0, 3.0])}
    for call in (model.state_dict, model.parameters, lambda: model.load_state_dict({})):
        with pytest.raises(ValueError, match=r"the name 'd\.1', of shapes \(1,\) and \(2,\)"):
            call()
    model.d = {1: (weight := nn.Parameter([1.0])), "1": weight}  # tied: one parameter
    assert list(model.state_dict()) == ["d.1"]


def test_a_padding_row_is_zero_and_must_exist():
    for padding_idx in (2, -1):
        table = nn.Embedding(4, 3, padding_idx, rng=np.random.default_rng(0))
        assert not table.weight.data[padding_idx].any()
        assert np.count_nonzero(table.weight.data.any(axis=1)) == 3
    for padding_idx in (4, -5):
        with pytest.raises(ValueError, match=f"padding_idx {padding_idx} is outside the 4 rows"):
            nn.Embedding(4, 3, padding_idx)
    with pytest.raises(TypeError, match=r"a row number, got 1\.0"):
        nn.Embedding(4, 3, 1.0)


def test_sizes_of_norms_are_not_rounded():
    assert nn.RMSNorm([np.int64(2), 3]).weight.shape == (2, 3)
    for make in (nn.LayerNorm, nn.RMSNorm, lambda size: F.layer_norm(np.ones((2, 2)), size)):
        with pytest.raises(TypeError, match=r"orm needs whole numbers as sizes, got \(2\.7,\)"):
            make((2.7,))


@pytest.mark.parametrize("p", [-0.1, 1.5, float("nan")])
def test_dropout_probability_is_checked(p):
    with pytest.raises(ValueError, match="between 0 and 1"):
        nn.Dropout(p)


def test_a_parameter_is_a_leaf_with_a_storage():
    weight = nn.Parameter([1.0, 2.0])
    assert weight.requires_grad and weight.data is weight.storage.read()
    weight.grad = [3.0, 4.0]
    assert weight.storage.grad.tolist() == [3, 4] and weight.grad.dtype == np.float32
    frozen = nn.Parameter([1, 2], requires_grad=False)
    assert frozen.dtype == np.int64
    with pytest.raises(TypeError, match="floating-point"):
        nn.Parameter([1, 2])
