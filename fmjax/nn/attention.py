"""Scaled dot-product attention with grouped keys, and the key–value cache.

Shapes: B batch, H query heads, G key–value heads (H a multiple of G), T queries, S keys, K head
size. Heads come before time, the layout of attention kernels and of the cache. An adapter may put
P virtual keys before the first slot (`fmjax.nn.prefix_port`): S counts them too.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from fmjax.core.logical import constrain, platform, shards
from fmjax.nn import prefix_port, ring_attention
from fmjax.nn.attention_blockwise import blockwise
from fmjax.nn.attention_choice import Case, choose
from fmjax.nn.attention_cudnn import cudnn
from fmjax.nn.attention_mesh import layout, on_mesh
from fmjax.nn.attention_xla import xla
from fmjax.nn.dropout import dropout
from fmjax.nn.layouts import whole
from fmjax.nn.masks import Mask
from fmjax.nn.uneven_heads import repeat_kv_heads


def attention(
    module: nn.Module,
    q_BTHK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGK: jax.Array,
    mask: Mask,
    *,
    bias: jax.Array | None = None,
    scale: float | jax.Array | None = None,
    softcap: float | None = None,
    dropout_rate: float = 0.0,
    cache_index: int | jax.Array | None = None,
    implementation: str = "auto",
) -> jax.Array:
    """softmax(q kᵀ · scale + bias + mask) v, through the cache if there is one.

    On a mesh that splits the sequence, and without a cache, it is `fmjax.nn.ring_attention`.

    Args:
      module: the calling layer, which owns the cache and the dropout key.
      q_BTHK: queries, rotated already where the family rotates.
      k_BSGK: keys of the same T slots (S = T), one head for every H / G query heads.
      v_BSGK: values.
      mask: which query sees which key, over all slots.
      bias: f32 [B or 1, H, T or 1, ≥ S], added to the scaled scores (ALiBi); virtual keys first.
      scale: of the scores; default 1 / √K.
      softcap: bound c of the scores, s → c · tanh(s / c) before masking; None leaves them.
      dropout_rate: of the probabilities, active when a "dropout" key is given.
      cache_index: slot of the first new key (see `update_cache`); None works without a cache.
      implementation: "xla" (the reference), "blockwise", "splash", "cudnn", or "auto", which takes
        one of them by `fmjax.nn.attention_choice.choose`.

    Returns:
      [B, T, H · K].

    Raises:
      ConfigError: an implementation that is unknown or cannot do this, or a prefix that does not
        fit.
    """
    B, T, H, K = q_BTHK.shape
    prefix_port.note(module, prefix_port.Site(H, k_BSGK.shape[2], K))
    # Key–value heads that do not divide are whole on every device until they are repeated below.
    kv_heads = "act_kv_heads" if k_BSGK.shape[2] % shards("act_kv_heads") == 0 else None
    hold = whole if cache_index is None else lambda x: x
    q, k, v = (
        checkpoint_name(
            hold(constrain(jnp.swapaxes(x, 1, 2), ("batch", heads, "seq", None))), "qkv"
        )
        for x, heads in (
            (q_BTHK, "act_heads"),
            (k_BSGK, kv_heads),
            (v_BSGK, kv_heads),
        )
    )
    prefix = prefix_port.read(module, mask.virtual, k, H)
    if prefix is not None and prefix[0].shape[0] != k.shape[1]:
        k, v = (jnp.repeat(x, H // x.shape[1], axis=1) for x in (k, v))
    q = q * jnp.asarray(K**-0.5 if scale is None else scale, q.dtype)
    active = dropout_rate != 0 and module.has_rng("dropout")
    if cache_index is None and ring_attention.applies(T):
        ring_attention.check(module, implementation, bias, dropout_rate if active else 0.0)
        out = ring_attention.ring_attention(q, k, v, mask, prefix, bias, softcap)
        return constrain(out, ("batch", "seq", "act_heads"))
    if cache_index is not None:
        k, v = update_cache(module, k, v, cache_index, mask, prefix)
    elif prefix is not None:
        k, v = (prefix_port.join(p, x) for p, x in zip(prefix, (k, v), strict=True))
    if cache_index is None:
        k, v = repeat_kv_heads(k, v, H)
    _, _, batch_parts, head_parts = layout(B, H)
    case = Case(
        batch=B // batch_parts,
        heads=H // head_parts,
        queries=T,
        keys=k.shape[2],
        head_dim=K,
        dtype=q.dtype,
        mask=mask,
        bias=bias is not None,
        softcap=softcap is not None,
        dropout=active,
        cached=cache_index is not None and not _is_prefill(cache_index),
        platform=platform(),
    )
    kernel = choose(implementation, case)
    if kernel == "xla":
        drop = partial(dropout, module, rate=dropout_rate) if active else None
        out = xla(q, k, v, mask, bias, softcap, drop)
    elif kernel == "blockwise":
        out = on_mesh(partial(blockwise, softcap=softcap), q, k, v, mask, bias)
    elif kernel == "cudnn":
        out = on_mesh(lambda q, k, v, mask, bias: cudnn(q, k, v, mask), q, k, v, mask)
    else:
        # Pallas is imported by those who use it.
        from fmjax.nn.attention_splash import splash

        run = partial(splash, softcap=softcap, interpret=case.platform == "cpu")
        out = on_mesh(lambda q, k, v, mask, bias: run(q, k, v, mask), q, k, v, mask)
    out = constrain(out, ("batch", "seq", "act_heads"))
    # The others name what their backward pass needs, of which this is a copy.
    return checkpoint_name(out, "attention") if kernel == "cudnn" else out


def _is_prefill(cache_index: int | jax.Array) -> bool:
    return isinstance(cache_index, int) and cache_index == 0


def update_cache(
    module: nn.Module,
    k_BGTK: jax.Array,
    v_BGTK: jax.Array,
    index: int | jax.Array,
    mask: Mask,
    prefix: tuple[jax.Array, jax.Array] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Writes T new keys and values at slot `index` of the "cache" collection [B, G, S, K].

    A cache from `squeeze_cache` keeps its shape.

    The number of slots comes from `mask.valid`. A prefix, two [G, P, K], is put before them when
    the cache is made, so that it takes no work later. A first call with the Python integer 0 is a
    prefill: prefix and new keys are all that is visible, so attention costs T × (P + T) instead of
    T × S.

    Returns:
      Keys and values to attend to: all S = P + slots, or those of a prefill.
    """
    B, G, T, K = k_BGTK.shape
    P, S = mask.virtual, mask.virtual + mask.valid.shape[1]
    prefill = _is_prefill(index)
    visible = []
    for i, (name, new) in enumerate((("key", k_BGTK), ("value", v_BGTK))):

        def empty(i: int = i, new: jax.Array = new) -> jax.Array:
            zeros = jnp.zeros((B, G, S - P, K), new.dtype)
            return zeros if prefix is None else prefix_port.join(prefix[i], zeros)

        slot = module.variable("cache", name, empty)
        *rows, _, _ = slot.value.shape
        start = (0,) * len(rows) + (P + index, 0)
        slot.value = jax.lax.dynamic_update_slice(slot.value, new.reshape(*rows, T, K), start)
        if prefill:
            visible.append(new if prefix is None else prefix_port.join(prefix[i], new))
        else:
            visible.append(slot.value.reshape(B, G, S, K))
    return visible[0], visible[1]


def squeeze_cache(cache: Any) -> Any:
    """The same cache without batch and heads axes of size 1, as a loop must carry it.

    XLA drops such axes from the matmuls. With the reshape between the update and the matmul it
    no longer updates in place: three copies of the cache at every step (CPU, jax 0.10).
    """

    def squeeze(x: jax.Array) -> jax.Array:
        *rows, S, K = x.shape
        return x.reshape(*(n for n in rows if n > 1), S, K)

    return jax.tree.map(squeeze, cache)
