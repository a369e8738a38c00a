"""Which query may see which key: causal, sliding window, padding, segments and prefix in one.

A `Mask` is a description. `dense` spells it out as booleans for kernels that want an array;
kernels that understand windows or segments read the fields. Order goes by slot (the place in the
sequence or in the key–value cache), never by position id, so packed rows whose positions restart
and left-padded rows stay correct.
"""

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Mask:
    """The conjunction of all that is set; unset fields allow everything.

    Attributes:
      causal: a query sees keys at its own slot and before (and all of the prefix).
      window: a query sees only the last `window` slots, its own included: an int, or an i32
        scalar where layers differ (a value ≥ the number of slots means no window).
      offset: slot of the first query, an int or an i32 scalar; keys start at slot 0.
      valid: bool [B, ≥ S], which key slots hold a token (padding and empty cache slots do not).
      segments: (i32 [B, T], i32 [B, S]) segment ids of queries and keys; only equal ones meet.
      prefix: i32 [B], the number of leading slots that every query sees (prefix LM).
      slots: i32 [1, T], the slot of each query and key, where they do not stand in order
        (`fmjax.nn.sequence`); without a cache, T = S.
      virtual: P, keys of no token that come before slot 0. Queries of all segments see them, as
        far as the window reaches: for every text as if they stood right before its first token.
      shared: the number of leading slots that belong to all segments (virtual tokens): each text
        sees them, as far as the window reaches, as if they stood right before its first token.
    """

    causal: bool = flax.struct.field(pytree_node=False, default=True)
    window: int | jax.Array | None = None
    offset: int | jax.Array = 0
    valid: jax.Array | None = None
    segments: tuple[jax.Array, jax.Array] | None = None
    prefix: jax.Array | None = None
    slots: jax.Array | None = None
    virtual: int = flax.struct.field(pytree_node=False, default=0)
    shared: int = flax.struct.field(pytree_node=False, default=0)

    def dense(self, queries: int, keys: int) -> jax.Array | None:
        """Spells the mask out.

        Args:
          queries: T, the number of query slots.
          keys: S, the number of keys: of `virtual` ones, and the slots.

        Returns:
          bool, broadcastable to [B, 1, T, S], True where the query sees the key. None
          where every query sees every key.
        """
        q_T1 = (jnp.arange(queries) + self.offset)[:, None]
        k_1S = jnp.arange(keys)[None, :] - self.virtual
        if self.slots is not None:
            virtual = jnp.arange(-self.virtual, 0, dtype=jnp.int32)
            q_T1, k_1S = self.slots[0, :, None], jnp.concatenate([virtual[None], self.slots], 1)
        allowed: jax.Array | None = None
        if self.causal:
            allowed = (k_1S <= q_T1)[None]
        if self.window is not None:
            near = (q_T1 - k_1S < self.window)[None]
            if self.virtual or self.shared:
                begin = self.shared + self._tokens_before(queries)[:, :, None]
                near_virtual = jnp.where(q_T1 < self.shared, q_T1, begin) - k_1S < self.window
                near = jnp.where(k_1S < self.shared, near_virtual, near)
            allowed = _and(allowed, near)
        if self.prefix is not None and allowed is not None:
            allowed = allowed | (k_1S[None] < self.prefix[:, None, None])
        if self.valid is not None:
            allowed = _and(allowed, self._seen(self.valid[:, None, : keys - self.virtual]))
        if self.segments is not None:
            q_BT, k_BS = self.segments
            own = self._seen(q_BT[:, :, None] == k_BS[:, None, :])
            allowed = _and(allowed, own | (k_1S < self.shared) if self.shared else own)
        return None if allowed is None else allowed[:, None]

    def _seen(self, slots: jax.Array) -> jax.Array:
        """Adds the virtual keys, allowed, before the slots on the last axis."""
        return jnp.pad(slots, ((0, 0), (0, 0), (self.virtual, 0)), constant_values=True)

    def _tokens_before(self, queries: int) -> jax.Array:
        """i32 [B or 1, T]: how many tokens of its own text stand before each query."""
        if self.valid is None and self.segments is None:
            return (jnp.arange(queries) + self.offset - self.shared)[None]
        token = (self.segments[0] > 0) if self.valid is None else self.valid
        token = (token & (jnp.arange(token.shape[1]) >= self.shared)).astype(jnp.int32)
        before = jnp.cumsum(token, 1) - token
        if self.segments is not None:
            segments = self.segments[0]
            starts = (segments != jnp.roll(segments, 1, 1)).at[:, 0].set(True)
            before = before - jax.lax.cummax(jnp.where(starts, before, 0), 1)
        return jax.lax.dynamic_slice_in_dim(before, self.offset, queries, 1)


def _and(a: jax.Array | None, b: jax.Array) -> jax.Array:
    return b if a is None else a & b
