"""The reference attention, which all kernels agree with: scores are held whole.

Shapes: B batch, H query heads, G key–value heads (H a multiple of G), T queries, S keys, K head
size.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from fmjax.nn.masks import Mask


def xla(
    q_BHTK: jax.Array,
    k_BGSK: jax.Array,
    v_BGSK: jax.Array,
    mask: Mask,
    bias: jax.Array | None = None,
    softcap: float | None = None,
    drop: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """Attention as `fmjax.nn.attention` defines it; softmax is taken in float32.

    Args:
      q_BHTK: queries, scaled already.
      k_BGSK, v_BGSK, mask, bias, softcap: as there.
      drop: applied to the probabilities.

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
    if drop is None:
        out = _average(scores, v_BGSK)
    else:
        weights = drop(jax.nn.softmax(scores, axis=-1))
        out = checkpoint_name(_mix(weights, v_BGSK), "attention")
    return jnp.swapaxes(out.reshape(B, H, T, K), 1, 2).reshape(B, T, H * K)


def _mix(weights: jax.Array, v_BGSK: jax.Array, dtype: Any = None) -> jax.Array:
    """[B, G, …, S] · [B, G, S, K] → [B, G, …, K] in `dtype`, by default that of v."""
    weights = weights.astype(v_BGSK.dtype)
    return jnp.einsum("bg...s,bgsk->bg...k", weights, v_BGSK, preferred_element_type=dtype)


@jax.custom_jvp
def _average(scores: jax.Array, v_BGSK: jax.Array) -> jax.Array:
    """softmax(scores) v; divides by a row's sum the result's K numbers, not the S weights.

    Softmax would be a pass of its own between the two products, which XLA's CPU otherwise takes in
    one.
    """
    weights = jnp.exp(scores - scores.max(-1, keepdims=True))
    out = _mix(weights, v_BGSK, jnp.float32) / weights.sum(-1, keepdims=True)
    return out.astype(v_BGSK.dtype)


@_average.defjvp
def _average_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    """With p = softmax(s), o = p v moves by (p ∘ ds) v − o Σ (p ∘ ds) + p dv.

    Transposed, o · do stands in for the sum over S that softmax's own derivative takes
    (FlashAttention, arXiv:2205.14135, appendix B.2). So it is o that the backward pass needs.
    """
    (scores, v_BGSK), (scores_dot, v_dot) = primals, tangents
    out = checkpoint_name(_average(scores, v_BGSK), "attention")
    weights = jax.nn.softmax(scores, axis=-1)
    moved = weights * scores_dot
    out_dot = _mix(moved, v_BGSK) - out * moved.sum(-1, keepdims=True) + _mix(weights, v_dot)
    return out, out_dot.astype(out.dtype)
