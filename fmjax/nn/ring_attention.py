"""Ring attention: keys and values go round the devices that split the sequence (arXiv:2310.01889).

What it can do and how it is asked for; `fmjax.nn.ring_passes` goes round.

Shapes: B batch, H query heads in G groups of R, T tokens, P virtual keys, K head size.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.core import logical
from fmjax.core.errors import ConfigError
from fmjax.nn import attention_blocks, sequence
from fmjax.nn.masks import Mask, Sight
from fmjax.nn.ring_passes import Keys, Ring, attend_around


def applies(tokens: int) -> bool:
    """Whether the current mesh splits a sequence of T tokens."""
    return bool(sequence.split_axes(tokens))


def check(
    module: nn.Module, implementation: str, bias: jax.Array | None, dropout_rate: float
) -> None:
    """Refuses what does not go round a ring.

    Args:
      module: the layer, for its name.
      implementation: as asked for.
      bias: of the scores.
      dropout_rate: of the probabilities, 0 if it is not active.

    Raises:
      ConfigError: another kernel, a bias for each query, dropout; it names the mesh axis.
    """
    if implementation != "auto":
        what, remedy = f"attention={implementation!r}", "'auto', which is ring attention there"
    elif dropout_rate:
        what, remedy = f"dropout {dropout_rate} of the attention probabilities", "a rate of 0"
    elif bias is not None and bias.shape[2] > 1:
        what, remedy = f"a bias {bias.shape} for each query", "rotary or learned positions"
    else:
        return
    mesh, rules = logical.current()
    axes = logical.mesh_axes(logical.spec(("act_heads", "seq"), rules, mesh)[1])
    raise ConfigError(
        f"{'/'.join(module.path)}: {what} cannot be combined with a sequence that is split over "
        f"{' × '.join(f'{a}={mesh.shape[a]}' for a in axes)}; use {remedy}, or a mesh with 1 there"
    )


def ring_attention(
    q_BHTK: jax.Array,
    k_BGTK: jax.Array,
    v_BGTK: jax.Array,
    mask: Mask,
    prefix: tuple[jax.Array, jax.Array] | None = None,
    bias: jax.Array | None = None,
    softcap: float | None = None,
    side: int | None = None,
) -> jax.Array:
    """softmax(q kᵀ + bias + mask) v over a sequence that the mesh of `logical.use` splits.

    Softmax and sums are float32. A query that sees no key gives zeros. The result bears the
    checkpoint name "attention" and is itself what the backward pass needs, so a policy that saves
    that name keeps it once and does not run the ring again.

    Args:
      q_BHTK: queries, scaled already, in the order of `mask.slots`.
      k_BGTK: keys of the same tokens. Where G does not divide over the axes of the heads, they are
        repeated, so that each device gets those that its queries need.
      v_BGTK: values.
      mask: who sees whom.
      prefix: keys and values [G, P, K] that stand before all tokens.
      bias: f32 [B or 1, H, 1, ≥ P + T], added to the scores.
      softcap: bound c of the scores, s → c · tanh(s / c); None leaves them.
      side: the largest number of queries, and of keys, of a block.

    Returns:
      [B, T, H · K] in the dtype of v.

    Raises:
      ShardingError: tokens or rows that do not divide over the mesh.
    """
    mesh, rules = logical.current()
    B, H, T, K = q_BHTK.shape
    axes = ("batch", "act_heads", "seq")
    partition = logical.spec(axes, rules, mesh, (B, H, T), "queries")
    shares = [sequence.parts(mesh, logical.mesh_axes(entry)) for entry in partition]
    # Divides H, as both do: queries stay with their own keys.
    G = math.lcm(k_BGTK.shape[1], shares[1])
    P = 0 if prefix is None else prefix[0].shape[1]

    if bias is not None:
        bias = jnp.broadcast_to(bias[..., : P + T], (B, H, 1, P + T)).astype(jnp.float32)
        bias = bias.reshape(B, G, H // G, 1, P + T)
    sight = mask.sight(T, P + T)
    if sight.window is not None:
        sight = sight.replace(window=jnp.asarray(sight.window, jnp.int32))
    k, v = (jnp.repeat(x, G // x.shape[1], axis=1) for x in (k_BGTK, v_BGTK))
    keys = _keys(k, v, bias, sight, slice(P, None))
    virtual = None
    if prefix is not None:
        k, v = (jnp.repeat(x, G // x.shape[0], axis=0) for x in prefix)
        k, v = (jnp.broadcast_to(x, (B, *x.shape)) for x in (k, v))
        virtual = _keys(k, v, bias, sight, slice(P))
    size = _block_size(B // shares[0] * (H // shares[1]), T // shares[2], side)
    ring = Ring(mesh, *partition, softcap, (size, size))
    q = q_BHTK.reshape(B, G, H // G, T, K)
    of_queries = sight.replace(k_slot=None, k_segment=None, valid=None)
    return attend_around(ring, q, keys, virtual, of_queries)


def _keys(k: jax.Array, v: jax.Array, bias: jax.Array | None, sight: Sight, which: slice) -> Keys:
    """Keys that are given, with those of bias and sight that belong to them."""
    known = (bias, sight.k_slot, sight.k_segment, sight.valid)
    return Keys(k, v, *(x if x is None else x[..., which] for x in known))


def _block_size(rows: int, tokens: int, side: int | None) -> int:
    """Such that blocks cover each half of a device's tokens, a chunk of zigzag order, evenly."""
    half = -(-tokens // 2)
    side = side or attention_blocks.sizes(rows, half, half)[0]
    return -(-half // -(-half // side))
