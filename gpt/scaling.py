"""The arithmetic of training a GPT: parameters, operations, bytes, days and dollars.

Every function is a formula with a source, from plain numbers to a plain number; nothing is looked
up, measured or simulated. Units are FLOPs, bytes, tokens, seconds, watts and dollars, days where
the name says so, and fractions where people say percent. In formulas, N is parameters, L layers, d
width, T context, V vocabulary, a heads and b sequences. Whatever is not a sensible number is a
ValueError that names the input.

    n = parameters(layers=12, width=768, vocab=50257, positions=1024)       # GPT-2's 124M
    work = flops_per_token(n, layers=12, width=768, context=1024)
    mfu(tokens_per_second=178_000, flops_per_token=work, peak=312e12)       # 0.49 of an A100
"""

import math
import numbers
from typing import Any, NamedTuple

DAY = 86400  # seconds
RECOMPUTE = 4 / 3  # forward, forward again and backward, for forward and backward


def positive(**given: Any) -> None:
    """ValueError unless each is a finite number above 0."""
    for name, value in given.items():
        if not is_number(value) or value <= 0:
            raise ValueError(f"{name} must be a number above 0, got {value!r}")


def not_negative(**given: Any) -> None:
    """ValueError unless each is a finite number of at least 0."""
    for name, value in given.items():
        if not is_number(value) or value < 0:
            raise ValueError(f"{name} must be a number of at least 0, got {value!r}")


def counted(least: int = 1, **given: Any) -> None:
    """ValueError unless each is a whole number of at least `least`."""
    for name, value in given.items():
        if not is_number(value) or value != int(value) or value < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


def is_number(value: Any) -> bool:
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return real and math.isfinite(value)


# Operations


def parameters(
    layers: int, width: int, vocab: int, positions: int, bias: bool = True, tied: bool = True
) -> int:
    """Numbers in a GPT-2: 12 d^2 and two norms per layer, a last norm, the embeddings.

    positions: rows of the learned position table, 0 without one (rotary positions, ALiBi). bias:
    in linear layers and norms, 11 d more per layer. tied: the output layer is the embedding;
    otherwise it is V d more. Source: the shapes of GPT-2 (Radford et al. 2019).
    """
    counted(layers=layers, width=width, vocab=vocab)
    counted(0, positions=positions)
    layer = 12 * width * width + 2 * width + (11 * width if bias else 0)
    last_norm = 2 * width if bias else width
    tables = vocab + positions + (0 if tied else vocab)
    return int(layers * layer + last_norm + tables * width)


def count_parameters(config: Any) -> int:
    """Those of a GPTConfig, whose output layer is tied."""
    c = config
    return parameters(c.n_layer, c.n_embd, c.vocab_size, c.block_size, bias=c.bias)


def flops_per_step(config: Any, parameters: float, tokens: float) -> float:
    """The products of forward and backward of `tokens` tokens, without a recompute."""
    c = config
    return tokens * flops_per_token(parameters, c.n_layer, c.n_embd, c.block_size)


def weight_flops_per_token(parameters: float) -> float:
    """6 N: each weight multiplies and adds once forward, twice backward (Kaplan et al. 2020)."""
    positive(parameters=parameters)
    return 6 * parameters


def attention_flops_per_token(layers: int, width: int, context: int) -> float:
    """12 L d T: scores and mixed values, forward and backward, the causal half not left out.

    Source: PaLM (Chowdhery et al. 2022), appendix B. Half of it is masked; published MFU counts
    all of it.
    """
    counted(layers=layers, width=width, context=context)
    return 12 * layers * width * context


def flops_per_token(parameters: float, layers: int, width: int, context: int) -> float:
    """6 N + 12 L d T: what forward and backward of one token need, without any recompute.

    Source: PaLM (Chowdhery et al. 2022), appendix B.
    """
    return weight_flops_per_token(parameters) + attention_flops_per_token(layers, width, context)


def recomputed_flops_per_token(layers: int, width: int, vocab: int, context: int) -> float:
    """96 L d^2 (1 + T / 6d + V / 16 L d): what a GPU executes when every layer is recomputed.

    A layer takes four times its forward pass, the output layer three times: it is not recomputed.
    Source: Narayanan et al. 2021, equation 3, per token.
    """
    counted(layers=layers, width=width, vocab=vocab, context=context)
    extra = context / (6 * width) + vocab / (16 * layers * width)
    return 96 * layers * width**2 * (1 + extra)


# Speed


def tokens_per_second(tokens_per_step: float, step_seconds: float) -> float:
    """Tokens/s of all chips together, from what a step takes and how long."""
    positive(tokens_per_step=tokens_per_step, step_seconds=step_seconds)
    return tokens_per_step / step_seconds


def throughput(achieved_flops: float, flops_per_token: float, chips: int = 1) -> float:
    """Tokens/s of `chips` chips that each execute `achieved_flops` FLOP/s."""
    positive(achieved_flops=achieved_flops, flops_per_token=flops_per_token)
    counted(chips=chips)
    return achieved_flops * chips / flops_per_token


def achieved_flops(tokens_per_second: float, flops_per_token: float, chips: int = 1) -> float:
    """FLOP/s of each of `chips` chips that together take `tokens_per_second`."""
    positive(tokens_per_second=tokens_per_second, flops_per_token=flops_per_token)
    counted(chips=chips)
    return tokens_per_second * flops_per_token / chips


def mfu(tokens_per_second: float, flops_per_token: float, peak: float, chips: int = 1) -> float:
    """Model FLOPs utilisation: the fraction of the dense peak that forward and backward need.

    tokens_per_second: of all chips; peak: dense FLOP/s of one chip. Above 1 it is impossible.
    Source: PaLM (Chowdhery et al. 2022), appendix B.
    """
    positive(peak=peak)
    return achieved_flops(tokens_per_second, flops_per_token, chips) / peak


def hfu(model_utilisation: float, recompute: bool) -> float:
    """Hardware FLOPs utilisation: MFU, and with full recompute the second forward pass as well.

    A fraction. Source: Korthikanti et al. 2022; the factor of 4/3 as llm-foundry has it.
    """
    positive(model_utilisation=model_utilisation)
    return model_utilisation * (RECOMPUTE if recompute else 1)


# Time, money, energy


def days(tokens: float, tokens_per_second: float) -> float:
    """Days that `tokens` take, without evaluations, restarts and failures."""
    positive(tokens=tokens, tokens_per_second=tokens_per_second)
    return tokens / tokens_per_second / DAY


def dollars(days: float, dollars_per_hour: float, chips: int = 1) -> float:
    """Rent of `chips` chips. dollars_per_hour: of one chip, 0 if it costs nothing."""
    positive(days=days)
    not_negative(dollars_per_hour=dollars_per_hour)
    counted(chips=chips)
    return days * 24 * dollars_per_hour * chips


def kilowatt_hours(days: float, watts: float, chips: int = 1) -> float:
    """Energy. watts: of one chip with all that runs beside it."""
    positive(days=days)
    not_negative(watts=watts)
    counted(chips=chips)
    return days * 24 * watts / 1000 * chips


# Streaming


def break_even_tokens(
    bytes_per_param: float, flops_per_second: float, bandwidth: float, backward: bool = False
) -> float:
    """Tokens on a chip while a weight passes by, from which fetching it costs no time.

    A weight arrives in bytes_per_param / bandwidth seconds; each token spends 2 FLOPs on it in the
    forward pass and 4 in the backward pass, so backward hides with half the tokens. bandwidth:
    bytes/s into one chip. Latency, attention and gradients on their way out are left out: the last
    use the link's other direction. Source: derived, the ridge of a roofline (Williams et al. 2009).
    """
    positive(
        bytes_per_param=bytes_per_param, flops_per_second=flops_per_second, bandwidth=bandwidth
    )
    return bytes_per_param * flops_per_second / ((4 if backward else 2) * bandwidth)


def tokens_resident(memory: float, layers: int, width: int, value_bytes: float = 2) -> int:
    """Tokens whose activations at the borders of layers fit, with full recompute.

    memory: bytes of one chip, weights in passing and workspace left out, so an upper limit; each
    token keeps `value_bytes` L d bytes. Compare with `break_even_tokens`. Source: derived.
    """
    positive(memory=memory, value_bytes=value_bytes)
    counted(layers=layers, width=width)
    return int(memory // (value_bytes * layers * width))


# Bytes

KEPT = ("all", "fused", "boundary")


def activation_bytes_per_layer(
    context: int, sequences: int, width: int, heads: int, keep: str = "all"
) -> float:
    """Bytes of one layer's activations in 16 bits, from forward to backward.

    keep: "all" is T b d (34 + 5 a T / d); "fused" is T b 34 d, as a fused attention keeps no
    T x T matrix; "boundary" is T b 2 d, the layer's input alone, with full recompute. An engine
    that computes in float32 counts what it saves itself. Source: Korthikanti et al. 2022, equation
    1 and table 2, without parallelism.
    """
    counted(context=context, sequences=sequences, width=width, heads=heads)
    if keep not in KEPT:
        raise ValueError(f"keep must be one of {', '.join(KEPT)}, got {keep!r}")
    per_value = {"all": 34 + 5 * heads * context / width, "fused": 34.0, "boundary": 2.0}[keep]
    return context * sequences * width * per_value


class AdamWBytes(NamedTuple):
    """What AdamW in float32 holds and moves. Bytes; `read` and `written` per step."""

    live: float  # weight, gradient, mean and mean square
    at_rest: float  # between steps: without the gradient
    read: float
    written: float

    @property
    def traffic(self) -> float:
        return self.read + self.written


def adamw_bytes(parameters: float) -> AdamWBytes:
    """16 N live and 12 N at rest; an update reads 16 N and writes 12 N.

    Source: ZeRO (Rajbhandari et al. 2020), section 3.1, for weights in float32 alone.
    """
    positive(parameters=parameters)
    return AdamWBytes(16 * parameters, 12 * parameters, 16 * parameters, 12 * parameters)


def checkpoint_bytes(parameters: float, copy_bytes: float = 0) -> float:
    """Bytes from which AdamW resumes: 12 N, and `copy_bytes` N of weights in less precision.

    Mixed precision saves a 16-bit copy besides, 14 N in all. Source: ZeRO (Rajbhandari et al.
    2020), section 3.1.
    """
    positive(parameters=parameters)
    not_negative(copy_bytes=copy_bytes)
    return (12 + copy_bytes) * parameters
