"""Objectives: pure functions from a model's outputs to sums that the step normalises."""

from fmjax.objectives.causal_lm import CausalLM, next_token_targets
from fmjax.objectives.masked_lm import MaskedLM
from fmjax.objectives.router import expert_shares, load_balancing_loss, router_z_loss

__all__ = [
    "CausalLM",
    "MaskedLM",
    "expert_shares",
    "load_balancing_loss",
    "next_token_targets",
    "router_z_loss",
]
