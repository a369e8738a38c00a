"""The two passes of ring attention (arXiv:2310.01889).

Each device keeps its queries. At every step it takes them through the keys that it holds, while
these travel on to its neighbour, and joins what they give with what earlier ones gave. The backward
pass goes round once more: the gradients by keys and values travel with them and are home after n
steps. A device holds 1/n of the sequence and, besides, one block of scores; nothing in it grows
with the whole. Slots and segments travel with the keys, so tokens may stand in any order.

Shapes: B batch, G groups of R query heads, T tokens, P virtual keys, K head size; inside
`shard_map`, those of one device.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, PartitionSpec

from fmjax.core import logical
from fmjax.nn import attention_blockwise as blocks
from fmjax.nn import sequence
from fmjax.nn.masks import Sight


class Keys(NamedTuple):
    """What travels: keys, and all that is known of them.

    Attributes:
      k, v: [B, G, T, K].
      bias: f32 [B, G, R, 1, T], or None.
      slot, segment, valid: as in `Sight`.
    """

    k: jax.Array
    v: jax.Array
    bias: jax.Array | None
    slot: jax.Array
    segment: jax.Array | None
    valid: jax.Array | None

    def seen(self, sight: Sight) -> Sight:
        """The sight that the queries of `sight` have of these keys."""
        return sight.replace(k_slot=self.slot, k_segment=self.segment, valid=self.valid)


@dataclasses.dataclass(frozen=True)
class Ring:
    """How the arrays lie on the mesh, and what else is static.

    Attributes:
      mesh: the devices; the backward pass may be traced where it is no longer the current one.
      batch, heads, seq: entries of the arrays' partitions.
      softcap: of the scores.
      sizes: of a block.
    """

    mesh: Mesh
    batch: Any
    heads: Any
    seq: Any
    softcap: float | None
    sizes: tuple[int, int]

    @property
    def axes(self) -> tuple[str, ...]:
        """Along which keys travel."""
        return logical.mesh_axes(self.seq)

    def layouts(self, q: Any, keys: Keys, virtual: Keys | None, sight: Sight) -> tuple[Any, ...]:
        """Partitions of the arguments."""
        P, batch, heads = PartitionSpec, self.batch, self.heads

        def rows(x: jax.Array, seq: Any) -> PartitionSpec:
            entry = batch if x.ndim and x.shape[0] > 1 else None
            return P(entry, seq) if x.ndim == 2 else P(entry) if x.ndim else P()

        def of_keys(keys: Keys, seq: Any) -> Keys:
            kv, bias = P(batch, heads, seq, None), P(batch, heads, None, None, seq)
            known = (None if x is None else rows(x, seq) for x in keys[3:])
            return Keys(kv, kv, None if keys.bias is None else bias, *known)

        return (
            P(batch, heads, None, self.seq, None),
            of_keys(keys, self.seq),
            None if virtual is None else of_keys(virtual, None),
            jax.tree.map(lambda x: rows(x, self.seq), sight),
        )

    def onward(self, x: Any) -> Any:
        """To the next device of the ring."""
        n = jax.lax.axis_size(self.axes)
        step = [(i, (i + 1) % n) for i in range(n)]
        return jax.tree.map(lambda a: jax.lax.ppermute(a, self.axes, step), x)

    def attend(self, q: jax.Array, keys: Keys, sight: Sight) -> tuple[jax.Array, jax.Array]:
        """(out, logsumexp) of these keys."""
        return blocks.forward(
            q, keys.k, keys.v, keys.seen(sight), keys.bias, self.softcap, self.sizes
        )

    def gradients(
        self, q: jax.Array, keys: Keys, sight: Sight, *saved: jax.Array
    ) -> tuple[jax.Array, tuple[Any, ...]]:
        """f32 gradients by q, and by k, v and bias, that come through these keys."""
        dq, *rest = blocks.backward(
            q, keys.k, keys.v, keys.seen(sight), keys.bias, self.softcap, *saved, self.sizes
        )
        return dq, tuple(rest)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend_around(
    ring: Ring, q_BGRTK: jax.Array, keys: Keys, virtual: Keys | None, sight: Sight
) -> jax.Array:
    """softmax(q kᵀ + bias + mask) v of all keys, [B, T, H · K] in the dtype of v.

    Args:
      ring: the layout.
      q_BGRTK: queries, scaled already.
      keys: of the same tokens, which travel.
      virtual: [B, G, P, K] that all devices have, or None.
      sight: of the queries, without what is known of the keys.
    """
    return _forward(ring, q_BGRTK, keys, virtual, sight)[0]


def _forward(
    ring: Ring, q_BGRTK: jax.Array, keys: Keys, virtual: Keys | None, sight: Sight
) -> tuple[jax.Array, Any]:
    def one_device(
        q: jax.Array, keys: Keys, virtual: Keys | None, sight: Sight
    ) -> tuple[jax.Array, jax.Array]:
        B, G, R, T, K = q.shape
        so_far = jnp.zeros(q.shape, jnp.float32), jnp.full(q.shape[:-1], blocks.EMPTY, jnp.float32)
        if virtual is not None:
            so_far = ring.attend(q, virtual, sight)

        def step(_: int, state: Any) -> Any:
            so_far, held = state
            # Nothing in the step needs what arrives, so that it can arrive meanwhile.
            arriving = ring.onward(held)
            return blocks.join(so_far, ring.attend(q, held, sight)), arriving

        n = jax.lax.axis_size(ring.axes)
        so_far, held = jax.lax.fori_loop(0, n - 1, step, (so_far, keys))
        out, logsumexp = blocks.join(so_far, ring.attend(q, held, sight))
        return jnp.moveaxis(out.astype(keys.v.dtype), 3, 1).reshape(B, T, G * R * K), logsumexp

    arguments = (q_BGRTK, keys, virtual, sight)
    results = _results(ring)
    run = sequence.on_each_device(one_device, ring.mesh, ring.layouts(*arguments), results)
    out, logsumexp = (checkpoint_name(x, "attention") for x in run(*arguments))
    return out, (*arguments, out, logsumexp)


def _results(ring: Ring) -> tuple[PartitionSpec, PartitionSpec]:
    """Partitions of the output [B, T, H · K] and its logsumexp [B, G, R, T]."""
    P = PartitionSpec
    return P(ring.batch, ring.seq, ring.heads), P(ring.batch, ring.heads, None, ring.seq)


def _backward(ring: Ring, saved: Any, d_out: jax.Array) -> tuple[Any, ...]:
    def one_device(
        q: jax.Array,
        keys: Keys,
        virtual: Keys | None,
        sight: Sight,
        out: jax.Array,
        logsumexp: jax.Array,
        d_out: jax.Array,
    ) -> tuple[Any, ...]:
        B, G, R, T, K = q.shape
        out, d_out = (jnp.moveaxis(x.reshape(B, T, G, R, K), 1, 3) for x in (out, d_out))
        delta = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), -1)
        gradients = functools.partial(ring.gradients, q)

        def step(_: int, state: Any) -> Any:
            dq, held, so_far = state
            # Both travel while the step computes.
            arriving, so_far = ring.onward(held), ring.onward(so_far)
            more, new = gradients(held, sight, logsumexp, delta, d_out)
            return dq + more, arriving, jax.tree.map(jnp.add, so_far, new)

        n = jax.lax.axis_size(ring.axes)
        arriving = ring.onward(keys)
        dq, d_keys = gradients(keys, sight, logsumexp, delta, d_out)
        dq, _, d_keys = jax.lax.fori_loop(1, n, step, (dq, arriving, d_keys))
        d_keys, d_virtual = ring.onward(d_keys), None
        if virtual is not None:
            more, d_virtual = gradients(virtual, sight, logsumexp, delta, d_out)
            dq, d_virtual = dq + more, jax.lax.psum(d_virtual, ring.axes)
        return _like(dq, q), _like(d_keys, keys[:3]), _like(d_virtual, virtual and virtual[:3])

    arguments, results = ring.layouts(*saved[:4]), _results(ring)
    of_q, of_keys, of_virtual, _ = arguments
    run = sequence.on_each_device(
        one_device,
        ring.mesh,
        (*arguments, *results, results[0]),
        (of_q, of_keys[:3], of_virtual and of_virtual[:3]),
    )
    dq, d_keys, d_virtual = run(*saved, d_out)
    unknown = (None,) * 3
    d_virtual = None if d_virtual is None else Keys(*d_virtual, *unknown)
    return dq, Keys(*d_keys, *unknown), d_virtual, None


attend_around.defvjp(_forward, _backward)


def _like(gradients: Any, arrays: Any) -> Any:
    """In the dtypes of the arrays."""
    return jax.tree.map(lambda g, x: g.astype(x.dtype), gradients, arrays)
