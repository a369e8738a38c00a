"""What the configs of models that read images share: sizes in pixels and patches, checks."""

import dataclasses
from typing import Any, ClassVar

from fmjax.models.config import require
from fmjax.models.heads import HeadedConfig

Size = int | tuple[int, int]
Pair = tuple[int, int]

# Keys of a config.json that change nothing in an encoder of images: what it gives out as the
# backbone of another model of transformers, and a switch of models of texts.
NOTES = frozenset(
    """
    _out_features _out_indices apply_layernorm out_features out_indices reshape_hidden_states
    stage_names tie_word_embeddings
    """.split()
)


def pair(size: Size) -> Pair:
    """(height, width) of a size, which is square where it is one number."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionConfig(HeadedConfig):
    """Base of the configs of vision transformers.

    Attributes:
      image_size: pixels of the images that the table of positions is for, one number or (height,
        width). Images of other sizes are read with resampled positions.
      patch_size: pixels of a patch, one number or (height, width).
      num_channels: of the images.
    """

    head: str | None = None
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    initializer_range: float = 0.02
    image_size: Size = 224
    patch_size: Size = 16
    num_channels: int = 3
    qkv_bias: bool = True

    HARMLESS: ClassVar[frozenset[str]] = NOTES

    def __post_init__(self) -> None:
        super().__post_init__()
        check_heads(self.hidden_size, self.num_attention_heads)
        for name in ("image_size", "patch_size"):
            size = getattr(self, name)
            two = isinstance(size, tuple) and len(size) == 2
            numbers = size if two else (size,)
            require(
                all(isinstance(n, int) and n > 0 for n in numbers),
                f"config: {name}={size!r} must be a number of pixels, or a height and a width",
            )
        rows, columns = self.grid
        require(
            rows > 0 and columns > 0,
            f"config: image_size={self.image_size} has no patch of patch_size={self.patch_size}",
        )

    @property
    def head_dim(self) -> int:
        """K."""
        return self.hidden_size // self.num_attention_heads

    @property
    def patch(self) -> Pair:
        """Height and width of a patch."""
        return pair(self.patch_size)

    @property
    def grid(self) -> Pair:
        """Rows and columns of patches in an image of `image_size`."""
        (height, width), (p, q) = pair(self.image_size), self.patch
        return height // p, width // q

    @property
    def num_patches(self) -> int:
        """Of an image of `image_size`."""
        return self.grid[0] * self.grid[1]

    @property
    def _usual_classifier_dropout(self) -> float:
        return 0.0


def check_heads(width: int, heads: int, prefix: str = "") -> None:
    """Refuses heads that do not divide the width.

    Raises:
      ConfigError: names the fields, which may have a prefix ("decoder_").
    """
    require(
        width % heads == 0,
        f"config: {prefix}hidden_size={width} is not a multiple of "
        f"{prefix}num_attention_heads={heads}",
    )


def check_square(config: Any) -> None:
    """Refuses an image_size or a patch_size that is not one number, and images without a patch.

    Raises:
      ConfigError: of a family that knows square images and patches only.
    """
    for name in ("image_size", "patch_size"):
        size = getattr(config, name)
        require(
            isinstance(size, int) and size > 0,
            f"config: {name}={size!r} must be a number of pixels, the side of a square",
        )
    require(
        config.patch_size <= config.image_size,
        f"config: image_size={config.image_size} has no patch of patch_size={config.patch_size}",
    )


def without_defaults(values: dict[str, Any], **defaults: Any) -> dict[str, Any]:
    """The values, less those that transformers does not know and that change nothing."""
    return {k: v for k, v in values.items() if k not in defaults or v != defaults[k]}
