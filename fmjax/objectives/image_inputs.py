"""What the objectives over images share."""

from collections.abc import Callable
from typing import Any

import jax

from fmjax.core.errors import DataError
from fmjax.objectives.inputs import Batch


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
