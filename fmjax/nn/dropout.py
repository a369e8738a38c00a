"""Dropout and stochastic depth, active exactly when the caller passes a "dropout" random key."""

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
    return _kept(module, x, rate, x.shape)


def drop_path(module: nn.Module, x: jax.Array, rate: float | jax.Array | None) -> jax.Array:
    """Zeroes whole rows of a residual branch: stochastic depth (arXiv:1603.09382).

    Args:
      module: whose "dropout" key is used.
      x: [B, …], what would be added to the residual stream; each row is kept or dropped alone.
      rate: in [0, 1), as of `dropout`; None is 0.
    """
    if rate is None or not module.has_rng("dropout"):
        return x
    return _kept(module, x, rate, (x.shape[0], *[1] * (x.ndim - 1)))


def _kept(
    module: nn.Module, x: jax.Array, rate: float | jax.Array, shape: tuple[int, ...]
) -> jax.Array:
    """x where a draw of this shape keeps it, rescaled, and 0 elsewhere."""
    keep = jax.random.bernoulli(module.make_rng("dropout"), 1.0 - rate, shape)
    return jnp.where(keep, x / (1.0 - rate), 0).astype(x.dtype)


def drop_path_rates(rate: float, layers: int, grow: bool = True) -> jax.Array | None:
    """Rates of the layers, f32 [L], for `apply_layers(per_layer=…)`; None where all are 0.

    Args:
      rate: of the last layer.
      layers: L.
      grow: linearly with the layer's number, from 0 in the first; else the same everywhere.
    """
    if rate == 0:
        return None
    return jnp.linspace(0.0, rate, layers) if grow else jnp.full(layers, rate, jnp.float32)
