"""The augmentations of published recipes, for images of any size.

Keyword arguments override fields of every `View`, such as `mean`, `std` or `method`; a set whose
pictures must not be mirrored takes `flip=0`.
"""

from typing import Any

from fmjax.data.augment.augmentations import MultiCrop, OneView, Views
from fmjax.data.augment.view import View


def supervised(
    size: int,
    *,
    classes: int | None = None,
    rand_augment: tuple[int, float] | None = (2, 9),
    mixup: float = 0.0,
    cutmix: float = 0.0,
    **view: Any,
) -> OneView:
    """Crop, flip and RandAugment; with `classes`, mixup and cutmix (DeiT's are .8 and 1)."""
    made = View(size, **{"rand_augment": rand_augment, **view})
    return OneView(made, mixup, cutmix, classes)


def mae(size: int, **view: Any) -> OneView:
    """Crop of at least a fifth, and flip (arXiv:2111.06377)."""
    return OneView(View(size, **{"scale": (0.2, 1.0), **view}))


def simclr(size: int, strength: float = 1.0, *, blur: bool = True, **view: Any) -> Views:
    """Two views (arXiv:2002.05709): crop, flip, jitter at .8, gray at .2, blur at .5.

    The blur reaches over a tenth of the image; on small images the paper leaves it out.

    Args:
      size: of the views.
      strength: of the jitter; the paper's is 1 on ImageNet and .5 on CIFAR-10.
      blur: whether to blur.
    """
    made = View(
        size,
        **{
            "jitter": (0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength),
            "gray_probability": 0.2,
            "blur_probability": 0.5 if blur else 0.0,
            "blur_radius": max(size // 20, 1),
            **view,
        },
    )
    return Views((made, made))


def dino(
    size: int = 224,
    local_size: int = 96,
    local_crops: int = 8,
    *,
    scale: tuple[float, float] = (0.4, 1.0),
    local_scale: tuple[float, float] = (0.05, 0.4),
    **view: Any,
) -> MultiCrop:
    """Two large and several small crops (arXiv:2104.14294, BYOL's colours).

    Every crop is flipped at .5, jittered at .8 and gray at .2; the first large one is always
    blurred, the second at .1 and solarised at .2, small ones are blurred at .5.
    """
    first, second, small = _byol(size, local_size, scale, local_scale, view)
    return MultiCrop((first, second), small, local_crops)


def dinov2(
    size: int = 224,
    local_size: int = 98,
    local_crops: int = 8,
    *,
    patch_size: int = 14,
    scale: tuple[float, float] = (0.32, 1.0),
    local_scale: tuple[float, float] = (0.05, 0.32),
    mask_probability: float = 0.5,
    mask_ratio: tuple[float, float] = (0.1, 0.5),
    **view: Any,
) -> MultiCrop:
    """`dino` with masks of patches on the large crops (arXiv:2304.07193)."""
    first, second, small = _byol(size, local_size, scale, local_scale, view)
    return MultiCrop((first, second), small, local_crops, patch_size, mask_probability, mask_ratio)


def _byol(
    size: int,
    local_size: int,
    scale: tuple[float, float],
    local_scale: tuple[float, float],
    view: dict[str, Any],
) -> tuple[View, View, View]:
    shared = {"jitter": (0.4, 0.4, 0.2, 0.1), "gray_probability": 0.2}
    first = View(size, **{**shared, "scale": scale, "blur_probability": 1.0, **view})
    changes = {"blur_probability": 0.1, "solarize_probability": 0.2}
    second = View(size, **{**shared, "scale": scale, **changes, **view})
    small = View(local_size, **{**shared, "scale": local_scale, "blur_probability": 0.5, **view})
    return first, second, small
