"""Augmentation on the device: batched, seeded by a key, of static shapes.

A raw batch has `image` u8 [B, H, W, C] and, where images are padded to one size, `image_size`
i32 [B, 2]. `published` has the recipes of papers; `fmjax.objectives.Augmented` puts one in front
of an objective.
"""

from fmjax.data.augment.augmentations import CenterCrop, MultiCrop, OneView, Views
from fmjax.data.augment.blur import gaussian_blur
from fmjax.data.augment.boxes import center_crop, random_boxes
from fmjax.data.augment.color import jitter
from fmjax.data.augment.masks import block_masks
from fmjax.data.augment.mixing import cutmix, mix, mixup
from fmjax.data.augment.published import dino, dinov2, mae, simclr, supervised
from fmjax.data.augment.rand_augment import rand_augment
from fmjax.data.augment.resample import crop_resize
from fmjax.data.augment.view import IMAGENET_MEAN, IMAGENET_STD, View

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "CenterCrop",
    "MultiCrop",
    "OneView",
    "View",
    "Views",
    "block_masks",
    "center_crop",
    "crop_resize",
    "cutmix",
    "dino",
    "dinov2",
    "gaussian_blur",
    "jitter",
    "mae",
    "mix",
    "mixup",
    "rand_augment",
    "random_boxes",
    "simclr",
    "supervised",
]
