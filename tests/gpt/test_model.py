"""The GPT: its names, its numbers against PyTorch and transformers, decoding, bad input."""

import gc

import numpy as np
import pytest

import tinygrad_edu as tg
from gpt import GPT, GPTConfig

SMALL = GPTConfig(vocab_size=65, block_size=16, n_layer=4, n_head=4, n_embd=32)


def tokens(shape, vocab_size=65, seed=0):
    return np.random.default_rng(seed).integers(vocab_size, size=shape)


def float64(model):
    for parameter in model.parameters():
        parameter.data = parameter.data.astype(np.float64)
    return model


def lively(config):
    """A model whose weights are large enough for gradients of every parameter to matter."""
    model = GPT(config, np.random.default_rng(3))
    rng = np.random.default_rng(4)
    for parameter in model.parameters():
        parameter.data = parameter.data + rng.normal(0, 0.2, parameter.shape).astype(np.float32)
    return model


def test_parameter_names_are_gpt2s():
    names = [name for name, _ in GPT(SMALL).named_parameters()]
    assert names[:2] == ["transformer.wte.weight", "transformer.wpe.weight"]
    assert "transformer.h.3.mlp.c_proj.bias" in names and names[-1] == "transformer.ln_f.bias"
    assert len(names) == 4 + 4 * 12


def test_initialisation_is_gpt2s():
    model = GPT(GPTConfig(1000, 64, 8, 4, 128))
    weights = dict(model.named_parameters())
    assert abs(weights["transformer.wte.weight"].data.std() - 0.02) < 1e-3
    assert abs(weights["transformer.h.0.attn.c_attn.weight"].data.std() - 0.02) < 1e-3
    assert abs(weights["transformer.h.0.mlp.c_proj.weight"].data.std() - 0.02 / 4) < 5e-4
    assert not weights["transformer.h.0.attn.c_attn.bias"].data.any()
    idx = tokens((4, 64), 1000)
    assert abs(model(idx, tokens((4, 64), 1000, seed=1))[1].item() - np.log(1000)) < 0.2


def test_loss_is_the_cross_entropy_of_the_logits():
    model, idx, targets = lively(SMALL), tokens((2, 16)), tokens((2, 16), seed=1)
    logits, none = model(idx)
    assert none is None and logits.shape == (2, 16, 65)
    none, loss = model(idx, targets)
    expected = tg.functional.cross_entropy(logits.reshape(32, 65), targets.reshape(32))
    assert none is None and loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_no_token_sees_the_future():
    model, idx = lively(SMALL), tokens((1, 16))
    changed = idx.copy()
    changed[0, 10] += 1
    a, b = model(idx)[0].data, model(changed % 65)[0].data
    np.testing.assert_array_equal(a[:, :10], b[:, :10])
    assert (a[:, 10:] != b[:, 10:]).any(axis=2).all()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype, limit", [(np.float32, 1e-5), (np.float64, 1e-10)])
def test_loss_and_every_gradient_agree_with_pytorch(dtype, limit, bias):
    torch = pytest.importorskip("torch")
    from gpt.torch_twin import TorchGPT

    model = lively(GPTConfig(65, 16, 4, 4, 32, bias=bias))
    model = float64(model) if dtype == np.float64 else model
    twin = TorchGPT(model)
    idx, targets = tokens((3, 16)), tokens((3, 16), seed=1)
    _, loss = model(idx, targets)
    loss.backward()
    expected = twin.loss(torch.from_numpy(idx), torch.from_numpy(targets))
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=limit)
    for name, parameter in model.named_parameters():
        theirs = twin.weights[name].grad.numpy()
        error = np.linalg.norm(parameter.grad - theirs) / np.linalg.norm(theirs)
        assert parameter.grad.dtype == dtype and error < limit, (name, error)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recompute_gives_the_same_bits(dropout):
    gradients = []
    for recompute in (False, True):
        config = GPTConfig(65, 16, 3, 4, 32, dropout)
        model = GPT(config, np.random.default_rng(5), recompute=recompute)
        _, loss = model(tokens((2, 16)), tokens((2, 16), seed=1))
        loss.backward()
        gradients.append([loss.data, *(p.grad for p in model.parameters())])
    for a, b in zip(*gradients):
        np.testing.assert_array_equal(a, b)


def test_greedy_decoding_with_the_cache_equals_without_and_slides_past_the_context():
    model, idx = lively(SMALL), tokens((2, 5))
    out = model.generate(idx, 30, temperature=0)
    slow = idx
    with tg.no_grad():
        for _ in range(30):
            logits = model(slow[:, -16:])[0].data[:, -1]
            slow = np.concatenate([slow, logits.argmax(axis=1)[:, None]], axis=1)
    np.testing.assert_array_equal(out, slow)


def test_sampling_follows_the_probabilities_and_their_limits():
    from gpt.decode import sample

    logits = np.log(np.array([[0.5, 0.3, 0.15, 0.05]]))
    many = np.repeat(logits, 20000, axis=0)

    def frequencies(**options):
        options = {"temperature": 1.0, "top_k": None, "top_p": None} | options
        drawn = sample(many, rng=np.random.default_rng(0), **options)
        return np.bincount(drawn, minlength=4) / len(drawn)

    np.testing.assert_allclose(frequencies(), [0.5, 0.3, 0.15, 0.05], atol=0.012)
    np.testing.assert_allclose(frequencies(top_k=2), [0.625, 0.375, 0, 0], atol=0.012)
    np.testing.assert_allclose(frequencies(top_p=0.7), [0.625, 0.375, 0, 0], atol=0.012)
    np.testing.assert_allclose(frequencies(top_p=0.01), [1, 0, 0, 0])
    cold = np.array([0.25, 0.09, 0.0225, 0.0025])
    np.testing.assert_allclose(frequencies(temperature=0.5), cold / cold.sum(), atol=0.012)


def test_the_smallest_temperatures_take_the_likeliest_token():
    from gpt.decode import sample

    logits = np.random.default_rng(1).standard_normal((50, 65)).astype(np.float32)
    for temperature in (1e-30, 1e-320):
        drawn = sample(logits, temperature, None, None, np.random.default_rng(0))
        np.testing.assert_array_equal(drawn, logits.argmax(axis=1))


@pytest.mark.parametrize("temperature", [0, 0.8])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_model_whose_numbers_are_lost_draws_no_token(value, temperature):
    model = GPT(SMALL)
    model.transformer.ln_f.weight.data = np.full(32, value, np.float32)
    with pytest.raises(ValueError, match=r"the logits are nan: .* load weights from before"):
        model.generate(tokens((1, 3)), 2, temperature)


def test_generate_gives_a_tensor_for_a_tensor_and_repeats_for_a_seed():
    model = lively(SMALL)
    draw = [model.generate(tokens((1, 3)), 8, rng=np.random.default_rng(2)) for _ in range(2)]
    np.testing.assert_array_equal(*draw)
    out = model.generate(tg.Tensor(tokens((1, 3))), 8, rng=np.random.default_rng(2))
    assert isinstance(out, tg.Tensor) and np.array_equal(out.data, draw[0])
    assert model.training


@pytest.mark.parametrize(
    "options, word",
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_k": 2.5}, r"top_k must be a whole number of at least 1, got 2\.5"),
        ({"max_new_tokens": 1.5}, r"max_new_tokens must be a whole number .*got 1\.5"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"max_new_tokens": -1}, "max_new_tokens"),
    ],
)
def test_generate_refuses_what_makes_no_sense(options, word):
    with pytest.raises(ValueError, match=word):
        GPT(SMALL).generate(tokens((1, 3)), **({"max_new_tokens": 2} | options))


@pytest.mark.parametrize(
    "numbers, words",
    [
        ({"n_head": 3}, "n_head 3 does not divide n_embd 32"),
        ({"n_layer": 0}, "n_layer .* at least 1"),
        ({"n_embd": 32.0}, "n_embd"),
        ({"dropout": -0.1}, "dropout"),
        ({"dropout": float("nan")}, "dropout"),
        ({"vocab_size": -5}, "vocab_size"),
    ],
)
def test_config_refuses_what_makes_no_sense(numbers, words):
    fields = {"vocab_size": 65, "block_size": 16, "n_layer": 1, "n_head": 4, "n_embd": 32}
    with pytest.raises(ValueError, match=words):
        GPTConfig(**(fields | numbers))


def test_bad_tokens_are_named():
    model = GPT(SMALL)
    with pytest.raises(ValueError, match=r"17 tokens .* context of 16"):
        model(tokens((1, 17)))
    with pytest.raises(ValueError, match=r"\(B, T\)"):
        model(tokens((16,)))
    with pytest.raises(IndexError, match="65"):
        model(np.full((1, 4), 65))
    with pytest.raises(TypeError, match="integers"):
        model(np.zeros((1, 4)))
    with pytest.raises(TypeError, match=r"generate needs integers, got float64"):
        model.generate([[1.7]], 1)
    with pytest.raises(IndexError, match="generate: 65"):
        model.generate([[65]], 0)
    with pytest.raises(ValueError, match="at least one token"):
        model.generate([[]], 1)
    with pytest.raises(ValueError, match="target"):
        model(tokens((2, 4)), tokens((2, 5)))


def test_memory_is_flat_over_training_steps_without_the_garbage_collector():
    from tinygrad_edu.kernels.allocator import RECYCLER

    model = GPT(GPTConfig(65, 64, 2, 4, 64))
    optimizer = tg.optim.AdamW(model.parameters(), 1e-3)

    def train(steps):
        for step in range(steps):
            optimizer.zero_grad()
            _, loss = model(tokens((8, 64), seed=step), tokens((8, 64), seed=step + 1))
            loss.backward()
            tg.optim.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

    train(5)  # compiles kernels, which leaves cycles of Numba's
    gc.collect()
    gc.disable()
    try:
        train(1)
        mapped, live = RECYCLER.mapped_bytes, RECYCLER.live_bytes
        train(200)
        assert (RECYCLER.mapped_bytes, RECYCLER.live_bytes) == (mapped, live)
        assert gc.collect() == 0
    finally:
        gc.enable()
