"""Augmentations: pure functions from a raw batch to what an objective reads.

All are frozen dataclasses called as `augmentation(key, batch)` (`CenterCrop` as `(batch)`) with a
batch of `image` u8 [B, H, W, C] and, where images are padded, `image_size` i32 [B, 2]. Other
arrays of the batch are handed on.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from fmjax.core.errors import ConfigError, DataError
from fmjax.data.augment.boxes import center_crop
from fmjax.data.augment.masks import block_masks
from fmjax.data.augment.mixing import check_mixing, labelled, mix, soft_labels
from fmjax.data.augment.resample import Method, check_method
from fmjax.data.augment.view import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    View,
    normalize,
    on_batch,
    raw_images,
)

Batch = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class CenterCrop:
    """For evaluation: `pixel_values` f32 [B, size, size, C], the middle of each image.

    Attributes:
      size: in pixels.
      resize: what the shorter side becomes first; None is size · 256 / 224, the usual share.
      method: of resizing, with antialiasing.
      mean, std: of the channels.

    Raises:
      ConfigError: sizes that are not positive, or an unknown method.
    """

    size: int
    resize: int | None = None
    method: Method = "bicubic"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        check_method(self.method)
        if self.size < 1 or (self.resize is not None and self.resize < 1):
            raise ConfigError(f"CenterCrop: size {self.size} and resize {self.resize} must be ≥ 1")

    def __call__(self, batch: Batch) -> dict[str, jax.Array]:
        image, image_size, rest = raw_images(batch)
        resize = self.resize or round(self.size * 256 / 224)
        x = jnp.clip(center_crop(image, image_size, resize, self.size, self.method), 0, 1)
        return {**rest, "pixel_values": on_batch(normalize(x, self.mean, self.std))}


@dataclasses.dataclass(frozen=True)
class OneView:
    """`pixel_values` f32 [B, size, size, C]; with mixing also soft `labels` f32 [B, classes].

    With mixing, rows without a label (−100) get `example_weight` 0, and neither they nor other rows
    of weight 0 are mixed into others.

    Attributes:
      view: what is done to each image.
      mixup, cutmix: parameters of the Beta distributions, see `fmjax.data.augment.mix`; 0 is off.
      classes: number of classes, for mixing.

    Raises:
      ConfigError: mixing of an unknown number of classes, or parameters below zero.
      DataError: when called, a batch to be mixed without labels.
    """

    view: View
    mixup: float = 0.0
    cutmix: float = 0.0
    classes: int | None = None

    def __post_init__(self) -> None:
        check_mixing(self.mixup, self.cutmix, self.classes)

    def __call__(self, key: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        image, image_size, rest = raw_images(batch)
        view, mixing = jax.random.split(key)
        x = self.view(view, image, image_size)
        if self.mixup or self.cutmix:
            if "labels" not in rest:
                raise DataError("mixup and cutmix mix labels, and the batch has none")
            labels = soft_labels(rest["labels"], self.classes)
            # Shares cannot say that there is no label.
            weight = labelled(rest["labels"]) * rest.get("example_weight", jnp.float32(1))
            # Linear as both are, they may follow the normalisation.
            x, labels = mix(mixing, x, labels, self.mixup, self.cutmix, weight != 0)
            rest |= {"labels": labels, "example_weight": weight}
        return {**rest, "pixel_values": on_batch(x)}


@dataclasses.dataclass(frozen=True)
class Views:
    """`pixel_values` f32 [B, V, size, size, C]: V views of each image, for SimCLR.

    Attributes:
      views: one function for each, of one size.

    Raises:
      ConfigError: views of several sizes.
    """

    views: tuple[View, ...]

    def __post_init__(self) -> None:
        _one_size(self.views)

    def __call__(self, key: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        image, image_size, rest = raw_images(batch)
        return {**rest, "pixel_values": _stacked(key, self.views, image, image_size)}


@dataclasses.dataclass(frozen=True)
class MultiCrop:
    """Large and small crops for DINO (arXiv:2006.09882, arXiv:2104.14294).

    `pixel_values` f32 [B, V, G, G, C], `local_pixel_values` f32 [B, L, S, S, C], and for iBOT
    `bool_masked_pos` bool [B, V, N], which of the N patches of each large crop are masked.

    Attributes:
      large: views of the large crops, of one size; DINO has two.
      small: view of the small crops.
      smalls: L; 0 leaves them out.
      patch_size: pixels of a patch's side; draws masks, see `block_masks`. None draws none.
      mask_probability: share of the large crops that are masked.
      mask_ratio: range of the share of patches.

    Raises:
      ConfigError: large views of several sizes, or that are not whole patches; small crops without
        a view.
    """

    large: tuple[View, ...]
    small: View | None = None
    smalls: int = 0
    patch_size: int | None = None
    mask_probability: float = 0.5
    mask_ratio: tuple[float, float] = (0.1, 0.5)

    def __post_init__(self) -> None:
        size = _one_size(self.large)
        if self.smalls and self.small is None:
            raise ConfigError(f"MultiCrop: {self.smalls} small crops need a view, small=")
        if self.patch_size is not None and size % self.patch_size:
            raise ConfigError(
                f"MultiCrop: crops of {size} pixels are not whole patches of {self.patch_size}"
            )

    def __call__(self, key: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        image, image_size, result = raw_images(batch)
        large, small, masks = jax.random.split(key, 3)
        B, V = image.shape[0], len(self.large)
        result["pixel_values"] = _stacked(large, self.large, image, image_size)
        if self.smalls:
            # One program for all of them, which reads the images once.
            many = jax.vmap(self.small, (0, None, None), 1)
            crops = many(jax.random.split(small, self.smalls), image, image_size)
            result["local_pixel_values"] = on_batch(crops)
        if self.patch_size is not None:
            n = self.large[0].size // self.patch_size
            drawn = block_masks(masks, B * V, (n, n), self.mask_probability, self.mask_ratio)
            result["bool_masked_pos"] = on_batch(drawn.reshape(B, V, n * n))
        return result


def _one_size(views: tuple[View, ...]) -> int:
    sizes = sorted({view.size for view in views})
    if len(sizes) != 1:
        raise ConfigError(f"views must have one size, got {sizes}; they are stacked")
    return sizes[0]


def _stacked(
    key: jax.Array, views: tuple[View, ...], image: jax.Array, image_size: jax.Array
) -> jax.Array:
    keys = jax.random.split(key, len(views))
    crops = [view(k, image, image_size) for view, k in zip(views, keys, strict=True)]
    return on_batch(jnp.stack(crops, 1))
