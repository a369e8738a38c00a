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

from fmjax.nn.masks import Mask, Sight

# A pair that does not meet scores the most negative finite number, and the running maximum starts
# far above that: such a pair adds exp(−huge) = 0, in rows that see nothing too.
_NEVER = jnp.finfo(jnp.float32).min
EMPTY = -1e30

# Bytes of scores that a block holds at most, and the largest side of a block.
_BLOCK_BYTES, _LARGEST, _SMALLEST = 32 << 20, 512, 128


def block_sizes(rows: int, queries: int, keys: int) -> tuple[int, int]:
    """(t, s) for `rows` = B · H scores of every pair: a short side is one block."""
    side = _LARGEST
    while side > _SMALLEST and rows * side * side * 4 > _BLOCK_BYTES:
        side //= 2
    return min(side, queries), min(side, keys)


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
      blocks: (t, s); default `block_sizes`.

    Returns:
      (out f32 [B, G, R, T, K], logsumexp f32 [B, G, R, T]); a query that sees nothing has 0 and
      `EMPTY`.
    """
    p = _Problem(q_BGRTK, k_BGSK, v_BGSK, sight, bias, softcap, blocks)
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
            more = _einsum("bgrts,bgsk->bgrtk", probs.astype(v.dtype), v)
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
    p = _Problem(q_BGRTK, k_BGSK, v_BGSK, sight, bias, softcap, blocks)
    order, count = p.order(by_key=True)
    lse, delta, dout = (p.pad_queries(x, 3) for x in (lse_BGRT, delta_BGRT, dout_BGRTK))

    def column(j: jax.Array, carry: tuple) -> tuple:
        dq, dk, dv, dbias = carry
        k, v = p.keys(p.k, j, 2), p.keys(p.v, j, 2)

        def step(n: jax.Array, carry: tuple) -> tuple:
            dq, dk, dv, dbias = carry
            i = order[j, n]
            q, do = p.queries(p.q, i, 3), p.queries(dout, i, 3)
            scores, slope = p.scores(q, i, j)
            probs = jnp.exp(scores - p.queries(lse, i, 3)[..., None])
            dv += _einsum("bgrts,bgrtk->bgsk", probs.astype(do.dtype), do)
            dprobs = _einsum("bgrtk,bgsk->bgrts", do, v)
            dscores = probs * (dprobs - p.queries(delta, i, 3)[..., None])
            if dbias is not None:
                dbias = p.add_bias(dbias, dscores, i, j)
            if slope is not None:
                dscores = dscores * slope
            dscores = dscores.astype(q.dtype)
            dk += _einsum("bgrts,bgrtk->bgsk", dscores, q)
            more = p.queries(dq, i, 3) + _einsum("bgrts,bgsk->bgrtk", dscores, k)
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


class _Problem:
    """The inputs, padded to whole blocks, and how a block of them is taken out."""

    def __init__(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        sight: Sight,
        bias: jax.Array | None,
        softcap: float | None,
        blocks: tuple[int, int] | None,
    ) -> None:
        B, G, R, self.T, _ = q.shape
        self.S = k.shape[2]
        self.t, self.s = blocks or block_sizes(B * G * R, self.T, self.S)
        more_q, more_k = -self.T % self.t, -self.S % self.s
        if more_k and sight.valid is None:
            sight = sight.replace(valid=jnp.ones((1, self.S), bool))
        # Padding repeats the last slot and segment, so that it makes no other block visible.
        sight = sight.queries(lambda x: jnp.pad(x, ((0, 0), (0, more_q)), mode="edge"))
        valid = sight.valid
        sight = sight.keys(lambda x: jnp.pad(x, ((0, 0), (0, more_k)), mode="edge"))
        if valid is not None:
            sight = sight.replace(valid=jnp.pad(valid, ((0, 0), (0, more_k))))
        self.sight, self.softcap = sight, softcap
        self.q = self.pad_queries(q, 3)
        self.k, self.v = (jnp.pad(x, ((0, 0), (0, 0), (0, more_k), (0, 0))) for x in (k, v))
        self.bias = bias
        if bias is not None:
            rows = more_q if bias.shape[3] > 1 else 0
            self.bias = jnp.pad(bias, ((0, 0), (0, 0), (0, 0), (0, rows), (0, more_k)))

    def pad_queries(self, x: jax.Array, axis: int) -> jax.Array:
        """Zeros up to whole blocks."""
        widths = [(0, -self.T % self.t if a == axis else 0) for a in range(x.ndim)]
        return jnp.pad(x, widths)

    def queries(self, x: jax.Array, i: jax.Array, axis: int) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(x, i * self.t, self.t, axis)

    def keys(self, x: jax.Array, j: jax.Array, axis: int) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(x, j * self.s, self.s, axis)

    def scores(
        self, q_BGRtK: jax.Array, i: jax.Array, j: jax.Array
    ) -> tuple[jax.Array, jax.Array | None]:
        """f32 [B, G, R, t, s] scores of a block, and their derivative where there is a softcap."""
        scores, slope = _einsum("bgrtk,bgsk->bgrts", q_BGRtK, self.keys(self.k, j, 2)), None
        if self.softcap is not None:
            tanh = jnp.tanh(scores / self.softcap)
            scores, slope = self.softcap * tanh, 1 - tanh * tanh
        if self.bias is not None:
            bias = self.keys(self.bias, j, 4)
            scores = scores + (bias if bias.shape[3] == 1 else self.queries(bias, i, 3))
        block = self.sight.queries(lambda x: self.queries(x, i, 1))
        allowed = block.keys(lambda x: self.keys(x, j, 1)).allowed()
        if allowed is not None:
            scores = jnp.where(allowed[:, None, None], scores, _NEVER)
        return scores, slope

    def add_bias(
        self, dbias: jax.Array, dscores: jax.Array, i: jax.Array, j: jax.Array
    ) -> jax.Array:
        """Adds a block's cotangent of the bias, summed where the bias was broadcast."""
        if dbias.shape[0] == 1:
            dscores = dscores.sum(0, keepdims=True)
        at = [0, 0, 0, i * self.t, j * self.s]
        if dbias.shape[3] == 1:
            dscores, at[3] = dscores.sum(3, keepdims=True), 0
        old = jax.lax.dynamic_slice(dbias, at, dscores.shape)
        return jax.lax.dynamic_update_slice(dbias, old + dscores, at)

    def order(self, by_key: bool = False) -> tuple[jax.Array, jax.Array]:
        """For each block of queries, the visible blocks of keys, or the other way round.

        Returns:
          (i32 [rows, columns] with the visible ones first, i32 [rows] their number).
        """
        visible = _visible(self.sight, self.t, self.s)
        visible = visible.T if by_key else visible
        return jnp.argsort(~visible, axis=1, stable=True), visible.sum(1)


def _visible(sight: Sight, t: int, s: int) -> jax.Array:
    """bool [T / t, S / s]: blocks in which a query may see a key, judged by their extremes."""

    def extremes(x: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
        x = x.reshape(x.shape[0], -1, n)
        return x.min(-1), x.max(-1)

    q_min, q_max = (x[:, :, None] for x in extremes(sight.q_slot, t))
    k_min, k_max = (x[:, None, :] for x in extremes(sight.k_slot, s))
    visible = jnp.ones((1, q_min.shape[1], k_min.shape[2]), bool)
    if sight.causal:
        visible &= k_min <= q_max
    if sight.window is not None:
        near = q_min - k_max < sight.window
        visible &= near if sight.begin is None else near | (k_min < sight.shared)
    if sight.prefix is not None:
        visible |= k_min < sight.prefix[:, None, None]
    if sight.valid is not None:
        visible = visible & sight.valid.reshape(len(sight.valid), -1, s).any(-1)[:, None, :]
    if sight.q_segment is not None:
        q_low, q_high = (x[:, :, None] for x in extremes(sight.q_segment, t))
        k_low, k_high = (x[:, None, :] for x in extremes(sight.k_segment, s))
        meet = (q_low <= k_high) & (k_low <= q_high)
        visible = visible & (meet if sight.shared is None else meet | (k_min < sight.shared))
    return visible.any(0)


def _einsum(formula: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(formula, a, b, preferred_element_type=jnp.float32)


def _put(x: jax.Array, piece: jax.Array, start: jax.Array, axis: int) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(x, piece, start, axis)
