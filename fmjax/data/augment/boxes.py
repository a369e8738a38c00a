"""Which part of each image is cut out: random boxes for training, the middle for evaluation."""

import jax
import jax.numpy as jnp

from fmjax.data.augment.resample import Method, axis_weights, resample

ATTEMPTS = 10


def random_boxes(
    key: jax.Array,
    image_size: jax.Array,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> jax.Array:
    """Boxes of a random area and aspect ratio, as torchvision's `RandomResizedCrop` draws them.

    The first of ten tries that fits into the image; where none does, the middle of the image, cut
    to the nearest allowed ratio.

    Args:
      key: for all images.
      image_size: i32 [B, 2], height and width of each image without its padding.
      scale: range of the box's share of the area, drawn uniformly.
      ratio: range of width / height, drawn log-uniformly.

    Returns:
      f32 [B, 4]: top, left, height, width in whole pixels.
    """
    B = image_size.shape[0]
    H, W = jnp.moveaxis(jnp.maximum(image_size, 1).astype(jnp.float32), -1, 0)
    keys = jax.random.split(key, 4)
    area = H * W
    tries = (B, ATTEMPTS)
    target = area[:, None] * jax.random.uniform(keys[0], tries, minval=scale[0], maxval=scale[1])
    low, high = jnp.log(jnp.array(ratio, jnp.float32))
    aspect = jnp.exp(jax.random.uniform(keys[1], tries, minval=low, maxval=high))
    width = jnp.round(jnp.sqrt(target * aspect))
    height = jnp.round(jnp.sqrt(target / aspect))
    fits = (width > 0) & (height > 0) & (width <= W[:, None]) & (height <= H[:, None])
    chosen = jnp.argmax(fits, -1)[:, None]
    found = jnp.any(fits, -1)
    # Else the middle, of the nearest ratio.
    shape = W / H
    fallback_w = jnp.where(shape > ratio[1], jnp.round(H * ratio[1]), W)
    fallback_h = jnp.where(shape < ratio[0], jnp.round(W / ratio[0]), H)
    w = jnp.where(found, jnp.take_along_axis(width, chosen, -1)[:, 0], fallback_w)
    h = jnp.where(found, jnp.take_along_axis(height, chosen, -1)[:, 0], fallback_h)

    def place(key: jax.Array, room: jax.Array) -> jax.Array:
        drawn = jnp.floor(jax.random.uniform(key, (B,)) * (room + 1))
        return jnp.where(found, jnp.minimum(drawn, room), jnp.floor(room / 2))

    return jnp.stack([place(keys[2], H - h), place(keys[3], W - w), h, w], -1)


def center_crop(
    images: jax.Array,
    image_size: jax.Array,
    resize: int,
    size: int,
    method: Method = "bilinear",
    antialias: bool = True,
) -> jax.Array:
    """Resizes the shorter side to `resize` and cuts the middle [size, size] out.

    The longer side becomes ⌊resize · longer / shorter⌋ pixels, as in torchvision. Where `size` is
    larger than the resized image, what lies outside is black.

    Args:
      images: u8 or f32 [B, H, W, C].
      image_size: i32 [B, 2], height and width of each image without its padding.
      resize, size: pixels.
      method, antialias: see `axis_weights`.

    Returns:
      f32 [B, size, size, C]; u8 images become numbers in [0, 1].
    """
    real_B2 = jnp.maximum(image_size, 1)
    short = jnp.min(real_B2, -1, keepdims=True)
    resized_B2 = (resize * real_B2 // short).astype(jnp.float32)
    real_B2 = real_B2.astype(jnp.float32)
    scale_B2 = real_B2 / resized_B2
    # As torchvision rounds: half to even.
    start_B2 = jnp.round((resized_B2 - size) / 2)
    origin_B2 = start_B2 * scale_B2
    matrices = []
    for axis in range(2):
        zero, high = jnp.zeros_like(real_B2[:, axis]), real_B2[:, axis]
        weights = axis_weights(
            origin_B2[:, axis],
            scale_B2[:, axis],
            zero,
            high,
            images.shape[1 + axis],
            size,
            method,
            antialias,
        )
        place = start_B2[:, axis, None] + jnp.arange(size)
        inside = (place >= 0) & (place < resized_B2[:, axis, None])
        matrices.append(jnp.where(inside[..., None], weights, 0))
    return resample(images, *matrices)
