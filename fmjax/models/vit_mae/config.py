"""Configuration of the masked autoencoder."""

import dataclasses
import re
from collections.abc import Mapping
from typing import ClassVar

from fmjax.models.config import require
from fmjax.models.heads import Architectures, architectures
from fmjax.models.vision import VisionConfig, check_heads


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTMAEConfig(VisionConfig):
    """Fields and defaults as in `transformers.ViTMAEConfig`.

    The encoder is a ViT, and its weights are read as one:
    `from_pretrained(dir, override={"model_type": "vit", "head": "image-classification", …})`.

    Attributes:
      decoder_hidden_size, decoder_num_hidden_layers, decoder_num_attention_heads,
        decoder_intermediate_size: of the decoder.
      mask_ratio: share of the patches that the encoder does not see.
      norm_pix_loss: the loss compares with each patch normalised by itself; a note for
        `fmjax.objectives.MaskedAutoencoding`.
      head: "pretraining" is the decoder, None the bare encoder.
    """

    intermediate_size: int = 3072
    layer_norm_eps: float = 1e-12
    decoder_hidden_size: int = 512
    decoder_num_hidden_layers: int = 8
    decoder_num_attention_heads: int = 16
    decoder_intermediate_size: int = 2048
    mask_ratio: float = 0.75
    norm_pix_loss: bool = False
    model_type: str = "vit_mae"

    ARCHITECTURES: ClassVar[Mapping[str, Architectures]] = {
        "vit_mae": architectures("ViTMAE", (None, "pretraining")),
    }
    HEAD_TENSORS: ClassVar[re.Pattern[str]] = re.compile(r"^decoder\.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_heads(self.decoder_hidden_size, self.decoder_num_attention_heads, "decoder_")
        for name in ("hidden_size", "decoder_hidden_size"):
            require(
                getattr(self, name) % 4 == 0,
                f"config: {name}={getattr(self, name)} must be a multiple of 4: positions are "
                "sines and cosines of rows and columns",
            )
        require(
            0 < self.mask_ratio < 1,
            f"config: mask_ratio={self.mask_ratio} must lie between 0 and 1",
        )

    def kept(self, patches: int) -> int:
        """How many of an image's patches the encoder sees."""
        return int(patches * (1 - self.mask_ratio))


def _size(width: int, layers: int, heads: int, patch: int) -> ViTMAEConfig:
    return ViTMAEConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        patch_size=patch,
        norm_pix_loss=True,
        head="pretraining",
    )


# Published sizes by name (arXiv:2111.06377), with the decoder and targets of their pretraining.
PRESETS: dict[str, ViTMAEConfig] = {
    "mae-b16": _size(768, 12, 12, 16),
    "mae-l16": _size(1024, 24, 16, 16),
    "mae-h14": _size(1280, 32, 16, 14),
}
