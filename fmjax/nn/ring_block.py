"""Attention of some queries to some keys, tile by tile, with an online softmax (arXiv:2205.14135).

No array of all scores exists, only one tile of them; tiles in which no query sees any key are
skipped. Who sees whom follows from what queries and keys carry along: slots and segment ids. So
tokens may stand in any order, and keys may come from anywhere.

Shapes: B batch, G key–value heads, R query heads of each, T queries, S keys, K head size, C tile.
"""

from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

NOWHERE = -1
"""The slot of a key that only fills a tile."""
NOBODY = jnp.iinfo(jnp.int32).min
"""The segment of a key that holds no token; no query is in it."""
_LOWEST = jnp.finfo(jnp.float32).min


class Tokens(NamedTuple):
    """What a mask knows of queries or keys.

    Attributes:
      slots: i32 [1, T], places in the text.
      segments: i32 [B, T], or None where all tokens are of one text.
    """

    slots: jax.Array
    segments: jax.Array | None


@flax.struct.dataclass
class Rule:
    """How `fmjax.nn.masks.Mask` decides, apart from what tokens carry.

    Attributes:
      window: i32 [] or None.
      prefix: i32 [B] or None.
      causal, shared: as in `Mask`.
      softcap: bound of the scores, or None.
      tile: C, the number of queries and of keys of a tile.
    """

    window: jax.Array | None
    prefix: jax.Array | None
    causal: bool = flax.struct.field(pytree_node=False, default=True)
    shared: int = flax.struct.field(pytree_node=False, default=0)
    softcap: float | None = flax.struct.field(pytree_node=False, default=None)
    tile: int = flax.struct.field(pytree_node=False, default=512)

    def allowed(self, queries: Tokens, keys: Tokens) -> jax.Array:
        """bool [B or 1, T, S]."""
        q, k = queries.slots[:, :, None], keys.slots[:, None, :]
        seen = jnp.ones((1, q.shape[1], k.shape[2]), bool)
        if self.causal:
            seen = k <= q
        if self.window is not None:
            seen = seen & (q - k < self.window)
        if self.prefix is not None:
            seen = seen | (k < self.prefix[:, None, None])
        if keys.segments is not None:
            own = keys.segments[:, None, :]
            same = queries.segments[:, :, None] == own
            if self.shared:
                same = same | ((k < self.shared) & (own != NOBODY))
            seen = seen & same
        return seen & (k != NOWHERE)


class Running(NamedTuple):
    """The softmax so far.

    Attributes:
      out: f32 [B, G, R, T, K], the sum of weighted values, relative to `top`.
      top: f32 [B, G, R, T], the highest score.
      total: f32 [B, G, R, T], the sum of weights, relative to `top`.
    """

    out: jax.Array
    top: jax.Array
    total: jax.Array

    @classmethod
    def empty(cls, q_BGRTK: jax.Array) -> "Running":
        """Before any key."""
        rows = jnp.zeros(q_BGRTK.shape[:-1], jnp.float32)
        return cls(jnp.zeros(q_BGRTK.shape, jnp.float32), rows + _LOWEST, rows)

    def result(self) -> tuple[jax.Array, jax.Array]:
        """(output f32 [B, G, R, T, K], logsumexp f32 [B, G, R, T]); zeros where no key is seen."""
        seen = self.total > 0
        total = jnp.where(seen, self.total, 1)
        return self.out / total[..., None], jnp.where(seen, self.top + jnp.log(total), 0)


def tile_size(tokens: int, most: int) -> int:
    """C such that tiles of it cover each half of the tokens (a chunk of zigzag order) evenly."""
    half = max(-(-tokens // 2), 1)
    return -(-half // -(-half // most))


def padded(x: jax.Array, size: int, axis: int, value: int = 0) -> jax.Array:
    """x with as much of `value` behind as makes `axis` a multiple of the size."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % size)
    return jnp.pad(x, widths, constant_values=value) if widths[axis][1] else x


def pad_tokens(tokens: Tokens, size: int) -> Tokens:
    """The same, of tokens; those added are nowhere."""
    slots = padded(tokens.slots, size, 1, NOWHERE)
    segments = tokens.segments
    return Tokens(slots, None if segments is None else padded(segments, size, 1, int(NOBODY)))


def attend(
    running: Running,
    q_BGRTK: jax.Array,
    k_BGSK: jax.Array,
    v_BGSK: jax.Array,
    queries: Tokens,
    keys: Tokens,
    rule: Rule,
) -> Running:
    """The softmax after these keys too; T and S are multiples of the tile."""
    across, down = _tiles(rule, k_BGSK), _tiles(rule, q_BGRTK)

    def row(i: jax.Array, running: Running) -> Running:
        q, who = _cut(q_BGRTK, i, down, 3), _cut_tokens(queries, i, down)
        state = Running(*(_cut(x, i, down, 3) for x in running))

        def column(j: jax.Array, state: Running) -> Running:
            seen = rule.allowed(who, _cut_tokens(keys, j, across))

            def update() -> Running:
                k, v = (_cut(x, j, across, 2) for x in (k_BGSK, v_BGSK))
                scores = jnp.where(seen[:, None, None], _scores(q, k, rule)[0], _LOWEST)
                top = jnp.maximum(state.top, jnp.max(scores, -1))
                # Not exp(lowest − lowest) = 1 where a row has seen nothing yet.
                p = jnp.where(seen[:, None, None], jnp.exp(scores - top[..., None]), 0)
                shrink = jnp.exp(state.top - top)
                more = jnp.einsum(
                    "bgrts,bgsk->bgrtk", p.astype(v.dtype), v, preferred_element_type=jnp.float32
                )
                return Running(
                    state.out * shrink[..., None] + more,
                    top,
                    state.total * shrink + jnp.sum(p, -1),
                )

            return jax.lax.cond(jnp.any(seen), update, lambda: state)

        state = jax.lax.fori_loop(0, across[0], column, state)
        return Running(*(_put(x, new, i, down, 3) for x, new in zip(running, state, strict=True)))

    return jax.lax.fori_loop(0, down[0], row, running)


Gradients = tuple[jax.Array, jax.Array, jax.Array]


def attend_backward(
    gradients: Gradients,
    q_BGRTK: jax.Array,
    k_BGSK: jax.Array,
    v_BGSK: jax.Array,
    queries: Tokens,
    keys: Tokens,
    rule: Rule,
    logsumexp: jax.Array,
    d_out: jax.Array,
    delta: jax.Array,
) -> Gradients:
    """Adds these keys' part to the gradients by q, k and v.

    Args:
      gradients: f32, in the shapes of q, k and v, so far.
      q_BGRTK, k_BGSK, v_BGSK, queries, keys, rule: as in `attend`.
      logsumexp: f32 [B, G, R, T], over all keys of a query.
      d_out: [B, G, R, T, K], the gradient by the output.
      delta: f32 [B, G, R, T], sum over K of d_out · output.
    """
    across, down = _tiles(rule, k_BGSK), _tiles(rule, q_BGRTK)
    f32 = {"preferred_element_type": jnp.float32}

    def row(i: jax.Array, gradients: Gradients) -> Gradients:
        q, do, lse, mean = (_cut(x, i, down, 3) for x in (q_BGRTK, d_out, logsumexp, delta))
        who = _cut_tokens(queries, i, down)

        def column(j: jax.Array, carry: Gradients) -> Gradients:
            dq, dk, dv = carry
            k, v = (_cut(x, j, across, 2) for x in (k_BGSK, v_BGSK))
            seen = rule.allowed(who, _cut_tokens(keys, j, across))

            def parts() -> Gradients:
                scores, slope = _scores(q, k, rule)
                p = jnp.where(seen[:, None, None], jnp.exp(scores - lse[..., None]), 0)
                dp = jnp.einsum("bgrtk,bgsk->bgrts", do, v, **f32)
                ds = (p * (dp - mean[..., None]) * slope).astype(q.dtype)
                return (
                    jnp.einsum("bgrts,bgsk->bgrtk", ds, k, **f32),
                    jnp.einsum("bgrts,bgrtk->bgsk", ds, q, **f32),
                    jnp.einsum("bgrts,bgrtk->bgsk", p.astype(do.dtype), do, **f32),
                )

            def nothing() -> Gradients:
                return tuple(jnp.zeros(x.shape, jnp.float32) for x in (q, k, v))

            more_q, more_k, more_v = jax.lax.cond(jnp.any(seen), parts, nothing)
            dk = _put(dk, _cut(dk, j, across, 2) + more_k, j, across, 2)
            dv = _put(dv, _cut(dv, j, across, 2) + more_v, j, across, 2)
            return dq + more_q, dk, dv

        dq, dk, dv = gradients
        row_q, dk, dv = jax.lax.fori_loop(0, across[0], column, (_cut(dq, i, down, 3), dk, dv))
        return _put(dq, row_q, i, down, 3), dk, dv

    return jax.lax.fori_loop(0, down[0], row, gradients)


def _scores(q: jax.Array, k: jax.Array, rule: Rule) -> tuple[jax.Array, jax.Array | float]:
    """(f32 [B, G, R, T, S], capped; their derivative by the uncapped ones)."""
    scores = jnp.einsum("bgrtk,bgsk->bgrts", q, k, preferred_element_type=jnp.float32)
    if rule.softcap is None:
        return scores, 1.0
    bounded = jnp.tanh(scores / rule.softcap)
    return rule.softcap * bounded, 1 - bounded * bounded


def _tiles(rule: Rule, x: jax.Array) -> tuple[int, int]:
    """(how many, of which size) along the tokens, the last axis but one."""
    return x.shape[-2] // rule.tile, rule.tile


def _cut(x: jax.Array, i: jax.Array, tiles: tuple[int, int], axis: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, i * tiles[1], tiles[1], axis)


def _put(x: jax.Array, new: jax.Array, i: jax.Array, tiles: tuple[int, int], axis: int):
    return jax.lax.dynamic_update_slice_in_dim(x, new, i * tiles[1], axis)


def _cut_tokens(tokens: Tokens, i: jax.Array, tiles: tuple[int, int]) -> Tokens:
    return Tokens(*(None if x is None else _cut(x, i, tiles, 1) for x in tokens))
