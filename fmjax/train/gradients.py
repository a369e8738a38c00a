"""Gradients of a sum, in one piece or accumulated over microbatches."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Loss = Callable[..., tuple[jax.Array, tuple[jax.Array, Any, Any]]]


def summed_gradients(
    loss: Loss,
    trained: Any,
    extra: Any,
    batch: Any,
    key: jax.Array,
    accumulate: int,
    shardings: Any = None,
) -> tuple[dict[str, Any], Any]:
    """Sums over a batch, and what the objective keeps.

    Args:
      loss: (trained, extra, batch, rng) → (loss_sum f32, (weight, metrics, extra)).
      trained: pytree to differentiate by.
      extra: handed from microbatch to microbatch.
      batch: dict of arrays [B, …], B a multiple of `accumulate`.
      key: microbatch i gets fold_in(key, i).
      accumulate: number of microbatches. With more than one, gradients are summed in f32.
      shardings: of `trained` on a mesh; gradients are reduced onto the same shards.

    Returns:
      {"grads", "loss", "weight", "metrics"}, not normalised, and the new extra.
    """

    def one(extra: Any, batch: Any, index: Any) -> tuple[dict[str, Any], Any]:
        rng = jax.random.fold_in(key, index)
        (total, (weight, metrics, extra)), grads = jax.value_and_grad(loss, has_aux=True)(
            trained, extra, batch, rng
        )
        if shardings is not None:
            grads = jax.lax.with_sharding_constraint(grads, shardings)
        return {"grads": grads, "loss": total, "weight": weight, "metrics": metrics}, extra

    if accumulate == 1:
        return one(extra, batch, 0)

    def body(carry: Any, part: Any) -> tuple[Any, None]:
        sums, extra = carry
        new, extra = one(extra, *part)
        return (jax.tree.map(lambda a, b: a + b.astype(a.dtype), sums, new), extra), None

    parts = in_parts(batch, accumulate)
    shapes, _ = jax.eval_shape(one, extra, jax.tree.map(lambda x: x[0], parts), 0)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shapes)
    (sums, extra), _ = jax.lax.scan(body, (zeros, extra), (parts, jnp.arange(accumulate)))
    return sums, extra


def in_parts(batch: Any, parts: int) -> Any:
    """Arrays [B, …] → [parts, B / parts, …].

    Part i is rows i, i + parts, …: each device cuts its own rows, and none move.
    """
    return jax.tree.map(
        lambda x: jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1), batch
    )


def global_norm(grads: Any) -> jax.Array:
    """Euclidean norm over all leaves, f32 []."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(g.astype(jnp.float32))) for g in jax.tree.leaves(grads)))
