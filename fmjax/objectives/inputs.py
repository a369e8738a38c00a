"""What the objectives share: their inputs, checked while a step is traced, and having no state."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from fmjax.core.errors import ConfigError, DataError

Batch = Mapping[str, jax.Array]
Sums = tuple[jax.Array, jax.Array]
Metrics = dict[str, Sums]

IGNORE = -100
"""The label that is not predicted, as in Hugging Face's collators."""

# Not position_ids: encoders number the rows of their tables each in its own way (RoBERTa's start at
# 2), also within the segments of a packed row.
INPUTS = ("attention_mask", "token_type_ids")


class Stateless:
    """An objective that keeps nothing but the variables between steps."""

    def init(self, variables: Any) -> dict[str, Any]:
        """No state."""
        return {}


class OverExamples(Stateless):
    """One over examples rather than tokens: the speed of a run is told in them."""

    unit: ClassVar[str] = "examples"


def forward(
    apply: Callable[..., Any],
    variables: Any,
    batch: Batch,
    rng: jax.Array | None,
    names: Sequence[str] = INPUTS,
) -> Any:
    """The model's output for input_ids and those of `names` that the batch has.

    Args:
      apply: `model.apply`.
      variables: of the model.
      batch: input_ids i32[B, T], …
      rng: key for dropout; None evaluates.
      names: of the other inputs.
    """
    inputs = {name: batch[name] for name in ("input_ids", *names) if name in batch}
    rngs = {} if rng is None else {"rngs": {"dropout": rng}}
    return apply(variables, **inputs, **rngs)


def output_field(output: Any, name: str, ndim: int, head: str) -> jax.Array:
    """A field of the model's output.

    Raises:
      ConfigError: the model has another head, whose output lacks it.
    """
    x = getattr(output, name, None)
    if x is None or x.ndim != ndim:
        raise ConfigError(
            f"{type(output).__name__} has no {name} of {ndim} dimensions; the model needs the head "
            f"{head!r}: from_pretrained(dir, override={{'head': {head!r}, …}}, new_head=key)"
        )
    return x


def target(
    batch: Batch, name: str, kind: type, shapes: Sequence[tuple[int, ...]], what: str
) -> jax.Array:
    """An array of the batch that the loss compares with the model's output.

    Args:
      batch: arrays by name.
      name: of the array.
      kind: `jnp.integer` or `jnp.floating`.
      shapes: that it may have.
      what: it means, for the error.

    Raises:
      DataError: it is missing, or of another kind or shape.
    """
    needed = f"{kind.__name__} of shape {' or '.join(map(str, shapes))}, {what}"
    if name not in batch:
        raise DataError(f"the batch has no {name}; it needs {needed}")
    x = jnp.asarray(batch[name])
    if x.shape not in shapes or not jnp.issubdtype(x.dtype, kind):
        raise DataError(f"{name} is {x.dtype} of shape {x.shape}; it must be {needed}")
    return x


def example_weight(batch: Batch) -> jax.Array:
    """The weight of each row, f32[B]: the batch's example_weight, else 1.

    Raises:
      DataError: example_weight is not a float for each row.
    """
    B = next(iter(batch.values())).shape[0]
    if "example_weight" not in batch:
        return jnp.ones(B, jnp.float32)
    what = "0 on rows that only fill the batch"
    return target(batch, "example_weight", jnp.floating, [(B,)], what).astype(jnp.float32)
