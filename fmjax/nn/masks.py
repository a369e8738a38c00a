"""Which query may see which key: causal, sliding window, padding, segments and prefix in one.

A `Mask` is a description. `dense` spells it out as booleans for kernels that want an array;
kernels that understand windows or segments read the fields, and `sight` is for those that look at
blocks of queries and keys. Order goes by slot (the place in the sequence or in the key–value
cache), never by position id, so packed rows whose positions restart and left-padded rows stay
correct.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True)
class Mask:
    """The conjunction of all that is set; unset fields allow everything.

    A pytree whose leaves are its arrays. Python numbers stay what they are under `jit` and `remat`
    too, so that kernels can be made for them.

    Attributes:
      causal: a query sees keys at its own slot and before (and all of the prefix).
      window: a query sees only the last `window` slots, its own included: an int, or an i32
        scalar where layers differ (a value ≥ the number of slots means no window).
      windows: the sizes that a window which is an array may have, for kernels that are made for
        fixed ones; () where they are not known.
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

    causal: bool = True
    window: int | jax.Array | None = None
    offset: int | jax.Array = 0
    valid: jax.Array | None = None
    segments: tuple[jax.Array, jax.Array] | None = None
    prefix: jax.Array | None = None
    slots: jax.Array | None = None
    virtual: int = 0
    shared: int = 0
    windows: tuple[int, ...] = ()

    def replace(self, **changes: Any) -> "Mask":
        """The mask with other values in some fields."""
        return dataclasses.replace(self, **changes)

    def tree_flatten(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        *values, windows = (getattr(self, field.name) for field in dataclasses.fields(self))
        fixed = tuple(x if isinstance(x, int) else None for x in values)
        return tuple(None if isinstance(x, int) else x for x in values), (*fixed, windows)

    @classmethod
    def tree_unflatten(cls, fixed: tuple[Any, ...], arrays: tuple[Any, ...]) -> "Mask":
        *fixed, windows = fixed
        values = (a if f is None else f for f, a in zip(fixed, arrays, strict=True))
        return cls(*values, windows=windows)

    def dense(self, queries: int, keys: int) -> jax.Array | None:
        """Spells the mask out.

        Args:
          queries: T, the number of query slots.
          keys: S, the number of keys: of `virtual` ones, and the slots.

        Returns:
          bool, broadcastable to [B, 1, T, S], True where the query sees the key. None
          where every query sees every key.
        """
        allowed = self.sight(queries, keys).allowed()
        return None if allowed is None else allowed[:, None]

    def sight(self, queries: int, keys: int) -> "Sight":
        """The same mask, of so many queries and keys, for kernels that look at blocks of them."""
        T, S, P = queries, keys, self.virtual
        begin = None
        q_slot = self.slots
        if q_slot is None:
            q_slot = (jnp.arange(T, dtype=jnp.int32) + self.offset)[None]
        if self.window is not None and (P or self.shared):
            begin = jnp.where(q_slot < self.shared, q_slot, self.shared + self._tokens_before(T))
        k_slot = jnp.arange(S if self.slots is None else P, dtype=jnp.int32)[None] - P
        if self.slots is not None:
            k_slot = jnp.concatenate([k_slot, self.slots], 1)
        q_segment, k_segment = self.segments or (None, None)
        return Sight(
            q_slot=q_slot,
            k_slot=k_slot,
            q_segment=q_segment,
            k_segment=None if k_segment is None else jnp.pad(k_segment, ((0, 0), (P, 0))),
            # Virtual keys are tokens.
            valid=None
            if self.valid is None
            else jnp.pad(self.valid[:, : S - P], ((0, 0), (P, 0)), constant_values=True),
            begin=begin,
            window=self.window,
            prefix=self.prefix,
            causal=self.causal,
            shared=self.shared if P or self.shared else None,
        )

    def _tokens_before(self, queries: int) -> jax.Array:
        """i32 [B or 1, T]: how many tokens of its own text stand before each query."""
        if self.valid is None and self.segments is None:
            slot = jnp.arange(queries)[None] + self.offset if self.slots is None else self.slots
            return slot - self.shared
        if self.slots is not None:
            # Counted in the order of the text.
            order, slots = jnp.argsort(self.slots[0]), self.slots[0]
            inputs = (self.valid, self.segments)
            valid, segments = jax.tree.map(lambda x: x[:, order], inputs)
            text = self.replace(slots=None, valid=valid, segments=segments)
            return text._tokens_before(queries)[:, slots]
        token = (self.segments[0] > 0) if self.valid is None else self.valid
        token = (token & (jnp.arange(token.shape[1]) >= self.shared)).astype(jnp.int32)
        before = jnp.cumsum(token, 1) - token
        if self.segments is not None:
            segments = self.segments[0]
            starts = (segments != jnp.roll(segments, 1, 1)).at[:, 0].set(True)
            before = before - jax.lax.cummax(jnp.where(starts, before, 0), 1)
        return jax.lax.dynamic_slice_in_dim(before, self.offset, queries, 1)


@flax.struct.dataclass
class Sight:
    """A mask told apart into what is known of each query and of each key.

    Queries and keys may stand in any order: what counts is the slot that each one has, so a
    device that holds some of a row describes them by their slots. 1 in place of B is all rows.

    Attributes:
      q_slot: i32 [1 or B, T].
      k_slot: i32 [1 or B, S]; virtual keys have negative ones.
      q_segment, k_segment: i32 [B, T] and [B, S], or None.
      valid: bool [1 or B, S], or None.
      begin: i32 [1 or B, T], the slot of each query as far as the window over virtual and shared
        keys goes; None where no such window is.
      window, prefix, causal: as in `Mask`.
      shared: keys in slots below it belong to all segments; None: there are no such keys.
    """

    q_slot: jax.Array
    k_slot: jax.Array
    q_segment: jax.Array | None = None
    k_segment: jax.Array | None = None
    valid: jax.Array | None = None
    begin: jax.Array | None = None
    window: int | jax.Array | None = None
    prefix: jax.Array | None = None
    causal: bool = flax.struct.field(pytree_node=False, default=True)
    shared: int | None = flax.struct.field(pytree_node=False, default=None)

    def allowed(self) -> jax.Array | None:
        """bool [1 or B, T, S], True where the query sees the key; None where all see all."""
        q, k = self.q_slot[:, :, None], self.k_slot[:, None, :]
        allowed: jax.Array | None = None
        if self.causal:
            allowed = k <= q
        if self.window is not None:
            near = q - k < self.window
            if self.begin is not None:
                near = jnp.where(k < self.shared, self.begin[:, :, None] - k < self.window, near)
            allowed = _and(allowed, near)
        if self.prefix is not None and allowed is not None:
            allowed = allowed | (k < self.prefix[:, None, None])
        if self.valid is not None:
            allowed = _and(allowed, self.valid[:, None, :])
        if self.q_segment is not None:
            own = self.q_segment[:, :, None] == self.k_segment[:, None, :]
            allowed = _and(allowed, own if self.shared is None else own | (k < self.shared))
        return allowed

    def queries(self, change: Callable[[jax.Array], jax.Array]) -> "Sight":
        """With other queries: `change` maps arrays [1 or B, T] of them, a slice for example."""
        return self._with(change, "q_slot", "q_segment", "begin")

    def keys(self, change: Callable[[jax.Array], jax.Array]) -> "Sight":
        """With other keys: `change` maps arrays [1 or B, S] of them."""
        return self._with(change, "k_slot", "k_segment", "valid")

    def _with(self, change: Callable[[jax.Array], jax.Array], *names: str) -> "Sight":
        fields = {n: getattr(self, n) for n in names}
        return self.replace(**{n: x if x is None else change(x) for n, x in fields.items()})


def _and(a: jax.Array | None, b: jax.Array) -> jax.Array:
    return b if a is None else a & b
