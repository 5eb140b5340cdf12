"""A GPT on top of tinygrad_edu: `GPT`, `GPTConfig`, and the commands train, sample and bench."""

from .model import GPT, GPTConfig

__all__ = ["GPT", "GPTConfig"]
