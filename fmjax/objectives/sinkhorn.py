"""Sinkhorn–Knopp: targets that use all prototypes alike (arXiv:2006.09882)."""

import jax
import jax.numpy as jnp


def sinkhorn(
    logits: jax.Array,
    temperature: jax.Array | float,
    weights: jax.Array | None = None,
    iterations: int = 3,
) -> jax.Array:
    """Scales exp(logits / temperature) so that rows are distributions and columns sum alike.

    `iterations` times the columns' sums are brought to rows / K, then the rows' to 1; sums are
    over the global batch, on any mesh. As in SwAV and DINOv2.

    Args:
      logits: f32 [..., K].
      temperature: divides them.
      weights: [...], rows of weight 0 take no part, and their result is 0; the others count alike.
      iterations: see above.

    Returns:
      f32 [..., K], without gradient.
    """
    shape, K = logits.shape, logits.shape[-1]
    x = jax.lax.stop_gradient(logits).reshape(-1, K).astype(jnp.float32) / temperature
    real = jnp.ones(x.shape[:1], bool) if weights is None else weights.reshape(-1) != 0
    real = real[:, None]
    # What all rows are multiplied by cancels out.
    top = jnp.max(jnp.where(real, x, -jnp.inf))
    q = jnp.where(real, jnp.exp(x - jnp.where(jnp.isfinite(top), top, 0)), 0)
    for _ in range(iterations):
        columns = jnp.sum(q, 0, keepdims=True)
        q = q / jnp.where(columns > 0, columns, 1)
        rows = jnp.sum(q, 1, keepdims=True)
        q = q / jnp.where(rows > 0, rows, 1)
    return q.reshape(shape)
