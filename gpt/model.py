"""GPT-2 in one file: token and position embeddings, pre-norm blocks, a tied output layer.

Letters: B batch, T tokens of context, C width (n_embd), H heads, V vocabulary.
Parameter names are GPT-2's ("transformer.h.0.attn.c_attn.weight"); the architecture is Radford et
al. 2019, its initialisation included.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np

import tinygrad_edu as tg
from tinygrad_edu import functional as F
from tinygrad_edu import nn

from . import gpt2_layout
from .decode import KeyValueCache, check_sampling, sample


@dataclasses.dataclass(frozen=True)
class GPTConfig:
    """The numbers that make one GPT differ from another."""

    vocab_size: int = 50257
    block_size: int = 1024  # tokens of context
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0
    bias: bool = True  # in linear layers and layer norms

    def __post_init__(self) -> None:
        for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
            object.__setattr__(self, name, int(value))  # files know none of NumPy's numbers
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}")
        object.__setattr__(self, "dropout", float(self.dropout))
        object.__setattr__(self, "bias", bool(self.bias))
        if self.n_embd % self.n_head:
            raise ValueError(
                f"n_head {self.n_head} does not divide n_embd {self.n_embd}: every head needs the "
                "same width"
            )


class Attention(nn.Module):
    def __init__(self, config: GPTConfig, rng: np.random.Generator) -> None:
        c = config.n_embd
        self.n_head, self.dropout, self.rng = config.n_head, config.dropout, rng
        self.c_attn = nn.Linear(c, 3 * c, config.bias, rng, init=nn.normal(0.02))
        self.c_proj = nn.Linear(c, c, config.bias, rng, init=residual_init(config))

    def forward(
        self, x: tg.Tensor, stream: tg.Tensor, cache: KeyValueCache | None = None
    ) -> tg.Tensor:
        """stream + what attention finds in x."""
        qkv, p = self.c_attn(x), self.dropout if self.training else 0.0
        if cache is None:
            y = F.self_attention(qkv, self.n_head, p, is_causal=True, rng=self.rng)
        else:
            y = cache.attend(self, qkv, self.n_head)
        return add_to(stream, self.c_proj, y, p, self.rng)


class MLP(nn.Module):
    def __init__(self, config: GPTConfig, rng: np.random.Generator) -> None:
        c = config.n_embd
        self.dropout, self.rng = config.dropout, rng
        self.c_fc = nn.Linear(c, 4 * c, config.bias, rng, init=nn.normal(0.02))
        self.c_proj = nn.Linear(4 * c, c, config.bias, rng, init=residual_init(config))

    def forward(self, x: tg.Tensor, stream: tg.Tensor) -> tg.Tensor:
        """stream + what the two layers make of x."""
        y = F.gelu(self.c_fc(x), approximate="tanh")
        return add_to(stream, self.c_proj, y, self.dropout if self.training else 0.0, self.rng)


def add_to(
    stream: tg.Tensor, layer: nn.Linear, x: tg.Tensor, p: float, rng: np.random.Generator
) -> tg.Tensor:
    """stream + dropout(layer(x)); without dropout the layer adds while it has the sums at hand."""
    return stream + F.dropout(layer(x), p, rng=rng) if p else layer(x, stream)


class Block(nn.Module):
    def __init__(self, config: GPTConfig, rng: np.random.Generator) -> None:
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = Attention(config, rng)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config, rng)

    def forward(self, x: tg.Tensor, cache: KeyValueCache | None = None) -> tg.Tensor:
        x = self.attn(self.ln_1(x), x, cache)
        return self.mlp(self.ln_2(x), x)


def residual_init(config: GPTConfig) -> nn.Init:
    """Each block adds twice to the residual stream: smaller weights keep its variance at 1."""
    return nn.normal(0.02 / math.sqrt(2 * config.n_layer))


class GPT(nn.Module):
    """model(idx) -> (logits (B, T, V), None);  model(idx, targets) -> (None, mean loss).

    `rng` draws the weights and feeds dropout (default: a fixed seed). `recompute` keeps only each
    block's input for backward and runs the block again there, and the output layer likewise.
    """

    def __init__(
        self, config: GPTConfig, rng: np.random.Generator | None = None, recompute: bool = False
    ) -> None:
        rng = np.random.default_rng(0) if rng is None else rng
        self.config, self.rng, self.recompute = config, rng, recompute
        body = self.transformer = nn.Module()
        init = nn.normal(0.02)
        body.wte = nn.Embedding(config.vocab_size, config.n_embd, rng=rng, init=init)
        body.wpe = nn.Embedding(config.block_size, config.n_embd, rng=rng, init=init)
        body.h = nn.ModuleList(Block(config, rng) for _ in range(config.n_layer))
        body.ln_f = nn.LayerNorm(config.n_embd, bias=config.bias)

    def forward(
        self, idx: Any, targets: Any = None, cache: KeyValueCache | None = None
    ) -> tuple[tg.Tensor | None, tg.Tensor | None]:
        """idx, targets: integers (B, T), T at most block_size."""
        x = self.hidden(idx, cache)
        output = self.transformer.wte.weight  # tied: the output layer is the token embedding
        if targets is None:
            return F.linear(x, output), None
        return None, F.linear_cross_entropy(x, output, targets, recompute=self.recompute)

    def hidden(self, idx: Any, cache: KeyValueCache | None = None) -> tg.Tensor:
        """The final activations (B, T, C)."""
        body, config = self.transformer, self.config
        shape = np.shape(idx)
        start = 0 if cache is None else cache.length
        if len(shape) != 2:
            raise ValueError(f"GPT needs token ids of shape (B, T), got {shape}")
        if start + shape[1] > config.block_size:
            raise ValueError(
                f"{start + shape[1]} tokens are longer than the model's context of "
                f"{config.block_size}: pass the last {config.block_size}"
            )
        position = np.arange(start, start + shape[1])
        x = body.wte(idx) + body.wpe(position)
        x = F.dropout(x, config.dropout, self.training, self.rng)
        for block in body.h:
            if self.recompute and cache is None:
                x = tg.checkpoint(block, x)
            else:
                x = block(x, cache)
        if cache is not None:
            cache.length += shape[1]
        return body.ln_f(x)

    @tg.no_grad()
    def generate(
        self,
        idx: Any,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        rng: np.random.Generator | None = None,
    ) -> Any:
        """Continues idx (B, T) by `max_new_tokens` tokens -> (B, T + max_new_tokens).

        Temperature 0 takes the likeliest token. Otherwise draws with `rng` among the `top_k`
        likeliest, or the likeliest that together reach probability `top_p`. Keys and values of
        the tokens seen are kept; past the context the window slides, and all in it is computed
        anew, because every token's position has changed. Gives a Tensor for a Tensor.
        """
        check_sampling(max_new_tokens, temperature, top_k, top_p)
        rng = np.random.default_rng() if rng is None else rng
        shape = np.shape(idx)
        if len(shape) != 2 or shape[1] == 0:
            raise ValueError(f"generate needs at least one token, as (B, T), got {shape}")
        tokens = F.as_ids(idx, "generate", self.config.vocab_size)
        was_training, context = self.training, self.config.block_size
        self.eval()
        try:
            cache, new = KeyValueCache(), tokens[:, -context:]
            for _ in range(max_new_tokens):
                if cache.length + new.shape[1] > context:
                    cache, new = KeyValueCache(), tokens[:, -context:]
                last = self.hidden(new, cache).data[:, -1]
                logits = F.linear(last, self.transformer.wte.weight).data
                new = sample(logits, temperature, top_k, top_p, rng)[:, None]
                tokens = np.concatenate([tokens, new], axis=1)
        finally:
            self.train(was_training)
        return tg.Tensor(tokens) if isinstance(idx, tg.Tensor) else tokens

    def save(self, folder: str | Path) -> None:
        """Writes config.json and model.safetensors, which `transformers` opens as GPT-2."""
        gpt2_layout.save_model(self, Path(folder))

    @classmethod
    def load(cls, folder: str | Path, recompute: bool = False) -> "GPT":
        """Opens a GPT-2 folder of this project or of Hugging Face `transformers`."""
        config, tensors = gpt2_layout.read(Path(folder))
        model = cls(GPTConfig(**config), recompute=recompute)
        gpt2_layout.from_layout(tensors, model, Path(folder))
        return model
