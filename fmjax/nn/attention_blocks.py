"""Queries, keys and their scores, a block at a time; which blocks a mask leaves anything of.

Shapes: B batch, H query heads in G groups of R, T queries, S keys, K head size; t and s are the
queries and keys of a block.
"""

import jax
import jax.numpy as jnp

from fmjax.core.logical import platform
from fmjax.nn.masks import Sight

# The score of a pair that does not meet. exp(NEVER − x) is 0 for every x that a softmax subtracts,
# that of a row that sees nothing included.
NEVER = jnp.finfo(jnp.float32).min

# Bytes of scores that a block holds at most, and how long its sides are. The caches of CPUs are
# small, and loops cost them little.
_BYTES, _BYTES_ON_CPU = 32 << 20, 2 << 20
_LARGEST, _SMALLEST = 512, 128


def sizes(rows: int, queries: int, keys: int) -> tuple[int, int]:
    """(t, s) where every pair has `rows` = B · H scores; a short side is one block."""
    most = _BYTES_ON_CPU if platform() == "cpu" else _BYTES
    side = _LARGEST
    while side > _SMALLEST and rows * side * side * 4 > most:
        side //= 2
    return min(side, queries), min(side, keys)


class Blocks:
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
        self.t, self.s = blocks or sizes(B * G * R, self.T, self.S)
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

    def pad_queries(self, x: jax.Array, axis: int, value: float = 0.0) -> jax.Array:
        """Up to whole blocks."""
        widths = [(0, -self.T % self.t if a == axis else 0) for a in range(x.ndim)]
        return jnp.pad(x, widths, constant_values=value)

    def queries(self, x: jax.Array, i: jax.Array, axis: int) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(x, i * self.t, self.t, axis)

    def keys(self, x: jax.Array, j: jax.Array, axis: int) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(x, j * self.s, self.s, axis)

    def scores(
        self, q_BGRtK: jax.Array, i: jax.Array, j: jax.Array
    ) -> tuple[jax.Array, jax.Array | None]:
        """f32 [B, G, R, t, s] scores of a block, and their derivative where there is a softcap."""
        scores, slope = einsum("bgrtk,bgsk->bgrts", q_BGRtK, self.keys(self.k, j, 2)), None
        if self.softcap is not None:
            tanh = jnp.tanh(scores / self.softcap)
            scores, slope = self.softcap * tanh, 1 - tanh * tanh
        if self.bias is not None:
            bias = self.keys(self.bias, j, 4)
            scores = scores + (bias if bias.shape[3] == 1 else self.queries(bias, i, 3))
        block = self.sight.queries(lambda x: self.queries(x, i, 1))
        allowed = block.keys(lambda x: self.keys(x, j, 1)).allowed()
        if allowed is not None:
            scores = jnp.where(allowed[:, None, None], scores, NEVER)
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
        visible = visible_blocks(self.sight, self.t, self.s)
        visible = visible.T if by_key else visible
        return jnp.argsort(~visible, axis=1, stable=True), visible.sum(1)


def visible_blocks(sight: Sight, t: int, s: int) -> jax.Array:
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


def einsum(formula: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """In float32, whatever the operands are."""
    return jnp.einsum(formula, a, b, preferred_element_type=jnp.float32)
