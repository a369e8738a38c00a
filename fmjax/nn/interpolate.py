"""Bicubic interpolation of small grids, as torch's `interpolate` computes it.

A resampling along one axis is linear: a matrix that depends on the two sizes alone, made by numpy
while a model is traced. Two products with it are exact in float32 and need no gather on a device.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np


@functools.lru_cache(maxsize=256)
def bicubic_weights(old: int, new: int, antialias: bool = False) -> np.ndarray:
    """The matrix f32 [new, old] that resamples `old` values to `new` (align_corners=False).

    Args:
      old, new: sizes.
      antialias: False: Keys' kernel with a = −0.75 over four values, those outside repeating the
        border, as torch's bicubic. True: a = −0.5, stretched when the size shrinks, only over
        values that exist, as Pillow and torch with antialias=True.
    """
    weights = np.zeros((new, old))
    scale = old / new
    for i in range(new):
        centre = scale * (i + 0.5)
        if antialias:
            stretch = max(scale, 1.0)
            first = max(int(centre - 2 * stretch + 0.5), 0)
            last = min(int(centre + 2 * stretch + 0.5), old)
            row = np.array([_keys((j + 0.5 - centre) / stretch, -0.5) for j in range(first, last)])
            weights[i, first:last] = row / row.sum()
        else:
            left = math.floor(centre - 0.5)
            for j in range(left - 1, left + 3):
                weights[i, min(max(j, 0), old - 1)] += _keys(j + 0.5 - centre, -0.75)
    return weights.astype(np.float32)


def _keys(x: float, a: float) -> float:
    """The cubic convolution kernel of R. Keys (1981)."""
    x = abs(x)
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    if x < 2:
        return ((x - 5) * x + 8) * x * a - 4 * a
    return 0.0


def interpolate_grid(
    table: jax.Array, old: tuple[int, int], new: tuple[int, int], antialias: bool = False
) -> jax.Array:
    """Vectors on a grid of another size.

    Args:
      table: [old rows · old columns, D], row by row.
      old, new: (rows, columns).
      antialias: see `bicubic_weights`.

    Returns:
      f32 [new rows · new columns, D].
    """
    down, across = (bicubic_weights(o, n, antialias) for o, n in zip(old, new, strict=True))
    grid = table.astype(jnp.float32).reshape(*old, -1)
    # TPUs would round the operands to bfloat16.
    grid = jnp.einsum("pr,rcd,qc->pqd", down, grid, across, precision=jax.lax.Precision.HIGHEST)
    return grid.reshape(new[0] * new[1], -1)
