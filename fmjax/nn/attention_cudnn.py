"""cuDNN's fused attention on NVIDIA GPUs, through `jax.nn.dot_product_attention`.

Shapes: B batch, H query heads, G key–value heads, T queries, S keys, K head size.
"""

import jax
import jax.numpy as jnp

from fmjax.nn.masks import Mask


def cudnn(q_BHTK: jax.Array, k_BGSK: jax.Array, v_BGSK: jax.Array, mask: Mask) -> jax.Array:
    """Attention as `fmjax.nn.attention` defines it, on one device; q is scaled already.

    Causal masks and windows of a fixed size are the kernel's own. All other masks are spelt out,
    as a bias [B, 1, T, S].

    Returns:
      [B, T, H · K].
    """
    B, H, T, K = q_BHTK.shape
    S = k_BGSK.shape[2]
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q_BHTK, k_BGSK, v_BGSK))
    if plain(mask, T, S):
        # A window over all keys is none: slots and its size would be added up in 32 bits.
        unlimited = mask.window is None or mask.window >= S
        window, dense = None if unlimited else (mask.window - 1, 0), None
    else:
        window, dense = None, mask.dense(T, S)
        dense = None if dense is None else jnp.broadcast_to(dense, (B, 1, T, S))
    out = jax.nn.dot_product_attention(
        q,
        k,
        v,
        mask=dense,
        scale=1.0,
        is_causal=dense is None and mask.causal,
        local_window_size=window,
        implementation="cudnn",
    )
    return out.reshape(B, T, H * K)


def plain(mask: Mask, queries: int, keys: int) -> bool:
    """Whether the kernel computes the mask by itself: all, causal, or causal in a fixed window."""
    rest = (mask.valid, mask.segments, mask.prefix)
    if any(x is not None for x in rest):
        return False
    if not mask.causal:
        return mask.window is None
    fixed = mask.window is None or isinstance(mask.window, int)
    return fixed and queries == keys and mask.virtual == 0 and not _moved(mask.offset)


def _moved(offset: int | jax.Array) -> bool:
    return not isinstance(offset, int) or offset != 0
