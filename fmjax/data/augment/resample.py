"""Crops and resizes as two small matrix products, each image of a batch with its own box.

Legend: B images, H W input and P Q output pixels, C channels. Everything runs on the device: no
gathers and no loops, static shapes, and a flip is a matrix read backwards.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from fmjax.core.errors import ConfigError

Method = Literal["bilinear", "bicubic"]
METHODS = ("bilinear", "bicubic")


def check_method(method: str) -> None:
    """Raises ConfigError for a filter that there is not."""
    if method not in METHODS:
        raise ConfigError(f"resampling method {method!r} is unknown; use {' or '.join(METHODS)}")


def axis_weights(
    origin: jax.Array,
    scale: jax.Array,
    low: jax.Array,
    high: jax.Array,
    inputs: int,
    outputs: int,
    method: Method = "bilinear",
    antialias: bool = True,
) -> jax.Array:
    """The matrix that resamples one axis: output pixel p lies at origin + (p + ½) · scale.

    With `antialias` it is Pillow's (and torch's `interpolate(antialias=True)`): the filter grows
    with the scale, cubic a = −½, and weights of pixels outside [low, high) are shared by the rest.
    Without, it is torch's `interpolate`: the filter has the input's width, cubic a = −¾, and the
    pixels at the border stand for those beyond it.

    Args:
      origin: f32 [B], where the output begins, in input pixels (0 is the left edge of the first).
      scale: f32 [B], input pixels for one output pixel.
      low, high: f32 [B], the pixels that may be read, as whole numbers.
      inputs, outputs: sizes H and P.
      method: the filter.
      antialias: see above.

    Returns:
      f32 [B, P, H], rows that sum to 1.

    Raises:
      ConfigError: an unknown method.
    """
    check_method(method)
    centre_BP = origin[:, None] + (jnp.arange(outputs) + 0.5) * scale[:, None]
    pixel_H = jnp.arange(inputs, dtype=jnp.float32)
    low, high = low[:, None, None], high[:, None, None]
    if antialias:
        stretch = jnp.maximum(scale, 1)[:, None, None]
        distance = (pixel_H + 0.5 - centre_BP[..., None]) / stretch
        weights = _filter(distance, method, -0.5)
        weights = jnp.where((pixel_H >= low) & (pixel_H < high), weights, 0)
        return weights / jnp.sum(weights, -1, keepdims=True)
    first = jnp.floor(centre_BP - 0.5)
    taps = range(-1, 3) if method == "bicubic" else range(2)
    weights = jnp.zeros((*centre_BP.shape, inputs), jnp.float32)
    for tap in taps:
        at = first + tap
        share = _filter(at + 0.5 - centre_BP, method, -0.75)[..., None]
        at = jnp.clip(at[..., None], low, high - 1)
        weights += jnp.where(pixel_H == at, share, 0)
    return weights


def _filter(x: jax.Array, method: str, a: float) -> jax.Array:
    """The filter's value at a distance: a triangle, or Keys' cubic convolution."""
    x = jnp.abs(x)
    if method == "bilinear":
        return jnp.maximum(1 - x, 0)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return jnp.where(x < 1, near, jnp.where(x < 2, far, 0))


def resample(images: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Applies the matrices of both axes to images [B, H, W, C] → f32 [B, P, Q, C].

    Those of rows are [B, P, H], those of columns [B, Q, W]. u8 images become numbers in [0, 1];
    what a cubic filter overshoots is kept.
    """
    x = images.astype(jnp.float32)
    # Accelerators would round the factors to bfloat16, which is coarser than eight bits of colour.
    x = jnp.einsum("bph,bhwc->bpwc", rows, x, precision="highest")
    x = jnp.einsum("bqw,bpwc->bpqc", columns, x, precision="highest")
    return x / 255 if jnp.issubdtype(images.dtype, jnp.integer) else x


def crop_resize(
    images: jax.Array,
    boxes: jax.Array,
    size: tuple[int, int],
    method: Method = "bilinear",
    antialias: bool = True,
    flip: jax.Array | None = None,
) -> jax.Array:
    """Cuts a box out of each image and resizes it; nothing outside of the box is read.

    Args:
      images: u8 or f32 [B, H, W, C].
      boxes: f32 [B, 4]: top, left, height, width in whole pixels.
      size: (P, Q).
      method, antialias: see `axis_weights`.
      flip: bool [B], mirrored left to right.

    Returns:
      f32 [B, P, Q, C]; u8 images become numbers in [0, 1].
    """
    top, left, height, width = jnp.moveaxis(boxes.astype(jnp.float32), -1, 0)
    P, Q = size
    shape = images.shape
    rows = axis_weights(top, height / P, top, top + height, shape[1], P, method, antialias)
    columns = axis_weights(left, width / Q, left, left + width, shape[2], Q, method, antialias)
    if flip is not None:
        columns = jnp.where(flip[:, None, None], columns[:, ::-1], columns)
    return resample(images, rows, columns)


def whole_images(images: jax.Array) -> jax.Array:
    """image_size i32 [B, 2] of images without any padding."""
    return jnp.broadcast_to(jnp.array(images.shape[1:3], jnp.int32), (images.shape[0], 2))
