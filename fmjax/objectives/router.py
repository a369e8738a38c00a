"""Losses that keep a router's experts in even use, and how even that use is.

Shapes: B batch, T tokens, E experts, K experts a token.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp


def load_balancing_loss(
    router_logits: Sequence[jax.Array], experts_per_token: int, mask: jax.Array | None = None
) -> jax.Array:
    """E · Σ_e (visits to e a token) · (mean probability of e), over all layers and tokens.

    It is K where visits and probabilities are even, and higher otherwise; equations 4 to 6 of
    arXiv:2101.03961, as transformers' Mixtral takes them: K visits a token, all layers pooled.

    Args:
      router_logits: one array [B, T, E] a layer.
      experts_per_token: K.
      mask: [B, T], 1 for tokens that count; default all.

    Returns:
      f32 [].
    """
    logits = jnp.stack(router_logits).astype(jnp.float32)
    E = logits.shape[-1]
    probs = jax.nn.softmax(logits, -1)
    _, chosen = jax.lax.top_k(probs, experts_per_token)
    visits = jnp.sum(jax.nn.one_hot(chosen, E), -2)
    weights = jnp.ones(logits.shape[1:-1]) if mask is None else mask.astype(jnp.float32)
    total = jnp.sum(weights) * len(router_logits)
    visits_E, probs_E = (jnp.einsum("lbte,bt->e", a, weights) / total for a in (visits, probs))
    return E * jnp.sum(visits_E * probs_E)


def router_z_loss(router_logits: Sequence[jax.Array], mask: jax.Array | None = None) -> jax.Array:
    """Mean of logsumexp², which keeps the logits small (arXiv:2202.08906): f32 []."""
    squares = jnp.square(jax.nn.logsumexp(jnp.stack(router_logits).astype(jnp.float32), -1))
    weights = jnp.ones(squares.shape[1:]) if mask is None else mask.astype(jnp.float32)
    return jnp.sum(squares * weights) / (jnp.sum(weights) * len(router_logits))


def expert_shares(
    router_logits: Sequence[jax.Array], experts_per_token: int, mask: jax.Array | None = None
) -> jax.Array:
    """The share of each layer's visits that each expert gets: f32 [L, E], rows sum to 1."""
    logits = jnp.stack(router_logits)
    _, chosen = jax.lax.top_k(logits, experts_per_token)
    visits = jnp.sum(jax.nn.one_hot(chosen, logits.shape[-1]), -2)
    weights = jnp.ones(logits.shape[1:-1]) if mask is None else mask.astype(jnp.float32)
    counts = jnp.einsum("lbte,bt->le", visits, weights)
    return counts / jnp.sum(counts, -1, keepdims=True)


def router_statistics(
    router_logits: Sequence[jax.Array], experts_per_token: int, mask: jax.Array | None = None
) -> dict[str, jax.Array]:
    """How even the experts' use is, and how decided the router: means over the layers.

    Args:
      router_logits: one array [B, T, E] a layer.
      experts_per_token: K.
      mask: [B, T], 1 for tokens that count; default all.

    Returns:
      f32 [] each:
        expert_load_max, expert_load_min: visits to the most and the least visited expert, as
          multiples of an even share: 1 is even, E / K and 0 the extremes.
        router_entropy: of a token's distribution over the experts, over ln E: 1 knows no
          preference, 0 no doubt.
    """
    shares_LE = expert_shares(router_logits, experts_per_token, mask)
    logits = jnp.stack(router_logits).astype(jnp.float32)
    E = logits.shape[-1]
    log_probs = jax.nn.log_softmax(logits, -1)
    entropy = -jnp.sum(jnp.exp(log_probs) * log_probs, -1) / math.log(E)
    weights = jnp.ones(entropy.shape[1:]) if mask is None else mask.astype(jnp.float32)
    return {
        "expert_load_max": E * jnp.mean(jnp.max(shares_LE, -1)),
        "expert_load_min": E * jnp.mean(jnp.min(shares_LE, -1)),
        "router_entropy": jnp.sum(entropy * weights) / (jnp.sum(weights) * len(router_logits)),
    }
