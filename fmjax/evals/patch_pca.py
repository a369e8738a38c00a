"""Pictures of what a vision transformer's patches have in common: their principal components.

Shapes: B images, h × w patches, D width, C components.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fmjax.core.errors import DataError


class PatchPca(NamedTuple):
    """Three components as colours.

    Attributes:
      colours: f32[B, h, w, 3] in 0 to 1; 0 outside of the foreground.
      foreground: bool[B, h, w]; all True where no background was taken away.
      explained: f32[3], share of the (foreground) patches' variance in each component.
    """

    colours: np.ndarray
    foreground: np.ndarray
    explained: np.ndarray


def patch_pca(patches: Any, *, background: bool = False) -> PatchPca:
    """Principal components of the patches of all images together, as red, green and blue.

    Components of common origin get common colours, over all images (Oquab et al. 2023).

    Args:
      patches: f[B, h, w, D], such as the last hidden state without its first tokens.
      background: take away the patches on that side of 0 along the first component on which more of
        the images' borders lie, and colour the rest by components of its own.

    Raises:
      DataError: another shape, values that are not finite, or fewer than four patches to compare.
    """
    patches = np.asarray(patches, np.float32)
    if patches.ndim != 4 or not np.isfinite(patches).all():
        raise DataError(
            f"patches {list(patches.shape)} must be finite and [images, rows, columns, width]"
        )
    width = patches.shape[-1]
    if width < 3 or patches.size < 4 * width:
        raise DataError(f"patches {list(patches.shape)}: three components need four patches of 3")
    foreground = np.ones(patches.shape[:3], bool)
    if background:
        first = principal_components(patches.reshape(-1, width), 1)[0].reshape(foreground.shape)
        border = np.ones_like(foreground)
        border[:, 1:-1, 1:-1] = False
        foreground = first < 0 if (first[border] > 0).mean() > 0.5 else first > 0
        if foreground.sum() < 4:
            raise DataError("patches: no foreground is left; use background=False")
    found, explained = principal_components(patches[foreground], 3)
    low, high = found.min(0), found.max(0)
    colours = np.zeros((*foreground.shape, 3), np.float32)
    colours[foreground] = (found - low) / np.where(high > low, high - low, 1)
    return PatchPca(colours, foreground, explained)


def principal_components(x: Any, number: int) -> tuple[np.ndarray, np.ndarray]:
    """(f32[N, C] coordinates along the directions of largest variance, f32[C] shares of it).

    The largest entry of each direction is positive, so that signs do not depend on the machine.

    Args:
      x: f[N, D].
      number: C, at most D.
    """
    return tuple(jax.device_get(_components(np.asarray(x, np.float32), number)))


@functools.partial(jax.jit, static_argnums=1)
def _components(x_ND: jax.Array, number: int) -> tuple[jax.Array, jax.Array]:
    with jax.default_matmul_precision("highest"):
        x_ND = x_ND - x_ND.mean(0)
        variances_D, directions_DD = jnp.linalg.eigh(x_ND.T @ x_ND)
        directions_DC = directions_DD[:, ::-1][:, :number]
        largest_C = jnp.argmax(jnp.abs(directions_DC), 0)
        signs_C = jnp.sign(jnp.take_along_axis(directions_DC, largest_C[None], 0))
        total = variances_D.sum()
        shares_C = variances_D[::-1][:number] / jnp.where(total > 0, total, 1)
        return x_ND @ (directions_DC * signs_C), shares_C
