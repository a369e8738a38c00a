"""What a masked autoencoder makes of what it does not see, as images.

Shapes: B images of H × W pixels in C channels, N patches of p × q pixels, row by row.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fmjax.core.errors import DataError


class Reconstruction(NamedTuple):
    """Four images for each, u8[B, H, W, C].

    Attributes:
      original: as it was.
      masked: hidden patches are grey.
      predicted: all patches as the model predicts them.
      pasted: hidden patches as predicted, the others as they were.
    """

    original: np.ndarray
    masked: np.ndarray
    predicted: np.ndarray
    pasted: np.ndarray


def reconstruction(
    pixel_values: Any,
    logits: Any,
    mask: Any,
    patch: tuple[int, int],
    *,
    normalized: bool,
    mean: Sequence[float],
    std: Sequence[float],
) -> Reconstruction:
    """Images of a masked autoencoder's predictions (He et al. 2021).

    Args:
      pixel_values: f[B, H, W, C], normalised with mean and std.
      logits: f[B, N, p · q · C], predicted pixels, channels last.
      mask: [B, N], 1 where a patch was hidden.
      patch: (p, q).
      normalized: the model predicts pixels less their patch's mean, divided by its deviation
        (`norm_pix_loss`), which the original then lends.
      mean, std: by channel, of the normalisation.

    Raises:
      DataError: shapes that do not fit.
    """
    pixels, logits = np.asarray(pixel_values, np.float32), np.asarray(logits, np.float32)
    mask, (p, q) = np.asarray(mask), patch
    if pixels.ndim != 4:
        raise DataError(
            f"reconstruction: pixel_values {list(pixels.shape)} must be [images, height, width, "
            "channels]"
        )
    B, H, W, C = pixels.shape
    rows, columns = H // p, W // q
    if (
        (H % p, W % q) != (0, 0)
        or logits.shape != (B, rows * columns, p * q * C)
        or mask.shape != logits.shape[:2]
    ):
        raise DataError(
            f"reconstruction: pixel_values {list(pixels.shape)}, logits {list(logits.shape)} and "
            f"mask {list(mask.shape)} do not fit patches of {p} × {q}"
        )
    cut = pixels.reshape(B, rows, p, columns, q, C).swapaxes(2, 3).reshape(logits.shape)
    if normalized:
        # The variance is unbiased, with the epsilon of the loss.
        deviation = np.sqrt(cut.var(-1, keepdims=True, ddof=1) + 1e-6)
        logits = logits * deviation + cut.mean(-1, keepdims=True)
    hidden = mask[..., None] > 0
    parts = (cut, np.where(hidden, 0.0, cut), logits, np.where(hidden, logits, cut))

    def joined(patches: np.ndarray) -> np.ndarray:
        grid = patches.reshape(B, rows, columns, p, q, C).swapaxes(2, 3)
        return as_images(grid.reshape(B, H, W, C), mean, std)

    return Reconstruction(*map(joined, parts))


def as_images(pixel_values: Any, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """u8[…, H, W, C] of normalised pixels f[…, H, W, C]; what lies outside of 0 to 255 is cut.

    Raises:
      DataError: not one mean and deviation for each channel.
    """
    pixels = np.asarray(pixel_values, np.float32)
    if not len(mean) == len(std) == pixels.shape[-1]:
        raise DataError(
            f"images of {pixels.shape[-1]} channels need as many means and deviations; got "
            f"{len(mean)} and {len(std)}"
        )
    scaled = 255 * (pixels * np.asarray(std, np.float32) + np.asarray(mean, np.float32))
    return np.clip(np.round(scaled), 0, 255).astype(np.uint8)
