"""Checks that the configs of encoders of images, and of texts beside them, share."""

from typing import Any

from fmjax.models.config import require


def check_heads(config: Any) -> None:
    """Raises ConfigError unless hidden_size divides into num_attention_heads."""
    require(
        config.hidden_size % config.num_attention_heads == 0,
        f"config: hidden_size={config.hidden_size} is not a multiple of "
        f"num_attention_heads={config.num_attention_heads}",
    )


def check_image(config: Any) -> None:
    """Raises ConfigError unless image_size and patch_size are sides of squares that fit."""
    for name in ("image_size", "patch_size"):
        value = getattr(config, name)
        require(
            isinstance(value, int) and value > 0,
            f"config: {name}={value!r} must be a number of pixels, the side of a square",
        )
    require(
        config.patch_size <= config.image_size,
        f"config: patch_size={config.patch_size} is larger than image_size={config.image_size}",
    )
