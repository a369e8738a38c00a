"""Images as patches: cutting, putting together, embedding.

Shapes: B batch, H × W pixels, C channels, p × q a patch, P = (H / p) · (W / q) patches, row by row.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.core.errors import DataError
from fmjax.core.execution import Execution
from fmjax.nn.conv import Conv

Pair = tuple[int, int]


def patchify(pixels: jax.Array, patch: Pair) -> jax.Array:
    """[B, H, W, C] → [B, P, p · q · C]: the pixels of a patch row by row, channels last.

    Raises:
      DataError: H or W is no multiple of the patch.
    """
    B, H, W, C = pixels.shape
    p, q = patch
    if H % p or W % q:
        raise DataError(
            f"images of {H} × {W} are not made of whole patches of {p} × {q}; crop or resize them"
        )
    x = pixels.reshape(B, H // p, p, W // q, q, C).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(B, (H // p) * (W // q), p * q * C)


def unpatchify(patches: jax.Array, patch: Pair, grid: Pair) -> jax.Array:
    """The inverse of `patchify`: [B, P, p · q · C] → [B, H, W, C].

    Args:
      patches: of P = rows · columns patches.
      patch: (p, q).
      grid: (rows, columns).

    Raises:
      DataError: another number of patches than the grid's.
    """
    B, P, N = patches.shape
    (p, q), (rows, columns) = patch, grid
    if P != rows * columns or N % (p * q):
        raise DataError(
            f"patches {patches.shape} are not a grid of {rows} × {columns} patches of {p} × {q}"
        )
    x = patches.reshape(B, rows, columns, p, q, N // (p * q)).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(B, rows * p, columns * q, N // (p * q))


class PatchEmbeddings(nn.Module):
    """One vector a patch: pixels [B, H, W, C] → [B, P, D], and the grid (rows, columns).

    What is left of an image beside whole patches, right and below, is not looked at.

    Attributes:
      features: D.
      patch: (p, q).
      channels: C.
      use_bias: of the projection.
      kernel_init: of the kernel [p, q, C, D], as a matrix [p · q · C, D].
      execution: precision.
    """

    features: int
    patch: Pair
    channels: int
    use_bias: bool = True
    kernel_init: Callable[..., jax.Array] = nn.initializers.normal(0.02)
    execution: Execution = Execution()

    @nn.compact
    def __call__(self, pixels: jax.Array) -> tuple[jax.Array, Pair]:
        """Projects every patch.

        Raises:
          DataError: integers, another layout or number of channels, less than one patch.
        """
        check_pixels(pixels, self.channels, self.patch)

        def init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
            matrix = (shape[0] * shape[1] * shape[2], shape[3])
            return self.kernel_init(key, matrix, dtype).reshape(shape)

        x = Conv(
            self.features,
            self.patch,
            (None, "embed"),
            self.patch,
            use_bias=self.use_bias,
            kernel_init=init,
            execution=self.execution,
            name="projection",
        )(pixels)
        B, rows, columns, D = x.shape
        return x.reshape(B, rows * columns, D), (rows, columns)


def check_pixels(pixels: jax.Array, channels: int, patch: Pair) -> None:
    """Refuses what is no batch of images [B, H, W, C] for a model.

    Raises:
      DataError: integers, another layout or number of channels, less than one patch.
    """
    shape = pixels.shape
    if len(shape) != 4 or shape[3] != channels:
        hint = "images are [batch, height, width, channels]"
        if len(shape) == 4 and shape[1] == channels:
            hint += ", so transpose these: x.transpose(0, 2, 3, 1)"
        raise DataError(f"pixel_values {shape}: the model reads {channels} channels; {hint}")
    if not jnp.issubdtype(pixels.dtype, jnp.floating):
        raise DataError(
            f"pixel_values are {pixels.dtype}; normalise them first: they must be floating"
        )
    if shape[1] < patch[0] or shape[2] < patch[1]:
        raise DataError(
            f"pixel_values {shape} are smaller than one patch of {patch[0]} × {patch[1]}"
        )
