"""Configuration of ResNet."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from fmjax.models.config import require
from fmjax.models.heads import Architectures, HeadedConfig, architectures
from fmjax.models.vision import NOTES

LAYER_TYPES = ("basic", "bottleneck")

REDUCTION = 4
"""By which a bottleneck narrows the channels."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNetConfig(HeadedConfig):
    """Fields and defaults as in `transformers.ResNetConfig`, and one of its own.

    Attributes:
      num_channels: of the images.
      embedding_size: channels after the stem.
      hidden_sizes: channels after each stage.
      depths: blocks of each stage.
      layer_type: "basic" blocks of two convolutions, "bottleneck" ones of three.
      downsample_in_first_stage: the first stage halves the picture too.
      downsample_in_bottleneck: the first convolution of a bottleneck halves it (as in the paper),
        not the second.
      small_images: the stem is a 3 × 3 convolution that keeps the size, without pooling, as for
        CIFAR in arXiv:2002.05709, B.9; transformers has no such stem and cannot load it.
      head: None is the bare encoder.
    """

    num_channels: int = 3
    embedding_size: int = 64
    hidden_sizes: tuple[int, ...] = (256, 512, 1024, 2048)
    depths: tuple[int, ...] = (3, 4, 6, 3)
    layer_type: str = "bottleneck"
    hidden_act: str = "relu"
    downsample_in_first_stage: bool = False
    downsample_in_bottleneck: bool = False
    small_images: bool = False
    head: str | None = None
    model_type: str = "resnet"

    ARCHITECTURES: ClassVar[Mapping[str, Architectures]] = {
        "resnet": architectures("ResNet", (None, "image-classification")),
    }
    HARMLESS: ClassVar[frozenset[str]] = NOTES

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.layer_type in LAYER_TYPES,
            f"config: layer_type={self.layer_type!r} is unknown; choose one of "
            f"{', '.join(LAYER_TYPES)}",
        )
        require(
            len(self.hidden_sizes) == len(self.depths) > 0 and min(self.depths) > 0,
            f"config: hidden_sizes={self.hidden_sizes} and depths={self.depths} must name as many "
            "stages, each of one block or more",
        )
        narrow = self.layer_type == "basic" or all(n % REDUCTION == 0 for n in self.hidden_sizes)
        require(
            narrow,
            f"config: hidden_sizes={self.hidden_sizes} of bottlenecks must be multiples of "
            f"{REDUCTION}",
        )

    @property
    def hidden_size(self) -> int:
        """Channels of the last stage."""
        return self.hidden_sizes[-1]

    @property
    def caveat(self) -> str | None:
        if not self.small_images:
            return None
        return "transformers has no stem for small_images and cannot load these files"

    @property
    def _usual_classifier_dropout(self) -> float:
        return 0.0

    def _write(self, values: dict[str, Any]) -> dict[str, Any]:
        values = super()._write(values)
        if not values["small_images"]:
            del values["small_images"]
        return values


def _size(layer_type: str, *depths: int) -> ResNetConfig:
    wide = REDUCTION if layer_type == "bottleneck" else 1
    sizes = tuple(wide * n for n in (64, 128, 256, 512))
    return ResNetConfig(layer_type=layer_type, depths=depths, hidden_sizes=sizes)


# Published sizes by name (arXiv:1512.03385, table 1).
PRESETS: dict[str, ResNetConfig] = {
    "resnet-18": _size("basic", 2, 2, 2, 2),
    "resnet-34": _size("basic", 3, 4, 6, 3),
    "resnet-50": _size("bottleneck", 3, 4, 6, 3),
    "resnet-101": _size("bottleneck", 3, 4, 23, 3),
    "resnet-152": _size("bottleneck", 3, 8, 36, 3),
}
