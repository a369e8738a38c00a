"""Objectives: pure functions from a model's outputs to sums that the step normalises."""

from fmjax.objectives.causal_lm import CausalLM, next_token_targets
from fmjax.objectives.masked_lm import MaskedLM

__all__ = ["CausalLM", "MaskedLM", "next_token_targets"]
