"""Masks of patches in rectangular blocks, drawn on the device."""

import jax
import jax.numpy as jnp

from fmjax.core.errors import ConfigError

ATTEMPTS = 40


def block_masks(
    key: jax.Array,
    images: int,
    grid: tuple[int, int],
    probability: float = 0.5,
    ratio: tuple[float, float] = (0.1, 0.5),
    min_block: int = 4,
    aspect: float = 0.3,
) -> jax.Array:
    """Masks for iBOT as DINOv2 draws them (arXiv:2304.07193), by BEiT's blocks (arXiv:2106.08254).

    Of B images ⌊B · probability⌋ are masked. Their shares are spread evenly over `ratio`, each
    drawn within its own part of it, so that the sum varies little between batches. A mask is the
    union of rectangles of random area and aspect ratio, added while they do not exceed the share.

    Args:
      key: for all images.
      images: B.
      grid: rows and columns of patches.
      probability: share of the images that are masked.
      ratio: range of the masked share of an image's patches.
      min_block: fewest patches of a rectangle, before rounding.
      aspect: rectangles' aspect ratios are log-uniform in [aspect, 1 / aspect].

    Returns:
      bool [B, rows · columns], True is masked.

    Raises:
      ConfigError: numbers out of range.
    """
    if not (0 <= probability <= 1 and 0 <= ratio[0] <= ratio[1] <= 1 and 0 < aspect <= 1):
        raise ConfigError(
            f"block_masks: probability {probability}, ratio {ratio} and aspect {aspect} must lie "
            "in [0, 1], the ratio in order"
        )
    h, w = grid
    orders, shares, draws = jax.random.split(key, 3)
    masked = int(images * probability)
    rank_B = jax.random.permutation(orders, images)
    part_B = (rank_B + jax.random.uniform(shares, (images,))) / max(masked, 1)
    target_B = jnp.floor((ratio[0] + (ratio[1] - ratio[0]) * part_B) * (h * w))
    target_B = jnp.where(rank_B < masked, target_B, 0)
    row, column = jnp.arange(h)[:, None], jnp.arange(w)[None]
    flat = jnp.log(aspect)

    def add(mask: jax.Array, drawn: jax.Array) -> tuple[jax.Array, None]:
        room = target_B - jnp.sum(mask, (1, 2))
        area = min_block + drawn[0] * (room - min_block)
        shape = jnp.exp(flat * (1 - 2 * drawn[1]))
        height = jnp.round(jnp.sqrt(jnp.maximum(area, 0) * shape))
        width = jnp.round(jnp.sqrt(jnp.maximum(area, 0) / shape))
        top = jnp.floor(drawn[2] * (h - height + 1))[:, None, None]
        left = jnp.floor(drawn[3] * (w - width + 1))[:, None, None]
        inside = (row >= top) & (row < top + height[:, None, None])
        inside &= (column >= left) & (column < left + width[:, None, None])
        new = jnp.sum(inside & ~mask, (1, 2))
        fits = (height < h) & (width < w) & (new > 0) & (new <= room)
        return mask | (inside & fits[:, None, None]), None

    start = jnp.zeros((images, h, w), bool)
    mask, _ = jax.lax.scan(add, start, jax.random.uniform(draws, (ATTEMPTS, 4, images)))
    return mask.reshape(images, h * w)
