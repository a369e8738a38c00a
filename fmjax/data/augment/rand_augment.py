"""RandAugment (arXiv:1909.13719): a few changes out of fourteen, of one strength."""

import jax
import jax.numpy as jnp

from fmjax.core.errors import ConfigError
from fmjax.data.augment import color
from fmjax.data.augment.color import per_image

OPERATIONS = (
    "identity",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "color",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "autocontrast",
    "equalize",
)
"""Of torchvision's `RandAugment`, in its order."""

_SIGNED = 10
"""The operations before this one go in a random direction."""


def rand_augment(
    key: jax.Array, x: jax.Array, operations: int = 2, magnitude: float = 9, bins: int = 31
) -> jax.Array:
    """`operations` times one of `OPERATIONS`, drawn for each image.

    Args:
      key: for all images.
      x: f32 [B, H, W, 3] in [0, 1].
      operations: number of changes, one after the other.
      magnitude: strength in [0, bins − 1]; torchvision's defaults are 9 of 31.
      bins: the scale of `magnitude`.

    Raises:
      ConfigError: a magnitude that is not on the scale.
    """
    if not 0 <= magnitude <= bins - 1:
        raise ConfigError(f"rand_augment: magnitude {magnitude} must lie in [0, {bins - 1}]")
    B = x.shape[0]

    def turn(x: jax.Array, key: jax.Array) -> tuple[jax.Array, None]:
        which, sign = jax.random.split(key)
        chosen = jax.random.randint(which, (B,), 0, len(OPERATIONS))
        sign = jnp.where(jax.random.bernoulli(sign, 0.5, (B,)), 1.0, -1.0)
        return apply_operation(x, chosen, sign, magnitude / (bins - 1)), None

    return jax.lax.scan(turn, x, jax.random.split(key, operations))[0]


def apply_operation(x: jax.Array, chosen: jax.Array, sign: jax.Array, strength: float) -> jax.Array:
    """One change for each image.

    Args:
      x: f32 [B, H, W, 3] in [0, 1].
      chosen: i32 [B], index into `OPERATIONS`.
      sign: f32 [B], 1 or −1; for those that have a direction.
      strength: in [0, 1], of the largest that torchvision has.
    """
    B, H, W, _ = x.shape

    def amount(name: str, largest: float) -> jax.Array:
        return jnp.where(chosen == OPERATIONS.index(name), sign * strength * largest, 0.0)

    # All that moves pixels is one affine map, read at the nearest pixel; for others the identity.
    one, angle = jnp.ones(B), jnp.deg2rad(amount("rotate", 30))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    shear_x, shear_y = amount("shear_x", 0.3), amount("shear_y", 0.3)
    # torchvision moves by whole pixels.
    move_x = jnp.trunc(amount("translate_x", 150 / 331 * W))
    move_y = jnp.trunc(amount("translate_y", 150 / 331 * H))
    # About the middle for rotations, about the corner for shears.
    shift_x = (one - cos) * W / 2 + sin * H / 2 - move_x
    shift_y = (one - cos) * H / 2 - sin * W / 2 - move_y
    matrix = jnp.stack([cos, shear_x - sin, shift_x, shear_y + sin, cos, shift_y], -1)
    moves = (chosen >= 1) & (chosen <= OPERATIONS.index("rotate"))
    moved = jnp.where(per_image(moves), affine_nearest(x, matrix), x)

    # Four are blends with another image.
    light = color.grayscale(x)
    others = {
        "brightness": jnp.zeros_like(x),
        "color": light,
        "contrast": jnp.mean(light, (1, 2, 3), keepdims=True),
        "sharpness": color.smooth(x),
    }
    other = x
    for name, degenerate in others.items():
        other = jnp.where(per_image(chosen == OPERATIONS.index(name)), degenerate, other)
    blends = (chosen >= OPERATIONS.index("brightness")) & (chosen < _SIGNED)
    y = jnp.where(per_image(blends), color.blend(x, other, 1 + sign * strength * 0.9), moved)

    bits = jnp.full((B,), 8 - round(4 * strength), jnp.int32)
    rest = {
        "posterize": color.posterize(x, bits),
        "solarize": color.solarize(x, 1 - strength),
        "autocontrast": color.autocontrast(x),
        "equalize": color.equalize(x),
    }
    for name, changed in rest.items():
        y = jnp.where(per_image(chosen == OPERATIONS.index(name)), changed, y)
    return y


def affine_nearest(x: jax.Array, matrix: jax.Array) -> jax.Array:
    """Pixel (u, v) of the result is the input's at (a·u + b·v + c, d·u + e·v + f), else black.

    Args:
      x: [B, H, W, C].
      matrix: f32 [B, 6], a … f, in pixels from the upper left corner; pixels' centres lie at ½, ….
    """
    B, H, W, C = x.shape
    v, u = jnp.meshgrid(jnp.arange(H) + 0.5, jnp.arange(W) + 0.5, indexing="ij")
    a, b, c, d, e, f = (m[:, None, None] for m in jnp.moveaxis(matrix, -1, 0))
    column = jnp.floor(a * u + b * v + c).astype(jnp.int32)
    row = jnp.floor(d * u + e * v + f).astype(jnp.int32)
    inside = (column >= 0) & (column < W) & (row >= 0) & (row < H)
    place = jnp.where(inside, row * W + column, 0).reshape(B, H * W, 1)
    # The one gather: a rotation is no product of two small matrices.
    y = jnp.take_along_axis(x.reshape(B, H * W, C), place, 1).reshape(B, H, W, C)
    return jnp.where(inside[..., None], y, 0)
