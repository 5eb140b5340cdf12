"""A GPT on tinygrad_edu: `GPT`, `GPTConfig`, and the commands train, sample, plan and bench."""

from .model import GPT, GPTConfig

__all__ = ["GPT", "GPTConfig"]
