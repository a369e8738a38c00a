"""Attention block by block, with a running softmax, so that no [T, S] scores are ever held.

The forward pass keeps the logarithm of each query's softmax sum (arXiv:2112.05682, 2205.14135);
the backward pass computes the probabilities of a block again from it. Blocks of which the mask
lets no pair meet (above the diagonal, out of the window, of other segments, padding) are skipped.

Shapes: B batch, H query heads in G groups of R, T queries, S keys, K head size; t and s are the
queries and keys of a block. Sums and softmax are taken in float32.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from fmjax.nn.attention_blocks import Blocks, einsum
from fmjax.nn.masks import Mask, Sight

# Where the running maximum of a query starts, and the logsumexp of one that sees nothing: far below
# every score, and far above `NEVER`.
EMPTY = -1e30


def forward(
    q_BGRTK: jax.Array,
    k_BGSK: jax.Array,
    v_BGSK: jax.Array,
    sight: Sight,
    bias: jax.Array | None = None,
    softcap: float | None = None,
    blocks: tuple[int, int] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Attention to these keys, and what it takes to join it with attention to others.

    Args:
      q_BGRTK: queries, scaled already.
      k_BGSK, v_BGSK: keys and values.
      sight: who sees whom.
      bias: f32 [B or 1, G, R, T or 1, S], added to the scores.
      softcap: bound of the scores.
      blocks: (t, s); default `fmjax.nn.attention_blocks.sizes`.

    Returns:
      (out f32 [B, G, R, T, K], logsumexp f32 [B, G, R, T]); a query that sees nothing has 0 and
      `EMPTY`.
    """
    p = Blocks(q_BGRTK, k_BGSK, v_BGSK, sight, bias, softcap, blocks)
    order, count = p.order()
    B, G, R, T, K = p.q.shape

    def row(i: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        q = p.queries(p.q, i, 3)

        def step(n: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            top, total, out = carry
            j = order[i, n]
            scores, _ = p.scores(q, i, j)
            new = jnp.maximum(top, scores.max(-1))
            probs, shrink = jnp.exp(scores - new[..., None]), jnp.exp(top - new)
            v = p.keys(p.v, j, 2)
            more = einsum("bgrts,bgsk->bgrtk", probs.astype(v.dtype), v)
            return new, total * shrink + probs.sum(-1), out * shrink[..., None] + more

        start = (
            jnp.full(q.shape[:-1], EMPTY, jnp.float32),
            jnp.zeros(q.shape[:-1], jnp.float32),
            jnp.zeros(q.shape, jnp.float32),
        )
        top, total, out = jax.lax.fori_loop(0, count[i], step, start)
        total = jnp.where(total == 0, 1.0, total)
        pieces = (out / total[..., None], top + jnp.log(total))
        return tuple(_put(x, piece, i * p.t, 3) for x, piece in zip(carry, pieces, strict=True))

    empty = (jnp.zeros((B, G, R, T, K), jnp.float32), jnp.zeros((B, G, R, T), jnp.float32))
    out, lse = jax.lax.fori_loop(0, T // p.t, row, empty)
    return out[:, :, :, : p.T], lse[..., : p.T]


def backward(
    q_BGRTK: jax.Array,
    k_BGSK: jax.Array,
    v_BGSK: jax.Array,
    sight: Sight,
    bias: jax.Array | None,
    softcap: float | None,
    lse_BGRT: jax.Array,
    delta_BGRT: jax.Array,
    dout_BGRTK: jax.Array,
    blocks: tuple[int, int] | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
    """The gradients that come through these keys; those of several sets of keys add up.

    Args:
      q_BGRTK … softcap, blocks: as in `forward`.
      lse_BGRT: logsumexp over all keys that the queries attend to, these and others.
      delta_BGRT: f32, Σ dout · out over the head size, of the whole output.
      dout_BGRTK: the output's cotangent.

    Returns:
      f32 cotangents of q, k, v and bias.
    """
    p = Blocks(q_BGRTK, k_BGSK, v_BGSK, sight, bias, softcap, blocks)
    order, count = p.order(by_key=True)
    delta, dout = p.pad_queries(delta_BGRT, 3), p.pad_queries(dout_BGRTK, 3)
    # Queries that only fill a block up have scores too, of any size where there is a bias.
    lse = p.pad_queries(lse_BGRT, 3, -EMPTY)

    def column(j: jax.Array, carry: tuple) -> tuple:
        dq, dk, dv, dbias = carry
        k, v = p.keys(p.k, j, 2), p.keys(p.v, j, 2)

        def step(n: jax.Array, carry: tuple) -> tuple:
            dq, dk, dv, dbias = carry
            i = order[j, n]
            q, do = p.queries(p.q, i, 3), p.queries(dout, i, 3)
            scores, slope = p.scores(q, i, j)
            probs = jnp.exp(scores - p.queries(lse, i, 3)[..., None])
            dv += einsum("bgrts,bgrtk->bgsk", probs.astype(do.dtype), do)
            dprobs = einsum("bgrtk,bgsk->bgrts", do, v)
            dscores = probs * (dprobs - p.queries(delta, i, 3)[..., None])
            if dbias is not None:
                dbias = p.add_bias(dbias, dscores, i, j)
            if slope is not None:
                dscores = dscores * slope
            dscores = dscores.astype(q.dtype)
            dk += einsum("bgrts,bgrtk->bgsk", dscores, q)
            more = p.queries(dq, i, 3) + einsum("bgrts,bgsk->bgrtk", dscores, k)
            return _put(dq, more, i * p.t, 3), dk, dv, dbias

        start = (dq, jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32), dbias)
        dq, dk_j, dv_j, dbias = jax.lax.fori_loop(0, count[j], step, start)
        return dq, _put(dk, dk_j, j * p.s, 2), _put(dv, dv_j, j * p.s, 2), dbias

    f32 = [jnp.zeros(x.shape, jnp.float32) for x in (p.q, p.k, p.v)]
    dbias = None if p.bias is None else jnp.zeros(p.bias.shape, jnp.float32)
    columns = p.k.shape[2] // p.s
    dq, dk, dv, dbias = jax.lax.fori_loop(0, columns, column, (*f32, dbias))
    if dbias is not None:
        dbias = dbias[..., : 1 if bias.shape[3] == 1 else p.T, : p.S]
    return dq[:, :, :, : p.T], dk[:, :, : p.S], dv[:, :, : p.S], dbias


def join(
    one: tuple[jax.Array, jax.Array], other: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """(out, logsumexp) of attention to the keys of both, each as `forward` returns it."""
    lse = jnp.logaddexp(one[1], other[1])
    out = sum(out * jnp.exp(part - lse)[..., None] for out, part in (one, other))
    return out, lse


def blockwise(
    q_BHTK: jax.Array,
    k_BGSK: jax.Array,
    v_BGSK: jax.Array,
    mask: Mask,
    bias: jax.Array | None = None,
    softcap: float | None = None,
    blocks: tuple[int, int] | None = None,
) -> jax.Array:
    """Attention as `fmjax.nn.attention` defines it, on one device; q is scaled already.

    Output and logsumexp bear the name "attention": a remat policy that saves it does not run the
    forward pass again. A query that sees nothing gets 0.

    Returns:
      [B, T, H · K].
    """
    B, H, T, K = q_BHTK.shape
    G, S = k_BGSK.shape[1], k_BGSK.shape[2]
    if bias is not None:
        bias = bias[..., :S].astype(jnp.float32)
        bias = bias.reshape(bias.shape[0], G, H // G, -1, S)
    q = q_BHTK.reshape(B, G, H // G, T, K)
    return _attend(softcap, blocks, q, k_BGSK, v_BGSK, bias, mask.sight(T, S))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(softcap, blocks, q, k, v, bias, sight):  # noqa: ANN001, ANN202
    return _attend_forward(softcap, blocks, q, k, v, bias, sight)[0]


def _attend_forward(softcap, blocks, q, k, v, bias, sight):  # noqa: ANN001, ANN202
    B, G, R, T, K = q.shape
    out, lse = forward(q, k, v, sight, bias, softcap, blocks)
    # Kept in the layout of the product that follows, which then needs no copy of its own.
    out = jnp.moveaxis(out.astype(v.dtype), 3, 1).reshape(B, T, G * R * K)
    out, lse = checkpoint_name(out, "attention"), checkpoint_name(lse, "attention")
    return out, (q, k, v, bias, sight, out, lse)


def _attend_backward(softcap, blocks, saved, dout):  # noqa: ANN001, ANN202
    q, k, v, bias, sight, out, lse = saved
    B, G, R, T, K = q.shape
    out, dout = (jnp.moveaxis(x.reshape(B, T, G, R, K), 1, 3) for x in (out, dout))
    delta = jnp.sum(out.astype(jnp.float32) * dout.astype(jnp.float32), -1)
    dq, dk, dv, dbias = backward(q, k, v, sight, bias, softcap, lse, delta, dout, blocks)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), dbias, None


_attend.defvjp(_attend_forward, _attend_backward)


def _put(x: jax.Array, piece: jax.Array, start: jax.Array, axis: int) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(x, piece, start, axis)
