"""Fixed positions of patches: sines and cosines of their columns and rows."""

import numpy as np

from fmjax.core.errors import ConfigError


def sincos(grid: tuple[int, int], features: int, base: float = 10000.0) -> np.ndarray:
    """Positions f32 [rows · columns, D], as masked autoencoders have them (arXiv:2111.06377).

    A quarter of the features each is the sine and the cosine of the column, then of the row, at
    wavelengths from 2π to 2π · base. (The original means rows first, but its two grids are named
    the other way round; published weights have it so.)

    Args:
      grid: (rows, columns) of patches.
      features: D, a multiple of 4.
      base: of the wavelengths.

    Raises:
      ConfigError: D is no multiple of 4.
    """
    if features % 4:
        raise ConfigError(f"sines and cosines of rows and columns need 4 | D; D is {features}")
    frequencies = base ** -(np.arange(features // 4) / (features // 4))
    rows, columns = np.indices(grid)
    parts = []
    for place in (columns, rows):
        angles = np.outer(place.reshape(-1), frequencies)
        parts += [np.sin(angles), np.cos(angles)]
    return np.concatenate(parts, 1).astype(np.float32)
