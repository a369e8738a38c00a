"""Changes of colour, for each image of a batch by its own amount.

Images are f32 [B, H, W, 3] in [0, 1], factors f32 [B]; the formulas are those of torchvision's
functions on float tensors. Nothing is rounded to eight bits between the steps.
"""

import jax
import jax.numpy as jnp

from fmjax.core.errors import ConfigError

LUMA = (0.2989, 0.587, 0.114)


def per_image(x: jax.Array) -> jax.Array:
    """[B] → [B, 1, 1, 1]."""
    return x[:, None, None, None]


def grayscale(x: jax.Array) -> jax.Array:
    """Brightness of each pixel, [B, H, W, 1].

    Raises:
      ConfigError: images that are not of three channels.
    """
    if x.shape[-1] != 3:
        raise ConfigError(
            f"changes of colour need three channels, the images have {x.shape[-1]}; "
            "switch jitter and grayscale off"
        )
    # Sums of products, not a product of matrices, which accelerators would round.
    return sum(weight * x[..., i : i + 1] for i, weight in enumerate(LUMA))


def blend(x: jax.Array, other: jax.Array, factor: jax.Array) -> jax.Array:
    """other + factor · (x − other), cut to [0, 1]: 0 is `other`, 1 the image, more exaggerates."""
    factor = per_image(factor)
    return jnp.clip(factor * x + (1 - factor) * other, 0, 1)


def brightness(x: jax.Array, factor: jax.Array) -> jax.Array:
    """0 is black, 1 the image."""
    return blend(x, jnp.zeros_like(x), factor)


def contrast(x: jax.Array, factor: jax.Array) -> jax.Array:
    """0 is the even mean gray, 1 the image."""
    return blend(x, jnp.mean(grayscale(x), (1, 2, 3), keepdims=True), factor)


def saturation(x: jax.Array, factor: jax.Array) -> jax.Array:
    """0 is the gray image, 1 the image."""
    return blend(x, grayscale(x), factor)


def hue(x: jax.Array, shift: jax.Array) -> jax.Array:
    """Turns the colours by `shift` of the circle, in [−½, ½], by way of HSV."""
    r, g, b = jnp.moveaxis(x, -1, 0)
    top, bottom = jnp.max(x, -1), jnp.min(x, -1)
    spread = top - bottom
    safe = jnp.where(spread == 0, 1, spread)
    # By order, not by `top == r`: compilers may round the two sides differently. Where two channels
    # tie, both formulas agree.
    red, green = (r >= g) & (r >= b), g >= b
    sixth = jnp.where(red, (g - b) / safe, jnp.where(green, 2 + (b - r) / safe, 4 + (r - g) / safe))
    angle = sixth + 6 * shift[:, None, None]

    # Of each channel: the value less the spread, by how far its own colour is.
    def channel(n: int) -> jax.Array:
        k = jnp.mod(n + angle, 6)
        return top - spread * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)

    return jnp.stack([channel(5), channel(3), channel(1)], -1)


def jitter(key: jax.Array, x: jax.Array, strengths: tuple[float, float, float, float]) -> jax.Array:
    """torchvision's `ColorJitter`: four changes by random amounts, in an order of each image's own.

    Args:
      key: for all images.
      x: f32 [B, H, W, 3] in [0, 1].
      strengths: of brightness, contrast and saturation, whose factors are uniform in
        [max(0, 1 − s), 1 + s], and of hue, whose shift is uniform in [−s, s].
    """
    B = x.shape[0]
    keys = jax.random.split(key, 5)
    order_B4 = jnp.argsort(jax.random.uniform(keys[4], (B, 4)), -1)
    factors_B3 = jnp.stack(
        [
            jax.random.uniform(k, (B,), minval=max(0.0, 1 - s), maxval=1 + s)
            for k, s in zip(keys[:3], strengths[:3], strict=True)
        ],
        -1,
    )
    shift = jax.random.uniform(keys[3], (B,), minval=-strengths[3], maxval=strengths[3])
    return jitter_by(x, factors_B3, shift if strengths[3] else None, order_B4)


def jitter_by(
    x: jax.Array, factors: jax.Array, shift: jax.Array | None, order: jax.Array
) -> jax.Array:
    """`jitter` by given amounts: factors f32 [B, 3], shift f32 [B] or None, order i32 [B, 4].

    The order has 0 for brightness, 1 for contrast, 2 for saturation and 3 for hue.
    """

    def turn(x: jax.Array, now: jax.Array) -> tuple[jax.Array, None]:
        # Three of them blend with another image each, so that one pass does whichever it is.
        light = grayscale(x)
        mean = jnp.mean(light, (1, 2, 3), keepdims=True)
        which = per_image(now)
        other = jnp.where(which == 0, 0.0, jnp.where(which == 1, mean, light))
        factor = jnp.take_along_axis(factors, jnp.minimum(now, 2)[:, None], -1)[:, 0]
        turned = x if shift is None else hue(x, shift)
        return jnp.where(which == 3, turned, blend(x, other, factor)), None

    # A scan: each turn needs the whole image of the one before, and is compiled once.
    return jax.lax.scan(turn, x, order.T)[0]


def solarize(x: jax.Array, threshold: jax.Array | float) -> jax.Array:
    """Inverts the values from `threshold` on (broadcasts to the images)."""
    return jnp.where(x >= threshold, 1 - x, x)


def posterize(x: jax.Array, bits: jax.Array) -> jax.Array:
    """Keeps the upper `bits` (i32 [B], 0 … 8) of each value's eight."""
    mask = 255 - ((1 << (8 - bits)) - 1)
    level = jnp.round(x * 255).astype(jnp.int32)
    return (level & per_image(mask)).astype(jnp.float32) / 255


def autocontrast(x: jax.Array) -> jax.Array:
    """Stretches each channel to [0, 1]; one of a single value stays."""
    low = jnp.min(x, (1, 2), keepdims=True)
    high = jnp.max(x, (1, 2), keepdims=True)
    spread = high - low
    return jnp.where(spread > 0, (x - low) / jnp.where(spread > 0, spread, 1), x)


def equalize(x: jax.Array) -> jax.Array:
    """Spreads each channel's levels so that they are used evenly, as Pillow's `equalize`."""
    B, H, W, C = x.shape
    level = jnp.round(x * 255).astype(jnp.int32)
    level_NP = jnp.moveaxis(level, -1, 1).reshape(B * C, H * W)
    # How many pixels are darker than each level; sorted, so that nothing is scattered.
    ordered = jnp.sort(level_NP, -1)
    darker = jax.vmap(lambda row: jnp.searchsorted(row, jnp.arange(256)))(ordered)
    highest = ordered[:, -1:]
    step = jnp.take_along_axis(darker, highest, -1) // 255
    table = jnp.minimum((darker + step // 2) // jnp.maximum(step, 1), 255)
    new = jnp.where(step > 0, jnp.take_along_axis(table, level_NP, -1), level_NP)
    return jnp.moveaxis(new.reshape(B, C, H, W), 1, -1).astype(jnp.float32) / 255


def smooth(x: jax.Array) -> jax.Array:
    """Pillow's SMOOTH, 3 × 3 with the middle weighing 5 of 13; pixels at the border stay."""
    H, W = x.shape[1:3]
    if min(H, W) < 3:
        return x
    near = sum(x[:, i : H - 2 + i, j : W - 2 + j] for i in range(3) for j in range(3))
    return x.at[:, 1:-1, 1:-1].set((near + 4 * x[:, 1:-1, 1:-1]) / 13)
