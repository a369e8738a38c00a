"""Configuration of CLIP, and of its two encoders by themselves."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from fmjax.models.config import require
from fmjax.models.heads import Architectures, HeadedConfig
from fmjax.models.nested import ImageTextConfig
from fmjax.models.vision import check_heads, check_square

# Of a head that CLIP has not.
_HARMLESS = frozenset({"tie_word_embeddings"})
_FIXED = {"dropout": (0.0, 0)}


@dataclasses.dataclass(frozen=True)
class CLIPTextConfig(HeadedConfig):
    """Fields and defaults as in `transformers.CLIPTextConfig`.

    Attributes:
      eos_token_id: a text is read at the first place of this id. 2 stands for an error of old
        files: then it is read at the largest id.
      projection_dim: P, of an encoder that stands alone with head "projection".
      initializer_range: unused; the original has sizes of its own, see the model.
      initializer_factor: of all initial matrices.
    """

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    attention_dropout: float = 0.0
    initializer_range: float = 0.02
    initializer_factor: float = 1.0
    pad_token_id: int | None = 1
    bos_token_id: int | None = 49406
    eos_token_id: int = 49407
    head: str | None = dataclasses.field(default=None, kw_only=True)
    model_type: str = "clip_text_model"

    ARCHITECTURES: ClassVar[Mapping[str, Architectures]] = {
        "clip_text_model": {None: "CLIPTextModel", "projection": "CLIPTextModelWithProjection"}
    }
    HEAD_TENSORS: ClassVar[re.Pattern[str]] = re.compile(
        r"^(text_projection\.|visual_projection\.|vision_model\.|logit_scale$)"
    )
    HARMLESS: ClassVar[frozenset[str]] = _HARMLESS
    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = _FIXED

    def __post_init__(self) -> None:
        super().__post_init__()
        check_heads(self.hidden_size, self.num_attention_heads)
        require(
            isinstance(self.eos_token_id, int),
            f"config: CLIP reads a text at one eos_token_id, not at {self.eos_token_id!r}",
        )

    @property
    def position_limit(self) -> int:
        """Rows of the position table."""
        return self.max_position_embeddings


@dataclasses.dataclass(frozen=True)
class CLIPVisionConfig(HeadedConfig):
    """Fields and defaults as in `transformers.CLIPVisionConfig`.

    Attributes:
      image_size: side of the square images that the position table is made for, in pixels. Others
        are taken too, with interpolated positions.
      patch_size: side of a patch, in pixels.
      projection_dim: P, of an encoder that stands alone with head "projection".
      initializer_range: of the patches' convolution.
      initializer_factor: of all initial matrices.
    """

    hidden_size: int = 768
    intermediate_size: int = 3072
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    attention_dropout: float = 0.0
    initializer_range: float = 0.02
    initializer_factor: float = 1.0
    head: str | None = dataclasses.field(default=None, kw_only=True)
    model_type: str = "clip_vision_model"

    ARCHITECTURES: ClassVar[Mapping[str, Architectures]] = {
        "clip_vision_model": {
            None: "CLIPVisionModel",
            "projection": "CLIPVisionModelWithProjection",
        }
    }
    HEAD_TENSORS: ClassVar[re.Pattern[str]] = re.compile(
        r"^(text_projection\.|visual_projection\.|text_model\.|logit_scale$)"
    )
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
class CLIPConfig(ImageTextConfig):
    """Fields and defaults as in `transformers.CLIPConfig`.

    Attributes:
      text_config, vision_config: the two encoders.
      projection_dim: P, of the common space.
      logit_scale_init_value: the logarithm of the factor of the scores, at first.
      initializer_factor: of the two projections.
      head: None is the model of images and texts; "image-classification" has no texts.
    """

    text_config: CLIPTextConfig = CLIPTextConfig()
    vision_config: CLIPVisionConfig = CLIPVisionConfig()
    projection_dim: int = 512
    logit_scale_init_value: float = 2.6592
    initializer_factor: float = 1.0
    head: str | None = dataclasses.field(default=None, kw_only=True)
    model_type: str = "clip"

    PARTS: ClassVar[Mapping[str, type[HeadedConfig]]] = {
        "text_config": CLIPTextConfig,
        "vision_config": CLIPVisionConfig,
    }
    ARCHITECTURES: ClassVar[Mapping[str, Architectures]] = {
        "clip": {None: "CLIPModel", "image-classification": "CLIPForImageClassification"}
    }
    HEAD_TENSORS: ClassVar[re.Pattern[str]] = re.compile(
        r"^(classifier\.|text_model\.|text_projection\.|visual_projection\.|logit_scale$)"
    )
    HARMLESS: ClassVar[frozenset[str]] = _HARMLESS


_BASE = CLIPConfig()
_LARGE_TEXT = dict(hidden_size=768, intermediate_size=3072, num_attention_heads=12)
_LARGE = CLIPConfig(
    text_config=CLIPTextConfig(**_LARGE_TEXT, projection_dim=768),
    vision_config=CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        patch_size=14,
        projection_dim=768,
    ),
    projection_dim=768,
)

# Published sizes by name: OpenAI's, and the huge one of LAION.
PRESETS: dict[str, CLIPConfig] = {
    "clip-vit-b32": _BASE,
    "clip-vit-b16": _BASE.replace(vision_config={"patch_size": 16}),
    "clip-vit-l14": _LARGE,
    "clip-vit-l14-336": _LARGE.replace(vision_config={"image_size": 336}),
    "clip-vit-h14": CLIPConfig(
        text_config=CLIPTextConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            hidden_act="gelu",
            projection_dim=1024,
        ),
        vision_config=CLIPVisionConfig(
            hidden_size=1280,
            intermediate_size=5120,
            num_hidden_layers=32,
            num_attention_heads=16,
            patch_size=14,
            hidden_act="gelu",
            projection_dim=1024,
        ),
        projection_dim=1024,
    ),
}
