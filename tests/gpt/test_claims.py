"""Published training runs, judged from their inputs alone: the figures people know come out."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt import scaling
from gpt.claims import Claim, judge, short

A100, H100, CS2 = 312e12, 989.5e12, 7.5e15  # dense FLOP/s in 16 bits
MPT, GPT2 = 50368, 50257  # vocabularies


def gpt(layers, width, context, vocab, positions=None, **more):
    """A model as a claim takes it, with its parameters counted, not looked up."""
    rows = context if positions is None else positions
    n = scaling.parameters(layers, width, vocab, rows)
    return {"parameters": n, "layers": layers, "width": width, "context": context, **more}


def mpt(layers, width, context=2048):
    return gpt(layers, width, context, MPT)


def gpt2(layers, width):
    return gpt(layers, width, 1024, GPT2)


def llama(parameters, layers, width, context):
    """Its layers are not GPT-2's (SwiGLU, no biases), so parameters are the paper's."""
    return {"parameters": parameters, "layers": layers, "width": width, "context": context}


LLM_C = "karpathy/llm.c, discussions 481 (124M) and 677 (1558M); 350M and 774M: author's posts"

# Source: mosaicml/llm-foundry, scripts/train/benchmarking/README.md. 6 N + 12 L d T, with N counted
# from the shape and a vocabulary of 50368. Run, model, peak, chips, tokens/s, whether activations
# are recomputed, published MFU and HFU in percent.
UTILISATION = [
    ("125M on 8 A100", mpt(12, 768), A100, 8, 1142641, False, 44.79, 44.79),
    ("1B on 8 A100", mpt(24, 2048), A100, 8, 164109, False, 59.86, 59.86),
    ("7B on 8 A100", mpt(32, 4096), A100, 8, 37130, False, 64.23, 64.23),
    ("13B on 8 A100", mpt(40, 5120), A100, 8, 18097, False, 59.57, 59.57),
    ("30B on 8 A100", mpt(48, 7168), A100, 8, 7330, True, 55.30, 73.74),
    ("70B on 64 A100", mpt(80, 8192), A100, 64, 26274, True, 53.33, 71.10),
    ("1B on 8 H100", mpt(24, 2048), H100, 8, 363645, False, 41.82, 41.82),
    ("13B on 8 H100", mpt(40, 5120), H100, 8, 38336, False, 39.79, 39.79),
    ("70B on 64 H100", mpt(80, 8192), H100, 64, 66523, True, 42.57, 56.76),
    ("7B, context 65536", mpt(32, 4096, 65536), A100, 8, 8108, True, 46.97, 62.63),
]


@pytest.mark.parametrize("row", UTILISATION, ids=lambda row: row[0])
def test_utilisation_that_llm_foundry_publishes(row):
    _, model, peak, chips, speed, recompute, mfu, hfu = row
    found = judge(
        Claim(**model, peak=peak, chips=chips, tokens_per_second=speed, recompute=recompute)
    )
    assert 100 * found.mfu == pytest.approx(mfu, abs=0.011)  # two digits, cut or rounded
    assert 100 * found.hfu == pytest.approx(hfu, abs=0.011)
    assert found.impossible is None


# run, source and formula, claim, {field: what it comes to}. MFU in percent, to 0.1 point.
RUNS = [
    (
        "GPT-3 175B, 300B tokens at 140 TF per GPU",
        "Narayanan et al. 2021, equation 4: 34 days. 140 TF count recompute, 8 N per token, of "
        "which 6 N are the model's",
        dict(
            parameters=175e9,
            peak=A100,
            chips=1024,
            recompute=True,
            tokens=300e9,
            tokens_per_second=scaling.throughput(140e12, 8 * 175e9, 1024),
        ),
        {"days": 33.9, "hfu": 44.87},  # 140 of 312
    ),
    (
        "Llama-2 7B",
        "Touvron et al. 2023b, table 2: 184320 GPU hours; 6 N + 12 L d T, context 4096",
        dict(llama(6.74e9, 32, 4096, 4096), peak=A100, tokens=2e12, days=184320 / 24),
        {"mfu": 45.29, "whole": 45},
    ),
    (
        "Llama-2 13B",
        "the same: 368640 GPU hours",
        dict(llama(13.0e9, 40, 5120, 4096), peak=A100, tokens=2e12, days=368640 / 24),
        {"mfu": 42.54, "whole": 43},
    ),
    (
        "Llama-2 70B",
        "the same: 1720320 GPU hours",
        dict(llama(69e9, 80, 8192, 4096), peak=A100, tokens=2e12, days=1720320 / 24),
        {"mfu": 46.19, "whole": 46},
    ),
    (
        "LLaMA-65B",
        "Touvron et al. 2023a, section 2.4: 380 tokens/s per GPU, about 21 days",
        dict(
            llama(65.2e9, 80, 8192, 2048),
            peak=A100,
            chips=2048,
            tokens_per_second=380 * 2048,
            tokens=1.4e12,
        ),
        {"days": 20.8},
    ),
    (
        "MT-530B",
        "Smith et al. 2022, section 2.4: 1920 x 2048 tokens in 60.1 s on 280 DGX A100; 6 N alone, "
        "N counted from 105 layers of 20480 and a vocabulary of 51200",
        dict(
            parameters=scaling.parameters(105, 20480, 51200, 2048),
            peak=A100,
            chips=2240,
            step_seconds=60.1,
            tokens_per_step=1920 * 2048,
        ),
        {"achieved_flops": 92.9e12},
    ),
    (
        "HyperCLOVA 82B",
        "Kim et al. 2021: 150B tokens in 13.4 days on 1024 A100; 6 N alone",
        dict(parameters=82e9, peak=A100, chips=1024, tokens=150e9, days=1157760 / 86400),
        {"achieved_flops": 62.2e12},
    ),
    (
        "llm.c 124M",
        LLM_C + ": about $20",
        dict(
            gpt2(12, 768),
            peak=A100,
            chips=8,
            step_seconds=0.30,
            tokens_per_step=524288,
            tokens=19560 * 524288,
            dollars_per_hour=14 / 8,
        ),
        {"dollars": 22.8},
    ),
    (
        "llm.c 350M",
        LLM_C + ": about $200",
        dict(
            gpt2(24, 1024),
            peak=A100,
            chips=8,
            step_seconds=0.82,
            tokens_per_step=524288,
            tokens=60000 * 524288,
            dollars_per_hour=14 / 8,
        ),
        {"dollars": 191},
    ),
    (
        "llm.c 774M",
        LLM_C + ": about $2000",
        dict(
            gpt2(36, 1280),
            peak=A100,
            chips=8,
            step_seconds=1.7,
            tokens_per_step=524288,
            tokens=286102 * 524288,
            dollars_per_hour=14 / 8,
        ),
        {"dollars": 1891},
    ),
    (
        "llm.c 1558M",
        LLM_C + ": $672",
        dict(
            gpt2(48, 1600),
            peak=H100,
            chips=8,
            step_seconds=2.70,
            tokens_per_step=1048576,
            tokens=32000 * 1048576,
            dollars_per_hour=28 / 8,
        ),
        {"dollars": 672, "days": 1.0},
    ),
    (
        "nanoGPT 124M",
        "karpathy/nanoGPT, README: 600k steps of 491520 tokens in about 4 days on 8 A100-40",
        dict(gpt2(12, 768), peak=A100, chips=8, tokens=600e3 * 491520, days=4),
        {"mfu": 29.40, "whole": 29},
    ),
]


@pytest.mark.parametrize("row", RUNS, ids=lambda row: row[0])
def test_published_runs(row):
    _, _, claim, expected = row
    found = judge(Claim(**claim))
    assert found.impossible is None
    for name, value in expected.items():
        if name == "whole":  # the percent that people quote
            assert round(100 * found.mfu) == value
        elif name in ("mfu", "hfu"):
            assert 100 * getattr(found, name) == pytest.approx(value, abs=0.1)
        else:
            assert getattr(found, name) == pytest.approx(value, rel=0.01)


# run, claim, MFU in percent, words of the sentence
IMPOSSIBLE = [
    (  # a price list of 2022 has it: The Next Platform, "Counting the cost of training LLMs"
        "70B, 1.4T tokens, 85 days on 4 CS-2",
        dict(parameters=70e9, peak=CS2, chips=4, tokens=1.4e12, days=85),
        266.9,
        ["266.9%", "190,632 tokens/s", "70.0B", "80.1 PFLOP/s", "4 chips have 30.0 PFLOP/s"],
    ),
    (  # made up
        "125M, 524288 tokens in 150 ms on 8 A100",
        dict(mpt(12, 768), peak=A100, chips=8, step_seconds=0.15, tokens_per_step=524288),
        137.0,
        ["137.0%", "3,495,253 tokens/s", "125M", "3.42 PFLOP/s", "8 chips have 2.50 PFLOP/s"],
    ),
]


@pytest.mark.parametrize("row", IMPOSSIBLE, ids=lambda row: row[0])
def test_impossible_claims_are_called_that(row):
    _, claim, mfu, words = row
    found = judge(Claim(**claim))
    assert 100 * found.mfu == pytest.approx(mfu, abs=0.1)
    assert found.impossible.startswith("impossible")
    assert "\n" not in found.impossible
    assert [word for word in words if word not in found.impossible] == []


def test_the_price_list_claims_20_petaflops_of_each_cs2():
    _, claim, _, _ = IMPOSSIBLE[0]
    assert judge(Claim(**claim)).achieved_flops == pytest.approx(20e15, rel=0.01)


@pytest.mark.parametrize("row", IMPOSSIBLE, ids=lambda row: row[0])
def test_the_same_claim_on_enough_chips_is_possible(row):
    _, claim, mfu, _ = row
    enough = math.ceil(claim["chips"] * mfu / 100)
    assert judge(Claim(**claim | {"chips": enough})).impossible is None
    assert judge(Claim(**claim | {"chips": enough - 1})).impossible is not None


def test_exactly_the_peak_is_possible_and_a_little_more_is_not():
    at_peak = Claim(parameters=1e9, peak=6e12, tokens_per_second=1000)
    assert judge(at_peak).mfu == 1
    assert judge(at_peak).impossible is None
    above = judge(dataclasses.replace(at_peak, tokens_per_second=1001))
    assert "one chip has 6.00 TFLOP/s" in above.impossible


CLAIM = dict(mpt(12, 768), peak=A100, chips=8)
speeds = st.floats(1e-3, 1e9)
amounts = st.floats(1e3, 1e15)


@given(speeds, amounts)
def test_a_speed_is_the_same_however_it_is_said(speed, tokens):
    plain = judge(Claim(**CLAIM, tokens_per_second=speed, tokens=tokens))
    in_steps = judge(Claim(**CLAIM, step_seconds=524288 / speed, tokens_per_step=524288))
    in_days = judge(Claim(**CLAIM, tokens=tokens, days=plain.days))
    assert plain.tokens_per_second == speed
    for other in (in_steps, in_days):
        assert other.tokens_per_second == pytest.approx(speed, rel=1e-12)
        assert other.mfu == pytest.approx(plain.mfu, rel=1e-12)
        assert (other.impossible is None) == (plain.impossible is None) or plain.mfu == (
            pytest.approx(1, rel=1e-9)
        )
    assert in_days.days == pytest.approx(plain.days, rel=1e-12)


@given(speeds, speeds)
def test_faster_is_more_of_the_peak_and_never_more_possible(one, other):
    slow, fast = (
        judge(Claim(**CLAIM, tokens_per_second=speed, tokens=1e9)) for speed in sorted((one, other))
    )
    assert slow.mfu <= fast.mfu
    assert slow.days >= fast.days
    assert slow.impossible is None or fast.impossible is not None
    assert (fast.impossible is None) == (fast.mfu <= 1)


def test_rent_and_energy_need_a_run_and_a_rate():
    alone = judge(Claim(**CLAIM, tokens_per_second=1e6, dollars_per_hour=2, watts=400))
    assert (alone.days, alone.dollars, alone.kilowatt_hours) == (None, None, None)
    run = judge(Claim(**CLAIM, tokens_per_second=1e6, tokens=3.6e9))
    assert run.days == pytest.approx(1 / 24)
    assert (run.dollars, run.kilowatt_hours) == (None, None)
    full = judge(Claim(**CLAIM, tokens_per_second=1e6, tokens=3.6e9, dollars_per_hour=2, watts=400))
    assert full.dollars == pytest.approx(16)  # 8 chips for an hour
    assert full.kilowatt_hours == pytest.approx(3.2)
    free = judge(Claim(**CLAIM, tokens_per_second=1e6, tokens=3.6e9, dollars_per_hour=0))
    assert free.dollars == 0


def test_without_a_shape_attention_is_left_out():
    with_it = judge(Claim(**CLAIM, tokens_per_second=1e6))
    without = judge(
        Claim(parameters=CLAIM["parameters"], peak=A100, chips=8, tokens_per_second=1e6)
    )
    assert without.flops_per_token == 6 * CLAIM["parameters"]
    assert with_it.flops_per_token - without.flops_per_token == 12 * 12 * 768 * 2048


def refusal(**claim):
    with pytest.raises(ValueError) as error:
        Claim(**claim)
    message = str(error.value)
    assert "\n" not in message
    return message


STEP = dict(CLAIM, step_seconds=0.1, tokens_per_step=1000, tokens=1e9)
BAD = [0, -1, math.nan, math.inf, "8", True]


@pytest.mark.parametrize("name", ["parameters", "peak", "step_seconds", "tokens_per_step",
                                  "tokens", "layers", "width", "context", "chips"])  # fmt: skip
@pytest.mark.parametrize("value", BAD, ids=repr)
def test_numbers_that_make_no_sense_are_named(name, value):
    message = refusal(**STEP | {name: value})
    assert message.startswith(f"{name} must be a ")
    assert message.endswith(f"got {value!r}")


@pytest.mark.parametrize("value", BAD, ids=repr)
def test_speeds_that_make_no_sense_are_named(value):
    assert refusal(**CLAIM, tokens_per_second=value).startswith("tokens_per_second must be")
    assert refusal(**CLAIM, tokens=1e9, days=value).startswith("days must be")


@pytest.mark.parametrize("name", ["dollars_per_hour", "watts"])
@pytest.mark.parametrize("value", [-1, math.nan, math.inf], ids=repr)
def test_rates_may_be_zero_but_not_below(name, value):
    Claim(**STEP | {name: 0})
    assert refusal(**STEP | {name: value}) == f"{name} must be a number of at least 0, got {value}"


@pytest.mark.parametrize("speed, words", [
    ({}, "one speed, got none"),
    ({"tokens": 1e9}, "one speed, got none"),
    ({"tokens_per_step": 1e6}, "one speed, got none"),
    ({"tokens_per_second": 1, "step_seconds": 1, "tokens_per_step": 1},
     "got tokens_per_second and step_seconds"),
    ({"tokens_per_second": 1, "tokens": 1, "days": 1}, "got tokens_per_second and days"),
    ({"step_seconds": 1}, "step_seconds is no speed without tokens_per_step"),
    ({"step_seconds": 1, "tokens": 1e9}, "step_seconds is no speed without tokens_per_step"),
    ({"days": 1}, "days is no speed without tokens"),
    ({"tokens_per_second": 1, "tokens_per_step": 1}, "tokens_per_step goes with step_seconds"),
])  # fmt: skip
def test_a_claim_has_one_speed(speed, words):
    message = refusal(**CLAIM, **speed)
    assert words in message
    assert "give tokens_per_second, or step_seconds with tokens_per_step, or days" in message


@pytest.mark.parametrize("missing", ["layers", "width", "context"])
def test_half_a_shape_is_refused(missing):
    message = refusal(**CLAIM | {missing: None}, tokens_per_second=1)
    assert message == f"{missing} must be a whole number of at least 1, got None"
    alone = {"parameters": 1e9, "peak": A100, missing: 12}
    assert "must be a whole number of at least 1, got None" in refusal(**alone, tokens_per_second=1)


@pytest.mark.parametrize("value, text", [
    (999, "999"), (999.6, "1.00k"), (124.4e6, "124M"), (9.996e9, "10.0B"), (65.2e9, "65.2B"),
    (1e12, "1.00T"), (1e18, "1000000T"),
])  # fmt: skip
def test_short_numbers(value, text):
    assert short(value, "kMBT") == text
