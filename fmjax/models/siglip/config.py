"""Configuration of SigLIP, and of its two encoders by themselves."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from fmjax.models.config import require
from fmjax.models.heads import Architectures, HeadedConfig
from fmjax.models.nested import ImageTextConfig
from fmjax.models.vision import check_heads, check_square

# Of a head that SigLIP has not.
_HARMLESS = frozenset({"tie_word_embeddings"})
_FIXED = {"dropout": (0.0, 0)}


@dataclasses.dataclass(frozen=True)
class SiglipTextConfig(HeadedConfig):
    """Fields and defaults as in `transformers.SiglipTextConfig`.

    Attributes:
      projection_size: P, of the common space; None means hidden_size.
    """

    vocab_size: int = 32000
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 64
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    attention_dropout: float = 0.0
    pad_token_id: int | None = 1
    bos_token_id: int | None = 49406
    eos_token_id: int | tuple[int, ...] | None = 49407
    projection_size: int | None = None
    head: str | None = dataclasses.field(default=None, kw_only=True)
    model_type: str = "siglip_text_model"

    ARCHITECTURES: ClassVar[Mapping[str, Architectures]] = {
        "siglip_text_model": {None: "SiglipTextModel"}
    }
    HEAD_TENSORS: ClassVar[re.Pattern[str]] = re.compile(r"^(vision_model\.|logit_(scale|bias)$)")
    HARMLESS: ClassVar[frozenset[str]] = _HARMLESS
    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = _FIXED

    def __post_init__(self) -> None:
        super().__post_init__()
        check_heads(self.hidden_size, self.num_attention_heads)
        if self.projection_size is None:
            object.__setattr__(self, "projection_size", self.hidden_size)

    @property
    def position_limit(self) -> int:
        """Rows of the position table."""
        return self.max_position_embeddings


@dataclasses.dataclass(frozen=True)
class SiglipVisionConfig(HeadedConfig):
    """Fields and defaults as in `transformers.SiglipVisionConfig`.

    Attributes:
      image_size: side of the square images that the position table is made for, in pixels. Others
        are taken too, with interpolated positions.
      patch_size: side of a patch, in pixels.
      vision_use_head: pool by attention; without it there is no pooler_output.
    """

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 16
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    attention_dropout: float = 0.0
    vision_use_head: bool = True
    head: str | None = dataclasses.field(default=None, kw_only=True)
    model_type: str = "siglip_vision_model"

    ARCHITECTURES: ClassVar[Mapping[str, Architectures]] = {
        "siglip_vision_model": {None: "SiglipVisionModel"}
    }
    HEAD_TENSORS: ClassVar[re.Pattern[str]] = re.compile(r"^(text_model\.|logit_(scale|bias)$)")
    HARMLESS: ClassVar[frozenset[str]] = _HARMLESS
    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = _FIXED

    def __post_init__(self) -> None:
        super().__post_init__()
        check_heads(self.hidden_size, self.num_attention_heads)
        check_square(self)

    @property
    def num_patches(self) -> int:
        """Patches of an image of `image_size`."""
        return (self.image_size // self.patch_size) ** 2


@dataclasses.dataclass(frozen=True)
class SiglipConfig(ImageTextConfig):
    """Fields and defaults as in `transformers.SiglipConfig`.

    Attributes:
      text_config, vision_config: the two encoders.
      initializer_factor: of the classifier's initial matrix.
      head: None is the model of images and texts; "image-classification" has no texts.
    """

    text_config: SiglipTextConfig = SiglipTextConfig()
    vision_config: SiglipVisionConfig = SiglipVisionConfig()
    initializer_factor: float = 1.0
    head: str | None = dataclasses.field(default=None, kw_only=True)
    model_type: str = "siglip"

    PARTS: ClassVar[Mapping[str, type[HeadedConfig]]] = {
        "text_config": SiglipTextConfig,
        "vision_config": SiglipVisionConfig,
    }
    ARCHITECTURES: ClassVar[Mapping[str, Architectures]] = {
        "siglip": {None: "SiglipModel", "image-classification": "SiglipForImageClassification"}
    }
    HEAD_TENSORS: ClassVar[re.Pattern[str]] = re.compile(
        r"^(classifier\.|text_model\.|logit_(scale|bias)$)"
    )
    HARMLESS: ClassVar[frozenset[str]] = _HARMLESS

    def __post_init__(self) -> None:
        super().__post_init__()
        text, vision = self.text_config, self.vision_config
        require(
            self.head is not None or vision.vision_use_head,
            "config: vision_use_head=False leaves nothing of an image to compare with texts",
        )
        require(
            self.head is not None or text.projection_size == vision.hidden_size,
            f"config: texts have projection_size={text.projection_size}, images hidden_size="
            f"{vision.hidden_size}; to be compared they must be equal",
        )

    @property
    def projection_dim(self) -> int:
        """P."""
        return self.vision_config.hidden_size


def _sizes() -> dict[str, SiglipConfig]:
    base = SiglipConfig()
    large = dict(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16
    )
    shape = dict(
        hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16
    )
    two_large, so400m = (
        SiglipConfig(text_config=SiglipTextConfig(**s), vision_config=SiglipVisionConfig(**s))
        for s in (large, shape)
    )
    # 384 pixels are 27 patches of 14 and a rest that is not looked at.
    made = {
        "siglip-b16": (base, 16, (224, 256, 384, 512)),
        "siglip-l16": (two_large, 16, (256, 384)),
        "siglip-so400m-14": (so400m, 14, (224, 384)),
    }
    sizes = {
        f"{name}-{side}": config.replace(vision_config={"image_size": side, "patch_size": patch})
        for name, (config, patch, sides) in made.items()
        for side in sides
    }
    short = {"max_position_embeddings": 16}  # of texts, in this one alone
    name = "siglip-so400m-14-224"
    return sizes | {name: sizes[name].replace(text_config=short)}


# Published sizes by name.
PRESETS: dict[str, SiglipConfig] = _sizes()
