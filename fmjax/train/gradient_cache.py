"""Contrastive losses of batches whose activations do not fit: gradient cache (arXiv:2101.06983).

Such a loss compares all rows of a batch, but each row is embedded by itself. So the rows are
embedded part by part, and only the embeddings are kept; the loss and its gradient by the embeddings
are those of the whole batch; then each part is embedded once more to carry its share of that
gradient into the parameters. The update is that of the whole batch, for the activations of one part
and one more forward pass.
"""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from fmjax.core.errors import ConfigError
from fmjax.train.gradients import in_parts


def can_cache(objective: Any) -> bool:
    """Whether an objective is `embed` and `compare`."""
    return hasattr(objective, "embed") and hasattr(objective, "compare")


def check_parts(objective: Any, parts: int) -> None:
    """Raises ConfigError where a batch of the objective cannot come in so many parts."""
    if parts == 1 or getattr(objective, "decomposes", True) or can_cache(objective):
        return
    nested = [objective]
    while hasattr(nested[-1], "objective"):
        nested.append(nested[-1].objective)
    # Parts may be kept from an objective that could embed them by what is put around it.
    around = [x for x, own in itertools.pairwise(nested) if can_cache(own) and not can_cache(x)]
    why = ""
    if around:
        reason = getattr(around[0], "undivided", "which does not embed it in parts")
        why = f" within {type(around[0]).__name__}, {reason}"
    raise ConfigError(
        f"{type(nested[-1]).__name__} compares the examples of a whole batch and cannot be "
        f"accumulated{why}; use accumulate=1 (got {parts})"
    )


def loss_in_parts(
    objective: Any,
    parts: int,
    apply: Callable[..., Any],
    variables: Any,
    extra: Any,
    batch: Any,
    rng: jax.Array | None,
) -> Any:
    """`objective.loss`, its rows embedded in parts. Its gradient is the cached one.

    Each part is rematerialised, so the backward pass of the loop over them is the second half of
    the algorithm. Gradients are summed over the parts in the dtype of the parameters.

    Args:
      objective: with `embed(apply, variables, batch, rng) → embeddings`, a dict of arrays [B, …]
        and of scalars that depend on the variables only, and `compare(embeddings, batch) →
        (loss_sum, weight, metrics)`.
      parts: that divide the batch.
      apply, variables, extra, batch: of `objective.loss`.
      rng: part i gets fold_in(rng, i); None evaluates, in one piece, as nothing is kept then.
    """
    if rng is None:
        return objective.loss(apply, variables, extra, batch, rng)

    # The parameters are an argument, so that their gradient is summed and not kept for each part.
    @partial(jax.checkpoint, prevent_cse=False)
    def embed(variables: Any, batch: Any, index: jax.Array) -> Any:
        return objective.embed(apply, variables, batch, jax.random.fold_in(rng, index))

    def body(_: None, part: Any) -> tuple[None, Any]:
        return None, embed(variables, *part)

    _, found = jax.lax.scan(body, None, (in_parts(batch, parts), jnp.arange(parts)))

    def whole(x: jax.Array) -> jax.Array:
        # The inverse of `in_parts`; a scalar is the same in all of them.
        return x[0] if x.ndim == 1 else jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])

    return *objective.compare(jax.tree.map(whole, found), batch), extra
