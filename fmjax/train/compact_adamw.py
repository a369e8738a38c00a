"""AdamW that computes in float32, whatever its parameters and moments are stored in."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fmjax.core import logical
from fmjax.train import moments
from fmjax.train.moments import Blockwise

MOMENT_DTYPES = ("float32", "bfloat16", "int8")
"""Ways to store both moments: 8, 4 and about 2.03 bytes for each parameter."""

MIN_INT8 = 4096
"""Leaves with fewer elements keep float32 moments, as bitsandbytes' `min_8bit_size`."""

SLICE = 1 << 20
"""Elements of a stacked leaf from which on it is updated layer by layer."""


def compact_adamw(
    learning_rate: optax.ScalarOrSchedule,
    moment_dtype: str,
    *,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: optax.ScalarOrSchedule,
    mask: Callable[[Any], Any],
) -> optax.GradientTransformation:
    """AdamW with both moments in one of `MOMENT_DTYPES`; the parameters may be bfloat16.

    The state is an `optax.ScaleByAdamState`. Moments, bias correction, decay and rate are computed
    in float32, and the update is rounded once, to its parameter's dtype.

    - "float32": the moments as they are.
    - "bfloat16": the second moment is rounded stochastically.
    - "int8": AdamW8bit of bitsandbytes (arXiv:2110.02861), see `fmjax.train.moments`, for leaves of
      at least `MIN_INT8` elements. A leaf here is the stack of all layers, with its matrices as
      [in, out]; blocks are cut from that. On a mesh codes and scales are split as their parameter;
      where a block would be cut, its scale is on all the devices of that axis.

    Args:
      learning_rate: a float or a schedule.
      moment_dtype: of `MOMENT_DTYPES`.
      b1, b2, eps: as Adam's.
      weight_decay: decoupled; a float or a schedule.
      mask: parameters → tree of bools, which are decayed.
    """

    def empty(x: jax.Array, signed: bool) -> jax.Array | Blockwise:
        if moment_dtype == "int8" and x.size >= MIN_INT8:
            return moments.zeros(x.shape, signed)
        return jnp.zeros(x.shape, jnp.bfloat16 if moment_dtype == "bfloat16" else jnp.float32)

    def init(params: Any) -> optax.ScaleByAdamState:
        mask(params)  # A path without a rule is reported now.
        return optax.ScaleByAdamState(
            jnp.zeros([], jnp.int32),
            jax.tree.map(lambda x: empty(x, True), params),
            jax.tree.map(lambda x: empty(x, False), params),
        )

    def update(grads: Any, state: Any, params: Any) -> tuple[Any, optax.ScaleByAdamState]:
        count = optax.safe_increment(state.count)
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
        decay = weight_decay(state.count) if callable(weight_decay) else weight_decay
        bias1, bias2 = (1 - b ** count.astype(jnp.float32) for b in (b1, b2))

        def leaf(decay: float, g: Any, p: Any, m: Any, v: Any) -> tuple[Any, Any, Any]:
            m1 = b1 * _load(m) + (1 - b1) * g.astype(jnp.float32)
            v1 = b2 * _load(v) + (1 - b2) * jnp.square(g.astype(jnp.float32))
            step = m1 / bias1 / (jnp.sqrt(v1 / bias2) + eps) + decay * p.astype(jnp.float32)
            return (-rate * step).astype(p.dtype), _store(m1, m), _store(v1, v, count)

        leaves, treedef = jax.tree.flatten(grads)
        rest = [treedef.flatten_up_to(t) for t in (params, state.mu, state.nu, mask(params))]
        new = [
            _by_layers(leaf, decay if decayed else 0.0, g, p, m, v)
            for g, p, m, v, decayed in zip(leaves, *rest, strict=True)
        ]
        updates, mu, nu = (treedef.unflatten(part) for part in zip(*new, strict=True))
        return updates, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)


def _load(moment: jax.Array | Blockwise) -> jax.Array:
    if isinstance(moment, Blockwise):
        return moments.dequantize(moment)
    return moment.astype(jnp.float32)


def _store(x: jax.Array, like: Any, count: jax.Array | None = None) -> jax.Array | Blockwise:
    if isinstance(like, Blockwise):
        return moments.quantize(x, like.signed)
    if like.dtype == jnp.bfloat16 and count is not None:
        return moments.stochastic_bfloat16(x, count.astype(jnp.uint32))
    return x.astype(like.dtype)


def _by_layers(leaf: Callable[..., Any], decay: float, g: Any, p: Any, m: Any, v: Any) -> Any:
    """Updates a large stack in eight bits layer by layer, in place.

    A block's largest value is known only once its moments are, so that these stand in memory in
    float32: for one layer, here. Nothing reads the stacks but to fetch the next layer from what has
    just been written, so that XLA need not copy them (as a scan would).
    """
    if not isinstance(m, Blockwise) or g.ndim < 3 or g.size < SLICE or m.absmax.shape[0] < len(g):
        return leaf(decay, g, p, m, v)

    shards, step, axis = logical.shards("layers"), partial(leaf, decay), 0
    if shards > 1:  # Each device takes its own layers, one by one.
        step, axis = jax.vmap(step), 1
        g, p, m, v = jax.tree.map(
            lambda x: x.reshape(shards, len(x) // shards, *x.shape[1:]), (g, p, m, v)
        )

    def fetch(stacks: Any, i: Any) -> Any:
        return jax.tree.map(
            lambda x: jax.lax.dynamic_index_in_dim(x, i, axis, keepdims=False), (stacks, p)
        )

    def body(i: jax.Array, carry: Any) -> Any:
        stacks, ((g, m, v), here) = carry
        stacks = jax.tree.map(
            lambda x, new: jax.lax.dynamic_update_index_in_dim(x, new, i, axis),
            stacks,
            step(g, here, m, v),
        )
        return stacks, fetch(stacks, i + 1)  # After the last layer, the last again.

    stacks = (g.astype(p.dtype), m, v)
    new = jax.lax.fori_loop(0, g.shape[axis], body, (stacks, fetch(stacks, 0)))[0]
    return new if shards == 1 else jax.tree.map(lambda x: jax.lax.collapse(x, 0, 2), new)
