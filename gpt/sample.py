"""Continues a text with a trained model: `python -m gpt.sample RUN_DIR --prompt "def "`."""

from pathlib import Path

import numpy as np

from . import config as cli
from . import tokenizer as tokenizers
from .errors import UserError
from .model import GPT
from .run_folder import RunFolder


def continue_text(
    model: GPT,
    tokenizer: tokenizers.Tokenizer,
    prompt: str,
    tokens: int,
    temperature: float,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
) -> str:
    """`prompt` followed by `tokens` tokens of the model's."""
    ids = np.asarray(tokenizer.encode(prompt), np.int64)
    if not len(ids):
        raise UserError("the prompt is empty: give at least one character")
    if ids.max() >= model.config.vocab_size:
        raise UserError(
            f"the prompt has token {ids.max()}, the model knows 0 .. {model.config.vocab_size - 1}"
        )
    try:
        out = model.generate(
            ids[None], tokens, temperature, top_k, top_p, np.random.default_rng(seed)
        )
    except ValueError as error:
        raise UserError(str(error)) from None
    known = out[0][out[0] < tokenizer.vocab_size]  # a model may have more rows than tokens
    return tokenizer.decode(known)


def closing_text(model: GPT, tokenizer: tokenizers.Tokenizer, prompt: str, seed: int) -> str:
    """What a run ends on; from the first token of the vocabulary if that lacks the prompt."""
    try:
        return continue_text(model, tokenizer, prompt, 250, 0.8, seed=seed)
    except UserError:
        return continue_text(model, tokenizer, tokenizer.decode([0]), 250, 0.8, seed=seed)


def main(argv: list[str]) -> int:
    parser = cli.OneLineParser(prog="python -m gpt.sample", description=__doc__)
    parser.add_argument("run", metavar="RUN_DIR", help="run folder, or any GPT-2 folder")
    parser.add_argument("--prompt", default="\n", help="text to continue")
    parser.add_argument("--tokens", type=int, default=300, help="how many tokens to add")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest")
    parser.add_argument("--top-k", type=int, help="draw among the k likeliest")
    parser.add_argument("--top-p", type=float, help="draw among those that reach probability p")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_all(argv)
    if given.seed < 0:
        raise UserError(f"--seed must be at least 0, got {given.seed}")
    folder = Path(given.run)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give the --out of a training run")
    if (folder / "train.json").exists():
        RunFolder(folder).read()  # verifies the checksums
    model = GPT.load(folder)
    tokenizer = tokenizers.load(folder / "tokenizer.json")
    print(
        continue_text(
            model, tokenizer, given.prompt, given.tokens, given.temperature, given.top_k,
            given.top_p, given.seed,
        )
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    cli.run(main, "gpt.sample")
