"""Objectives: pure functions from a model's outputs to sums that the step normalises."""

from fmjax.objectives.causal_lm import CausalLM, next_token_targets

__all__ = ["CausalLM", "next_token_targets"]
