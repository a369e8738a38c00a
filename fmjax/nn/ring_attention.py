"""Ring attention: keys and values go round the devices that split the sequence (arXiv:2310.01889).

Each device keeps its queries. At every step it takes them through the keys that it holds, with an
online softmax, while these travel on to its neighbour. The backward pass goes round once more: the
gradients by keys and values travel with them and are home after n steps. A device holds 1/n of the
sequence and, besides, one tile of scores; nothing in it grows with the whole.

Shapes: B batch, H query heads, G key–value heads, R = H / G, T tokens, K head size; inside
`shard_map`, those of one device.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, PartitionSpec

from fmjax.core import logical
from fmjax.core.errors import ConfigError
from fmjax.nn import ring_block, sequence
from fmjax.nn.masks import Mask
from fmjax.nn.ring_block import Rule, Running, Tokens

TILE = 512
"""Most queries and keys of a tile: 1 MB of scores for each row and head."""


def ring_attention(
    q_BHTK: jax.Array,
    k_BGTK: jax.Array,
    v_BGTK: jax.Array,
    mask: Mask,
    *,
    scale: float | jax.Array,
    softcap: float | None = None,
    tile: int = TILE,
) -> jax.Array:
    """softmax(q kᵀ · scale + mask) v over a sequence that the mesh of `logical.use` splits.

    Softmax and sums are float32. A query that sees no key gives zeros. The result bears the
    checkpoint name "attention" and is itself what the backward pass needs, so a policy that saves
    that name keeps it once and does not run the ring again.

    Args:
      q_BHTK: queries, in the order of `mask.slots`.
      k_BGTK: keys of the same tokens. Where G does not divide over the axes of the heads, each
        device gets the heads that its queries need.
      v_BGTK: values.
      mask: who sees whom; what `check` lets pass.
      scale: of the scores.
      softcap: bound c of the scores, s → c · tanh(s / c); None leaves them.
      tile: the largest number of queries, and of keys, whose scores exist at once.

    Returns:
      [B, T, H, K] in the dtype of v.

    Raises:
      ShardingError: tokens, rows or heads that do not divide over the mesh.
    """
    axes = sequence.split_axes()
    mesh, rules = logical.current()
    B, H, T, K = q_BHTK.shape
    partition = logical.spec(
        ("batch", "act_heads", "seq", None), rules, mesh, q_BHTK.shape, "queries"
    )
    batch, heads, seq, _ = (*partition, None, None, None, None)[:4]
    G = k_BGTK.shape[1]
    groups = math.lcm(G, math.prod(mesh.shape[a] for a in _names(heads)))
    k, v = (jnp.repeat(x, groups // G, axis=1) for x in (k_BGTK, v_BGTK))
    slots = jnp.arange(T, dtype=jnp.int32)[None] if mask.slots is None else mask.slots
    carried = Carried(slots, *_segments(mask, B, T))
    window = None if mask.window is None else jnp.asarray(mask.window, jnp.int32)
    size = ring_block.tile_size(T // sequence.parts(mesh, axes), tile)
    rule = Rule(window, mask.prefix, mask.causal, mask.shared, softcap, size)
    ring = _Ring(mesh, axes, batch, heads, seq)
    q = (q_BHTK * jnp.asarray(scale, q_BHTK.dtype)).reshape(B, groups, H // groups, T, K)
    return _attention(ring, q, k, v, carried, rule).reshape(B, T, H, K)


def applies(implementation: str) -> bool:
    """Whether the current mesh splits the sequence.

    Raises:
      ConfigError: it does, and another kernel is asked for.
    """
    axes = sequence.split_axes()
    if axes and implementation != "auto":
        raise ConfigError(
            f"attention {implementation!r} needs whole sequences, but the mesh splits them over "
            f"{_sizes(axes)}; use attention='auto', which is ring attention there"
        )
    return bool(axes)


def check(module: nn.Module, mask: Mask, bias: jax.Array | None, dropout_rate: float) -> None:
    """Refuses what does not go round a ring.

    Raises:
      ConfigError: a bias, dropout of the probabilities, virtual keys, or a prompt beside a window;
        it names the mesh axis.
    """
    if bias is not None:
        what, remedy = "a bias on the scores (ALiBi)", "a model with rotary or learned positions"
    elif dropout_rate and module.has_rng("dropout"):
        what, remedy = f"dropout {dropout_rate} of the attention probabilities", "a rate of 0"
    elif mask.virtual:
        what, remedy = f"a prefix of {mask.virtual} virtual keys", "an adapter without prefix"
    elif mask.shared and mask.window is not None:
        what, remedy = "a prompt in a model with a sliding window", "an adapter without prompt"
    else:
        return
    raise ConfigError(
        f"{what} cannot be combined with a sequence that is split over "
        f"{_sizes(sequence.split_axes())} (at {'/'.join(module.path)!r}); use {remedy}, or a mesh "
        "that does not split the sequence"
    )


def _sizes(axes: tuple[str, ...]) -> str:
    """ "context=4"."""
    mesh, _ = logical.current()
    return " × ".join(f"{a}={mesh.shape[a]}" for a in axes)


class Carried(NamedTuple):
    """What masks need of all tokens: slots i32 [1, T], segments of queries and of keys [B, T]."""

    slots: jax.Array
    of_queries: jax.Array | None
    of_keys: jax.Array | None


def _segments(mask: Mask, B: int, T: int) -> tuple[jax.Array | None, jax.Array | None]:
    """Segments of queries and keys; a key without a token is in none."""
    if mask.segments is None and mask.valid is None:
        return None, None
    queries, keys = mask.segments or (jnp.zeros((B, T), jnp.int32),) * 2
    if mask.valid is not None:
        keys = jnp.where(mask.valid, keys, ring_block.NOBODY)
    return queries, keys


def _names(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (entry,) if isinstance(entry, str) else entry or ()


@dataclasses.dataclass(frozen=True)
class _Ring:
    """How the arrays lie on the mesh.

    Attributes:
      mesh: the devices.
      axes: along which keys travel.
      batch, heads, seq: entries of the arrays' partitions.
    """

    mesh: Mesh
    axes: tuple[str, ...]
    batch: Any
    heads: Any
    seq: Any

    @property
    def size(self) -> int:
        """n, the number of devices that split the sequence."""
        return sequence.parts(self.mesh, self.axes)

    def layouts(self, rule: Rule) -> tuple[Any, ...]:
        """Partitions of q, k, v, carried, rule, the output and its logsumexp."""
        P, batch, heads, seq = PartitionSpec, self.batch, self.heads, self.seq
        rows, kv = P(batch, seq), P(batch, heads, seq, None)
        carried = Carried(P(None, seq), rows, rows)
        rule = rule.replace(
            window=None if rule.window is None else P(),
            prefix=None if rule.prefix is None else P(batch),
        )
        out, logsumexp = P(batch, seq, heads, None, None), P(batch, heads, None, seq)
        return P(batch, heads, None, seq, None), kv, kv, carried, rule, out, logsumexp

    def on_each_device(self, f: Callable[..., Any], arguments: Any, results: Any) -> Any:
        """f over the parts that the devices hold; both are partitions."""
        return jax.shard_map(
            f, mesh=self.mesh, in_specs=arguments, out_specs=results, check_vma=False
        )

    def onward(self, x: Any) -> Any:
        """To the next device of the ring."""
        step = [(i, (i + 1) % self.size) for i in range(self.size)]
        return jax.tree.map(lambda a: jax.lax.ppermute(a, self.axes, step), x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(
    ring: _Ring, q_BGRTK: jax.Array, k_BGTK: jax.Array, v_BGTK: jax.Array, carried: Any, rule: Rule
) -> jax.Array:
    """[B, T, G, R, K]."""
    return _forward(ring, q_BGRTK, k_BGTK, v_BGTK, carried, rule)[0]


def _forward(
    ring: _Ring, q: jax.Array, k: jax.Array, v: jax.Array, carried: Carried, rule: Rule
) -> tuple[jax.Array, Any]:
    *arguments, of_out, of_logsumexp = ring.layouts(rule)

    def one_device(
        q: jax.Array, k: jax.Array, v: jax.Array, carried: Carried, rule: Rule
    ) -> tuple[jax.Array, jax.Array]:
        T = q.shape[3]
        q, k, v, queries, keys = _filled(q, k, v, carried, rule.tile)

        def step(_: int, state: Any) -> Any:
            running, held = state
            # Nothing in the step needs what arrives, so that it may arrive meanwhile.
            arriving = ring.onward(held)
            return _attend(running, q, held, queries, rule), arriving

        state = Running.empty(q), (k, v, keys)
        running, held = jax.lax.fori_loop(0, ring.size - 1, step, state)
        out, logsumexp = _attend(running, q, held, queries, rule).result()
        out = out[:, :, :, :T].astype(v.dtype)
        return jnp.transpose(out, (0, 3, 1, 2, 4)), logsumexp[..., :T]

    f = ring.on_each_device(one_device, tuple(arguments), (of_out, of_logsumexp))
    out, logsumexp = (checkpoint_name(x, "attention") for x in f(q, k, v, carried, rule))
    return out, (q, k, v, carried, rule, out, logsumexp)


def _attend(running: Running, q: jax.Array, held: Any, queries: Tokens, rule: Rule) -> Running:
    k, v, keys = held
    return ring_block.attend(running, q, k, v, queries, keys, rule)


def _backward(ring: _Ring, residuals: Any, d_out_BTGRK: jax.Array) -> tuple[Any, ...]:
    rule = residuals[4]
    arguments = ring.layouts(rule)
    of_q, of_k, of_v, *_, of_out, _ = arguments

    def one_device(
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        carried: Carried,
        rule: Rule,
        out: jax.Array,
        logsumexp: jax.Array,
        d_out: jax.Array,
    ) -> tuple[jax.Array, ...]:
        T, kinds = q.shape[3], (q.dtype, k.dtype, v.dtype)
        delta = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), -1)
        q, k, v, queries, keys = _filled(q, k, v, carried, rule.tile)
        d_out = ring_block.padded(jnp.transpose(d_out, (0, 2, 3, 1, 4)), rule.tile, 3)
        delta = ring_block.padded(jnp.transpose(delta, (0, 2, 3, 1)), rule.tile, 3)
        logsumexp = ring_block.padded(logsumexp, rule.tile, 3)

        def parts(dq: jax.Array, held: Any) -> tuple[jax.Array, Any]:
            """dq with the part of these keys, and their own gradients from these queries."""
            k, v, keys = held
            zeros = (jnp.zeros(x.shape, jnp.float32) for x in (k, v))
            dq, dk, dv = ring_block.attend_backward(
                (dq, *zeros), q, k, v, queries, keys, rule, logsumexp, d_out, delta
            )
            return dq, (dk, dv)

        def step(_: int, state: Any) -> Any:
            dq, held, so_far = state
            # Both travel while the step computes.
            next_held, so_far = ring.onward(held), ring.onward(so_far)
            dq, new = parts(dq, held)
            return dq, next_held, jax.tree.map(jnp.add, so_far, new)

        held = (k, v, keys)
        next_held = ring.onward(held)
        dq, gradients = parts(jnp.zeros(q.shape, jnp.float32), held)
        dq, _, gradients = jax.lax.fori_loop(1, ring.size, step, (dq, next_held, gradients))
        dk, dv = ring.onward(gradients)
        results = dq[:, :, :, :T], dk[:, :, :T], dv[:, :, :T]
        return tuple(x.astype(kind) for x, kind in zip(results, kinds, strict=True))

    f = ring.on_each_device(one_device, (*arguments, of_out), (of_q, of_k, of_v))
    return (*f(*residuals, d_out_BTGRK), None, None)


_attention.defvjp(_forward, _backward)


def _filled(
    q_BGRTK: jax.Array, k_BGTK: jax.Array, v_BGTK: jax.Array, carried: Carried, tile: int
) -> tuple[jax.Array, jax.Array, jax.Array, Tokens, Tokens]:
    """q, k, v and what queries and keys carry, of a length that is a multiple of the tile."""
    slots, of_queries, of_keys = carried
    return (
        ring_block.padded(q_BGRTK, tile, 3),
        ring_block.padded(k_BGTK, tile, 2),
        ring_block.padded(v_BGTK, tile, 2),
        ring_block.pad_tokens(Tokens(slots, of_queries), tile),
        ring_block.pad_tokens(Tokens(slots, of_keys), tile),
    )
