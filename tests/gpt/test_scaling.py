"""The planner's formulas, held against published models, memories and machines."""

import inspect
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt import config as cli
from gpt import scaling
from gpt.model import GPT, GPTConfig
from gpt.scaling import count_parameters, flops_per_step

FOUNDRY = "mosaicml/llm-foundry, scripts/train/benchmarking/README.md"
BLOOM = "BigScience 2022 (BLOOM), table 3; 70 layers of 14336, ALiBi, vocabulary padded to 250880"

# model, source, layers, width, vocabulary, positions, what is more than a GPT-2 has, N
PARAMETERS = [
    ("125M", FOUNDRY, 12, 768, 50368, 2048, 0, 125311488),
    ("1B", FOUNDRY, 24, 2048, 50368, 2048, 0, 1315950592),
    ("7B", FOUNDRY, 32, 4096, 50368, 2048, 0, 6658859008),
    ("7B, context 65536", FOUNDRY, 32, 4096, 50368, 65536, 0, 6918905856),
    ("13B", FOUNDRY, 40, 5120, 50368, 2048, 0, 12853954560),
    ("30B", FOUNDRY, 48, 7168, 50368, 2048, 0, 29975214080),
    ("70B", FOUNDRY, 80, 8192, 50368, 2048, 0, 64862437376),
    ("GPT-2", "openai-community/gpt2", 12, 768, 50257, 1024, 0, 124439808),
    ("GPT-2 XL", "openai-community/gpt2-xl", 48, 1600, 50257, 1024, 0, 1557611200),
    ("BLOOM, a norm after the embedding", BLOOM, 70, 14336, 250880, 0, 2 * 14336, 176247271424),
]
BLOOM_N = PARAMETERS[-1][-1]


@pytest.mark.parametrize("row", PARAMETERS, ids=lambda row: row[0])
def test_parameters_of_published_models_to_the_last_one(row):
    _, _, layers, width, vocab, positions, more, published = row
    assert scaling.parameters(layers, width, vocab, positions) + more == published


# gigaGPT, configs/*.yaml: preset, layers, width, sequences of 2048, steps, tokens per parameter
GIGA = [
    ("111m", 10, 768, 120, 9037, 111.05e6, 20.0),
    ("1.3b", 24, 2048, 528, 24334, 1.3157e9, 20.0),
    ("13b", 40, 5120, 1080, 116223, 12.853e9, 20.0),
    ("70b", 80, 8192, 1472, 663425, 64.86e9, 30.8),
    ("175b", 96, 12288, 1472, 663425, 174.6e9, 11.45),
]


@pytest.mark.parametrize("row", GIGA, ids=lambda row: row[0])
def test_presets_are_those_of_gigagpt_in_size_and_tokens(row):
    preset, layers, width, batch, steps, size, per_parameter = row
    n = scaling.parameters(layers, width, 50257, 2048)
    assert n == pytest.approx(size, rel=1e-3)
    assert batch * 2048 * steps / n == pytest.approx(per_parameter, rel=0.01)
    config = cli.load_preset(preset)
    assert (config.batch_size * config.accumulate, config.steps) == (batch, steps)
    assert count_parameters(config.model(50257)) == n


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("layers", [1, 3])
def test_parameters_are_those_of_the_real_model(layers, bias):
    config = GPTConfig(
        vocab_size=31, block_size=12, n_layer=layers, n_head=2, n_embd=8, dropout=0.0, bias=bias
    )
    n = scaling.parameters(layers, 8, 31, 12, bias=bias)
    assert n == sum(p.size for p in GPT(config).parameters())
    assert n == count_parameters(config)
    assert scaling.flops_per_token(n, layers, 8, 12) == flops_per_step(config, n, 1)


def test_an_untied_output_layer_is_as_large_as_the_embedding():
    tied, untied = (scaling.parameters(2, 8, 31, 12, tied=tied) for tied in (True, False))
    assert untied - tied == 31 * 8


# Megatron's table of a 175B model: vocabulary 51200, 96 layers of 12288, context 2048.


def test_gpt3_on_1024_a100_takes_138_teraflops_with_recompute():
    """Narayanan et al. 2021: 1536 sequences in 32 s. Published 138, to three digits 137.7."""
    work = scaling.recomputed_flops_per_token(96, 12288, 51200, 2048)
    speed = scaling.tokens_per_second(1536 * 2048, 32)
    assert scaling.achieved_flops(speed, work, 1024) == pytest.approx(137.7e12, rel=1e-3)


def test_gpt3_on_1024_a100_takes_34_days():
    """Narayanan et al. 2021: 300B tokens at 140 TF per GPU; equation 4 is 8 N per token."""
    speed = scaling.throughput(140e12, 8 * 175e9, 1024)
    assert scaling.days(300e9, speed) == pytest.approx(33.9, rel=1e-3)


@pytest.mark.parametrize("layers, width, context", [(96, 12288, 2048), (24, 2048, 8192)])
def test_megatrons_formula_is_4_3_of_the_models_but_for_the_output_layer(layers, width, context):
    blocks = 12 * layers * width**2
    model = scaling.flops_per_token(blocks, layers, width, context)
    vocab = 50000
    executed = scaling.recomputed_flops_per_token(layers, width, vocab, context)
    assert executed == pytest.approx(4 / 3 * model + 6 * vocab * width, rel=1e-12)


def test_gpt2_in_2019_cost_43008_dollars():
    """karpathy/llm.c, discussion 677: 32 TPUv3 for a week at $8 an hour."""
    assert scaling.dollars(168 / 24, 8, 32) == pytest.approx(43008)


def test_bloom_on_disk():
    """BigScience's page on the model: weights of 329 "GB", a checkpoint of 2.3 "TB"; binary ones.

    bf16 weights, beside them float32 ones and AdamW's two.
    """
    weights, checkpoint = 2 * BLOOM_N, scaling.checkpoint_bytes(BLOOM_N, copy_bytes=2)
    assert weights / 2**30 == pytest.approx(328, rel=0.01)
    assert checkpoint / 2**40 == pytest.approx(2.24, rel=0.01)
    assert checkpoint == 14 * BLOOM_N


# machine, dense FLOP/s, bytes/s of the link, tokens that hide a 16-bit weight in forward
BREAK_EVEN = [("CS-2", 7.5e15, 150e9, 50e3), ("A100 over PCIe 4", 312e12, 25e9, 12.5e3)]


@pytest.mark.parametrize("row", BREAK_EVEN, ids=lambda row: row[0])
def test_streaming_is_free_from_so_many_tokens(row):
    _, rate, bandwidth, tokens = row
    forward = scaling.break_even_tokens(2, rate, bandwidth)
    assert forward == pytest.approx(tokens, rel=0.01)
    assert scaling.break_even_tokens(2, rate, bandwidth, backward=True) == forward / 2


@pytest.mark.parametrize("backward", [False, True])
def test_at_the_break_even_fetch_and_compute_take_as_long(backward):
    rate, bandwidth, weights = 3e12, 7e9, 1e6
    tokens = scaling.break_even_tokens(4, rate, bandwidth, backward)
    compute = tokens * weights * (4 if backward else 2) / rate
    assert compute == pytest.approx(4 * weights / bandwidth, rel=1e-12)


# model, layers, width, tokens in the 40 GB of a CS-2, whether streaming can hide at the dense peak
RESIDENT = [
    ("13B", 40, 5120, 98e3, True),
    ("70B", 80, 8192, 31e3, False),
    ("175B", 96, 12288, 17e3, False),
]


@pytest.mark.parametrize("row", RESIDENT, ids=lambda row: row[0])
def test_tokens_resident_against_tokens_needed(row):
    _, layers, width, tokens, hides = row
    resident = scaling.tokens_resident(40e9, layers, width)
    assert round(resident, -3) == tokens
    assert (resident >= scaling.break_even_tokens(2, 7.5e15, 150e9)) == hides


def test_tokens_resident_are_the_most_that_fit():
    n = scaling.tokens_resident(1000, 3, 7, value_bytes=4)
    assert n * 3 * 7 * 4 <= 1000 < (n + 1) * 3 * 7 * 4
    # the same account as the boundary activations of all layers
    assert scaling.activation_bytes_per_layer(n, 1, 7, 1, "boundary") * 3 * 2 <= 1000


def test_activations_of_a_gpt3_layer():
    """Korthikanti et al. 2022, table 2: 5 a s / h is 80 for GPT-3 175B and 64 for MT-530B."""
    unit = 2048 * 12288
    assert scaling.activation_bytes_per_layer(2048, 1, 12288, 96) == unit * (34 + 80)
    assert scaling.activation_bytes_per_layer(2048, 1, 12288, 96, "fused") == unit * 34
    assert scaling.activation_bytes_per_layer(2048, 1, 12288, 96, "boundary") == unit * 2
    assert scaling.activation_bytes_per_layer(2048, 3, 20480, 128) == 3 * 2048 * 20480 * (34 + 64)


def test_adamw_holds_16_bytes_per_parameter_and_moves_28():
    found = scaling.adamw_bytes(10)
    assert (found.live, found.at_rest, found.traffic) == (160, 120, 280)
    assert (found.read, found.written) == (160, 120)
    assert found.at_rest == scaling.checkpoint_bytes(10)
    # 124M parameters for 10,000 steps wear an SSD by 15 TB
    n = scaling.parameters(12, 768, 50257, 1024)
    assert 10_000 * scaling.adamw_bytes(n).written == pytest.approx(15e12, rel=0.01)


numbers = st.floats(1e-6, 1e15)
counts = st.integers(1, 10_000)
close = {"rel": 1e-12}


@given(numbers, numbers)
def test_days_times_speed_is_tokens(tokens, speed):
    assert scaling.days(tokens, speed) * 86400 * speed == pytest.approx(tokens, **close)


@given(numbers, numbers, counts)
def test_throughput_and_achieved_flops_are_inverse(rate, work, chips):
    speed = scaling.throughput(rate, work, chips)
    assert scaling.achieved_flops(speed, work, chips) == pytest.approx(rate, **close)
    assert scaling.mfu(speed, work, rate, chips) == pytest.approx(1, **close)


@given(numbers, numbers)
def test_a_step_times_speed_is_its_tokens(tokens, seconds):
    assert scaling.tokens_per_second(tokens, seconds) * seconds == pytest.approx(tokens, **close)


@given(st.floats(1e-3, 1e4), st.floats(0, 1e6), counts)
def test_rent_and_energy_grow_with_days_and_chips(days, rate, chips):
    for total, unit in ((scaling.dollars, 1), (scaling.kilowatt_hours, 1000)):
        assert total(days, rate, chips) == pytest.approx(days * 24 * rate * chips / unit, **close)
        assert total(days, rate, chips + 1) >= total(days, rate, chips)
        assert total(days, 0, chips) == 0


# function, inputs that make sense, those that it must grow with (strictly), those that it must
# fall with (strictly)
FORMULAS = [
    (scaling.parameters, dict(layers=3, width=8, vocab=31, positions=12),
     "layers width vocab positions", ""),
    (scaling.weight_flops_per_token, dict(parameters=100), "parameters", ""),
    (scaling.attention_flops_per_token, dict(layers=3, width=8, context=12),
     "layers width context", ""),
    (scaling.flops_per_token, dict(parameters=100, layers=3, width=8, context=12),
     "parameters layers width context", ""),
    (scaling.recomputed_flops_per_token, dict(layers=3, width=8, vocab=31, context=12),
     "layers width vocab context", ""),
    (scaling.tokens_per_second, dict(tokens_per_step=5, step_seconds=2),
     "tokens_per_step", "step_seconds"),
    (scaling.throughput, dict(achieved_flops=5, flops_per_token=2, chips=3),
     "achieved_flops chips", "flops_per_token"),
    (scaling.achieved_flops, dict(tokens_per_second=5, flops_per_token=2, chips=3),
     "tokens_per_second flops_per_token", "chips"),
    (scaling.mfu, dict(tokens_per_second=5, flops_per_token=2, peak=7, chips=3),
     "tokens_per_second flops_per_token", "peak chips"),
    (scaling.hfu, dict(model_utilisation=0.5, recompute=True), "model_utilisation", ""),
    (scaling.days, dict(tokens=5, tokens_per_second=2), "tokens", "tokens_per_second"),
    (scaling.dollars, dict(days=5, dollars_per_hour=2, chips=3), "days dollars_per_hour chips", ""),
    (scaling.kilowatt_hours, dict(days=5, watts=2, chips=3), "days watts chips", ""),
    (scaling.break_even_tokens, dict(bytes_per_param=2, flops_per_second=9, bandwidth=4),
     "bytes_per_param flops_per_second", "bandwidth"),
    (scaling.tokens_resident, dict(memory=1e6, layers=3, width=8, value_bytes=2),
     "memory", "layers width value_bytes"),
    (scaling.activation_bytes_per_layer, dict(context=12, sequences=2, width=8, heads=2),
     "context sequences width heads", ""),
    (scaling.adamw_bytes, dict(parameters=100), "parameters", ""),
    (scaling.checkpoint_bytes, dict(parameters=100, copy_bytes=2), "parameters copy_bytes", ""),
]  # fmt: skip
MAY_BE_ZERO = {"positions", "dollars_per_hour", "watts", "copy_bytes"}
WHOLE = {"layers", "width", "vocab", "positions", "context", "chips", "sequences", "heads"}


def names(formulas=FORMULAS):
    return [
        (f, given, name) for f, given, up, down in formulas for name in (up + " " + down).split()
    ]


def name_of(value):
    return value if isinstance(value, str) else getattr(value, "__name__", "")


@pytest.mark.parametrize("function, inputs, up, down", FORMULAS, ids=name_of)
@given(factor=st.integers(2, 50))
def test_monotone(function, inputs, up, down, factor):
    before = function(**inputs)
    for name in up.split():
        assert function(**inputs | {name: inputs[name] * factor}) > before, name
    for name in down.split():
        assert function(**inputs | {name: inputs[name] * factor}) < before, name


@pytest.mark.parametrize("function, inputs, name", names(), ids=name_of)
def test_numbers_that_make_no_sense_are_named(function, inputs, name):
    bad = [-1, math.nan, math.inf, -math.inf, None, "8", True, *([1.5] if name in WHOLE else [])]
    for value in [*bad, 0] if name not in MAY_BE_ZERO else bad:
        with pytest.raises(ValueError) as error:
            function(**inputs | {name: value})
        message = str(error.value)
        assert message.startswith(f"{name} must be a ")
        assert message.endswith(f"got {value!r}")
        assert "\n" not in message
    if name in MAY_BE_ZERO:
        function(**inputs | {name: 0})


def test_the_lists_above_have_every_formula_and_every_input():
    public = {
        f for _, f in inspect.getmembers(scaling, inspect.isfunction)
        if f.__module__ == scaling.__name__
    } - {scaling.positive, scaling.not_negative, scaling.counted, scaling.is_number}  # fmt: skip
    public -= {count_parameters, flops_per_step}  # the same of a GPTConfig
    assert public == {function for function, *_ in FORMULAS}
    switches = {"bias", "tied", "recompute", "backward", "keep"}
    for function, inputs, up, down in FORMULAS:
        expected = set(inspect.signature(function).parameters) - switches
        assert expected == set(inputs) - switches == set((up + " " + down).split()), function


def test_an_unknown_kind_of_activations_is_refused():
    with pytest.raises(ValueError, match="keep must be one of all, fused, boundary, got 'some'"):
        scaling.activation_bytes_per_layer(12, 2, 8, 2, keep="some")


@given(st.floats(1e-6, 10))
def test_hardware_utilisation_is_a_third_more_with_recompute(mfu):
    assert scaling.hfu(mfu, False) == mfu
    assert scaling.hfu(mfu, True) == pytest.approx(mfu * 4 / 3, **close)


@given(counts, counts, counts, counts)
def test_keeping_less_is_less(context, sequences, width, heads):
    sizes = [
        scaling.activation_bytes_per_layer(context, sequences, width, heads, keep)
        for keep in scaling.KEPT
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[1] == pytest.approx(5 * sequences * heads * context**2, rel=1e-9)
