"""The reference attention, which all kernels agree with: scores are held whole.

Shapes: B batch, H query heads, G key–value heads (H a multiple of G), T queries, S keys, K head
size.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fmjax.nn.masks import Mask


def xla(
    q_BHTK: jax.Array,
    k_BGSK: jax.Array,
    v_BGSK: jax.Array,
    mask: Mask,
    bias: jax.Array | None = None,
    softcap: float | None = None,
    drop: Callable[[jax.Array], jax.Array] = lambda probs: probs,
) -> jax.Array:
    """Attention as `fmjax.nn.attention` defines it; softmax is taken in float32.

    Args:
      q_BHTK: queries, scaled already.
      k_BGSK, v_BGSK, mask, bias, softcap: as there.
      drop: applied to the probabilities, or to what is a factor for each row away from them.

    Returns:
      [B, T, H · K].
    """
    B, H, T, K = q_BHTK.shape
    G, S = k_BGSK.shape[1], k_BGSK.shape[2]
    # The R = H / G heads of a group meet the same keys. For a single query they stand in the place
    # of time: with a T of 1 beside them XLA's CPU would transpose the keys first.
    rows = (H // G,) if T == 1 else (H // G, T)
    q = q_BHTK.reshape(B, G, *rows, K)
    scores = jnp.einsum("bg...k,bgsk->bg...s", q, k_BGSK, preferred_element_type=jnp.float32)
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    if bias is not None:
        bias = bias[..., :S].reshape(bias.shape[0], G, H // G, -1, S)
        scores = scores + (bias[:, :, :, 0] if T == 1 else bias)
    allowed = mask.dense(T, S)
    if allowed is not None:
        allowed = allowed if T == 1 else allowed[:, :, None]
        # The most negative finite number: a row that sees nothing gives a mean, not NaN.
        scores = jnp.where(allowed, scores, jnp.finfo(jnp.float32).min)
    # What is divided by a row's sum is its result, K numbers, and not its S weights: softmax would
    # stand between the two products as a pass of its own.
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    total = weights.sum(-1, keepdims=True)
    weights = drop(weights).astype(v_BGSK.dtype)
    out = jnp.einsum("bg...s,bgsk->bg...k", weights, v_BGSK, preferred_element_type=jnp.float32)
    out = (out / total).astype(v_BGSK.dtype).reshape(B, H, T, K)
    return jnp.swapaxes(out, 1, 2).reshape(B, T, H * K)
