"""Attention heads that do not fall evenly on the devices of a tensor axis.

Query heads that do not divide are computed by every device (`logical.REPLICABLE`). Key–value heads
that do not divide, while the query heads do, are repeated until they do, so that each device holds
those of its own query heads and nothing of the scores moves (arXiv:2211.05102, section 3.3, shares
them so between chips). The repetition is inside the layer: weights, caches and files have the heads
that the model has.
"""

import math

import jax
import jax.numpy as jnp

from fmjax.core import logical


def repeat_kv_heads(
    k_BGSK: jax.Array, v_BGSK: jax.Array, heads: int
) -> tuple[jax.Array, jax.Array]:
    """Keys and values with as many heads as divide over the devices that split `heads` heads.

    Args:
      k_BGSK, v_BGSK: of G heads; `heads` is a multiple of G.
      heads: H, of the queries.

    Returns:
      [B, G · n, S, K], with G · n a divisor of H; as they were (n = 1) where G is 1 or divides, or
      where no n would do.
    """
    G = k_BGSK.shape[1]
    parts = logical.shards("act_heads")
    wanted = math.lcm(G, parts)
    if G == 1 or wanted == G or heads % wanted:
        return k_BGSK, v_BGSK

    def repeat(x: jax.Array) -> jax.Array:
        x = jnp.repeat(x, wanted // G, axis=1)
        return logical.constrain(x, ("batch", "act_heads", "seq", None))

    return repeat(k_BGSK), repeat(v_BGSK)
