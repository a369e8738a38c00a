"""Mixup and CutMix: images and labels of two rows of the batch in one."""

import jax
import jax.numpy as jnp

from fmjax.core.errors import ConfigError, DataError
from fmjax.data.augment.color import per_image

IGNORED = -100  # the label of an image that has none


def soft_labels(labels: jax.Array, classes: int) -> jax.Array:
    """i32 [B] → f32 [B, N] of 0 and 1; f32 [B, N] stays as it is.

    Raises:
      DataError: labels of another shape.
    """
    if labels.ndim == 1 and jnp.issubdtype(labels.dtype, jnp.integer):
        return jax.nn.one_hot(labels, classes, dtype=jnp.float32)
    if labels.ndim == 2 and labels.shape[1] == classes:
        return labels.astype(jnp.float32)
    raise DataError(
        f"labels are {labels.dtype} of shape {labels.shape}; mixing needs class numbers [B], or "
        f"shares of {classes} classes [B, {classes}]"
    )


def labelled(labels: jax.Array) -> jax.Array:
    """Which rows have a label: i32 [B], −100 for none, or f32 [B, N] → bool [B]."""
    if labels.ndim == 1:
        return labels != IGNORED
    return jnp.ones(labels.shape[0], bool)


def mixup(x: jax.Array, labels: jax.Array, share: jax.Array) -> tuple[jax.Array, jax.Array]:
    """share · row i + (1 − share) · row i − 1, of images and labels (arXiv:1710.09412).

    Args:
      x: f32 [B, H, W, C].
      labels: f32 [B, N].
      share: f32 [B], of each row's own.
    """
    image = per_image(share)
    x = image * x + (1 - image) * jnp.roll(x, 1, 0)
    return x, _mixed(labels, share)


def cutmix(
    key: jax.Array, x: jax.Array, labels: jax.Array, share: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """A box of row i is row i − 1's, labels by what the box covers (arXiv:1905.04899).

    The box has the image's ratio and √(1 − share) of its sides, around a random pixel; what stands
    out of the image is cut off, and the labels are mixed by what is left.

    Args:
      key: of the places.
      x: f32 [B, H, W, C].
      labels: f32 [B, N].
      share: f32 [B], of each row's own, about.
    """
    B, H, W, _ = x.shape
    half = 0.5 * jnp.sqrt(1 - share)
    inside, covered = True, 1.0
    for axis, (side, one) in enumerate(zip((H, W), jax.random.split(key), strict=True)):
        centre = jax.random.randint(one, (B,), 0, side)
        reach = jnp.trunc(half * side).astype(jnp.int32)
        low, high = jnp.clip(centre - reach, 0, side), jnp.clip(centre + reach, 0, side)
        place = jnp.arange(side).reshape((1, -1, 1, 1) if axis == 0 else (1, 1, -1, 1))
        inside &= (place >= per_image(low)) & (place < per_image(high))
        covered = covered * (high - low) / side
    return jnp.where(inside, jnp.roll(x, 1, 0), x), _mixed(labels, 1 - covered)


def _mixed(labels: jax.Array, share: jax.Array) -> jax.Array:
    return share[:, None] * labels + (1 - share[:, None]) * jnp.roll(labels, 1, 0)


def check_mixing(mixup_alpha: float, cutmix_alpha: float, classes: int | None) -> None:
    """Raises ConfigError for parameters below zero, or mixing of an unknown number of classes."""
    if mixup_alpha < 0 or cutmix_alpha < 0:
        raise ConfigError(f"mixup {mixup_alpha} and cutmix {cutmix_alpha} must not be negative")
    if (mixup_alpha or cutmix_alpha) and not classes:
        raise ConfigError("mixup and cutmix make shares of classes; give their number as classes=")


def mix(
    key: jax.Array,
    x: jax.Array,
    labels: jax.Array,
    mixup_alpha: float = 0.8,
    cutmix_alpha: float = 1.0,
    counted: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """One of the two for each row, evenly; with one parameter 0, always the other.

    Args:
      key: for all rows.
      x: f32 [B, H, W, C].
      labels: f32 [B, N].
      mixup_alpha, cutmix_alpha: a row's own share is drawn from Beta(alpha, alpha); not both 0.
      counted: bool [B]; a row after one that does not count, because it fills the batch or has no
        label, stays as it is. None is all.
    """
    B = x.shape[0]

    def share(key: jax.Array, alpha: float) -> jax.Array:
        drawn = jax.random.beta(key, alpha, alpha, (B,))
        return drawn if counted is None else jnp.where(jnp.roll(counted, 1), drawn, 1.0)

    keys = jax.random.split(key, 4)
    results = []
    if mixup_alpha:
        results.append(mixup(x, labels, share(keys[0], mixup_alpha)))
    if cutmix_alpha:
        results.append(cutmix(keys[2], x, labels, share(keys[1], cutmix_alpha)))
    if len(results) == 1:
        return results[0]
    first = jax.random.bernoulli(keys[3], 0.5, (B,))
    (x1, y1), (x2, y2) = results
    return jnp.where(per_image(first), x1, x2), jnp.where(first[:, None], y1, y2)
