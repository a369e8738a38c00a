"""One random view of each image: crop, colour, blur, normalisation."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from fmjax.core.errors import ConfigError, DataError
from fmjax.core.logical import constrain
from fmjax.data.augment import color
from fmjax.data.augment.blur import gaussian_blur
from fmjax.data.augment.boxes import random_boxes
from fmjax.data.augment.color import per_image
from fmjax.data.augment.rand_augment import rand_augment
from fmjax.data.augment.resample import Method, check_method, crop_resize, whole_images

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class View:
    """A pure function (key, images, image_size) → pixel values, in the order of the fields.

    Attributes:
      size: height and width of the result, in pixels.
      scale: range of the crop's share of the image's area.
      ratio: range of its width / height.
      method: of resizing, with antialiasing.
      flip: probability of mirroring left to right.
      rand_augment: (operations, magnitude of 31) of `rand_augment`; None does nothing.
      jitter: strengths of brightness, contrast, saturation, hue, see `fmjax.data.augment.jitter`.
      jitter_probability, gray_probability, blur_probability, solarize_probability: of an image's
        being changed so; gray keeps three channels.
      blur_sigma: range of the Gaussian's width, in pixels.
      blur_radius: where it is cut, in pixels.
      solarize_threshold: values from here on are inverted.
      mean, std: of the channels, subtracted and divided by.

    Raises:
      ConfigError: a probability out of [0, 1], an unknown method, a size that is not positive, or
        ranges that are not in order.
    """

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    method: Method = "bicubic"
    flip: float = 0.5
    rand_augment: tuple[int, float] | None = None
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    jitter_probability: float = 0.8
    gray_probability: float = 0.0
    blur_probability: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    blur_radius: int = 4
    solarize_probability: float = 0.0
    solarize_threshold: float = 128 / 255
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        check_method(self.method)
        if self.size < 1:
            raise ConfigError(f"View: size {self.size} must be positive")
        for name in ("flip", *(f"{n}_probability" for n in ("jitter", "gray", "blur", "solarize"))):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"View: {name}={getattr(self, name)} must be in [0, 1]")
        for name in ("scale", "ratio", "blur_sigma"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ConfigError(f"View: {name}=({low}, {high}) must be positive and in order")

    def __call__(self, key: jax.Array, images: jax.Array, image_size: jax.Array) -> jax.Array:
        """Args:
          key: for all images.
          images: u8 [B, H, W, C], or f32 in [0, 1].
          image_size: i32 [B, 2], height and width of each image without its padding.

        Returns:
          f32 [B, size, size, C], normalised.
        """
        B = images.shape[0]
        keys = jax.random.split(key, 11)

        def some(key: jax.Array, probability: float, change: Callable[[], jax.Array]) -> jax.Array:
            """`change` for that share of the images; nothing is computed for none."""
            if probability == 0:
                return x
            if probability == 1:
                return change()
            return jnp.where(per_image(jax.random.bernoulli(key, probability, (B,))), change(), x)

        boxes = random_boxes(keys[0], image_size, self.scale, self.ratio)
        flip = jax.random.bernoulli(keys[1], self.flip, (B,)) if self.flip else None
        x = crop_resize(images, boxes, (self.size, self.size), self.method, flip=flip)
        # A cubic filter overshoots.
        x = jnp.clip(x, 0, 1)
        if self.rand_augment is not None:
            x = rand_augment(keys[2], x, *self.rand_augment)
        if any(self.jitter):
            jitter = lambda: color.jitter(keys[4], x, self.jitter)  # noqa: E731
            x = some(keys[3], self.jitter_probability, jitter)
        gray = lambda: jnp.broadcast_to(color.grayscale(x), x.shape)  # noqa: E731
        x = some(keys[5], self.gray_probability, gray)
        low, high = self.blur_sigma
        sigma = jax.random.uniform(keys[7], (B,), minval=low, maxval=high)
        x = some(keys[6], self.blur_probability, lambda: gaussian_blur(x, sigma, self.blur_radius))
        x = some(
            keys[8], self.solarize_probability, lambda: color.solarize(x, self.solarize_threshold)
        )
        return on_batch(normalize(x, self.mean, self.std))


def normalize(x: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """(x − mean) / std over the channels of f32 [..., C].

    Raises:
      ConfigError: not one number for each channel, or one for all.
    """
    channels = x.shape[-1]
    if not {len(mean), len(std)} <= {1, channels}:
        raise ConfigError(
            f"mean has {len(mean)} numbers, std {len(std)} and the images {channels} channels; "
            "give one for each"
        )
    return (x - jnp.array(mean, x.dtype)) / jnp.array(std, x.dtype)


def on_batch(x: jax.Array) -> jax.Array:
    """Laid out over the mesh by its rows."""
    return constrain(x, ("batch", *(None,) * (x.ndim - 1)))


def raw_images(batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """(image [B, H, W, C], image_size i32 [B, 2], the other arrays) of a batch.

    Raises:
      DataError: no image, or one that is not [B, H, W, C] of bytes or floats.
    """
    if "image" not in batch:
        raise DataError(f"the batch has no image to augment; it has {', '.join(sorted(batch))}")
    image = batch["image"]
    if image.ndim != 4 or not (
        image.dtype == jnp.uint8 or jnp.issubdtype(image.dtype, jnp.floating)
    ):
        raise DataError(
            f"image is {image.dtype} of shape {image.shape}; it must be uint8, or floats in "
            "[0, 1], of shape [B, H, W, C]"
        )
    size = batch.get("image_size", whole_images(image))
    rest = {name: x for name, x in batch.items() if name not in ("image", "image_size")}
    return image, size, rest
