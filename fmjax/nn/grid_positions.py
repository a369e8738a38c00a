"""Images as grids of patches, and position tables made for another grid.

Shapes: h × w the grid that a table was trained on, H × W the grid of the image, D hidden size.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from fmjax.core.errors import DataError

_CUBIC = -0.75  # the slope of torch's kernel; others take -0.5


def patch_grid(pixel_values: jax.Array, patch_size: int, num_channels: int) -> tuple[int, int]:
    """(H, W), the whole patches that images [B, height, width, C] are cut into.

    Raises:
      DataError: not such an array, other channels than the model's, or less than one patch.
    """
    shape = pixel_values.shape
    if len(shape) != 4 or shape[-1] != num_channels:
        raise DataError(
            f"pixel_values {shape} must be [batch, height, width, {num_channels}]; "
            "move the channels last"
        )
    grid = (shape[1] // patch_size, shape[2] // patch_size)
    if min(grid) < 1:
        raise DataError(
            f"pixel_values {shape} are smaller than a patch of {patch_size} × {patch_size}; "
            "resize the images"
        )
    return grid


def resize_positions(
    table: jax.Array, source: tuple[int, int], target: tuple[int, int]
) -> jax.Array:
    """Position vectors [h · w, D] → [H · W, D] by bicubic interpolation, as torch computes it.

    Without antialiasing, corners not aligned, indices clamped at the border: what
    `torch.nn.functional.interpolate(mode="bicubic")` does. The same grid gives the table itself.

    Args:
      table: row by row over the grid.
      source: (h, w).
      target: (H, W).
    """
    if source == target:
        return table
    dtype = table.dtype
    grid = table.astype(jnp.float32).reshape(*source, -1)
    highest = jax.lax.Precision.HIGHEST
    for axis, (old, new) in enumerate(zip(source, target, strict=True)):
        # Equal sizes are not left out where the other axis differs: their weights are 0 and 1.
        moved = jnp.tensordot(bicubic(old, new), grid, (1, axis), precision=highest)
        grid = jnp.moveaxis(moved, 0, axis)
    return grid.reshape(-1, table.shape[-1]).astype(dtype)


@functools.cache
def bicubic(source: int, target: int) -> np.ndarray:
    """The matrix f32 [target, source] of bicubic interpolation along one axis (Keys, 1981)."""
    place = (np.arange(target) + 0.5) * (source / target) - 0.5
    first = np.floor(place).astype(int)
    t = place - first
    weights = np.zeros((target, source), np.float64)
    for tap in (-1, 0, 1, 2):
        index = np.clip(first + tap, 0, source - 1)
        np.add.at(weights, (np.arange(target), index), _kernel(np.abs(t - tap)))
    return weights.astype(np.float32)


def _kernel(x: np.ndarray) -> np.ndarray:
    a = _CUBIC
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
