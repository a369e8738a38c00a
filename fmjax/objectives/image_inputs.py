"""What the objectives over images share."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fmjax.core.errors import DataError
from fmjax.objectives.inputs import Batch, target


def forward_images(
    apply: Callable[..., Any],
    variables: Any,
    pixel_values: jax.Array,
    rng: jax.Array | None,
    **inputs: Any,
) -> Any:
    """The model's output for pixel_values f32 [B, H, W, C]; `rng` None evaluates."""
    rngs = {} if rng is None else {"rngs": {"dropout": rng}}
    return apply(variables, pixel_values=pixel_values, **inputs, **rngs)


def pixels(batch: Batch, name: str = "pixel_values", axes: str = "B, H, W, C") -> jax.Array:
    """An array of images of the batch, with these axes.

    Raises:
      DataError: it is missing, or has another number of dimensions.
    """
    x = batch.get(name)
    if x is None or x.ndim != axes.count(",") + 1:
        got = "missing" if x is None else f"of shape {x.shape}"
        raise DataError(f"{name} is {got}; it must be [{axes}], see fmjax.data.augment")
    return x


def row_weight(batch: Batch, rows: int) -> jax.Array:
    """The weight of each row, f32 [B]: the batch's example_weight, else 1.

    Raises:
      DataError: example_weight is not a float for each row.
    """
    if "example_weight" not in batch:
        return jnp.ones(rows, jnp.float32)
    what = "0 on rows that only fill the batch"
    return target(batch, "example_weight", jnp.floating, [(rows,)], what).astype(jnp.float32)
