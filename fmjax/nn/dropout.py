"""Dropout, active exactly when the caller passes a "dropout" random key."""

import flax.linen as nn
import jax
import jax.numpy as jnp


def dropout(module: nn.Module, x: jax.Array, rate: float | jax.Array) -> jax.Array:
    """Zeroes entries with probability `rate` and rescales the rest by 1 / (1 − rate).

    `model.apply(variables, …)` is evaluation; `model.apply(…, rngs={"dropout": key})` is training.
    There is no second flag that could disagree.

    Args:
      module: whose "dropout" key is used.
      x: any shape.
      rate: in [0, 1); a Python 0 costs nothing, a traced array is allowed.
    """
    if not module.has_rng("dropout") or (isinstance(rate, float | int) and rate == 0):
        return x
    keep = jax.random.bernoulli(module.make_rng("dropout"), 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0).astype(x.dtype)
