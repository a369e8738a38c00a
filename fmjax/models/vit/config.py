"""Configuration of the vision transformer."""

import dataclasses
import re
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from fmjax.models.config import require
from fmjax.models.heads import Architectures, architectures
from fmjax.models.vision import NOTES, VisionConfig, without_defaults

POOLINGS = (None, "cls", "mean", "map")

# What transformers does not know is left out of config.json where it changes nothing.
_OWN = dict(pooling=None, use_mask_token=False, drop_path_rate=0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTConfig(VisionConfig):
    """Fields and defaults as in `transformers.ViTConfig`, and three of its own.

    Attributes:
      encoder_stride: pixels of a patch in the head of masked image modelling; only a note here.
      pooler_output_size: of the pooler; None means hidden_size.
      pooler_act: name of its activation.
      pooling: what becomes one vector: `pooler_output` of the bare encoder, and what classifiers
        read. None as in transformers: the first token, of the bare encoder through a dense layer
        and pooler_act. "cls" is the first token as it is, as which None is read where files have
        no dense layer (DINO's), "mean" the patches' mean, "map" attention of a learned query
        (`fmjax.nn.attention_pool`). transformers pools by the first token whatever config.json
        says, and finds the weights of "map" unexpected.
      use_mask_token: has a vector that stands in the place of hidden patches (`bool_masked_pos`).
        transformers reads it into `ViTForMaskedImageModeling` alone.
      drop_path_rate: of stochastic depth in the last layer, growing from 0 in the first.
      head: None is the bare encoder.
    """

    intermediate_size: int = 3072
    layer_norm_eps: float = 1e-12
    encoder_stride: int = 16
    pooler_output_size: int | None = None
    pooler_act: str = "tanh"
    pooling: str | None = None
    use_mask_token: bool = False
    drop_path_rate: float = 0.0
    model_type: str = "vit"

    ARCHITECTURES: ClassVar[Mapping[str, Architectures]] = {
        "vit": architectures("ViT", (None, "image-classification")),
    }
    # Those of a masked autoencoder too, whose encoder this is.
    HEAD_TENSORS: ClassVar[re.Pattern[str]] = re.compile(
        r"^(vit\.)?(pooler|attention_pool)\.|^(classifier|decoder)\."
    )
    HARMLESS: ClassVar[frozenset[str]] = NOTES | frozenset(
        {
            "decoder_hidden_size",
            "decoder_intermediate_size",
            "decoder_num_attention_heads",
            "decoder_num_hidden_layers",
            "mask_ratio",
            "norm_pix_loss",
        }
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.pooling in POOLINGS,
            f"config: pooling={self.pooling!r} is unknown; choose one of "
            f"{', '.join(map(str, POOLINGS))}",
        )
        require(
            0 <= self.drop_path_rate < 1,
            f"config: drop_path_rate={self.drop_path_rate} must be in [0, 1)",
        )

    def fitted(self, tensors: Collection[str]) -> "ViTConfig":
        """Without a pooler, where the files have none."""
        lacking = not any(re.match(r"(vit\.)?pooler\.", name) for name in tensors)
        bare = self.head is None and self.pooling is None
        return self.replace(pooling="cls") if bare and lacking else self

    @property
    def caveat(self) -> str | None:
        if self.head is None or self.pooling not in ("mean", "map"):
            return None
        return (
            f"transformers does not know pooling={self.pooling!r}: its classifier reads the first "
            "token, so its logits will differ; leave pooling out to train one that both read alike"
        )

    @property
    def pooler_size(self) -> int:
        """Of the pooler's output."""
        return self.pooler_output_size or self.hidden_size

    def _write(self, values: dict[str, Any]) -> dict[str, Any]:
        return without_defaults(super()._write(values), pooler_output_size=None, **_OWN)


def _size(width: int, layers: int, heads: int, patch: int) -> ViTConfig:
    return ViTConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        patch_size=patch,
        encoder_stride=patch,
    )


# Published sizes by name (arXiv:2010.11929, tables 1 and B; the tiny and small ones of
# arXiv:2012.12877), for images of 224.
PRESETS: dict[str, ViTConfig] = {
    "vit-ti16": _size(192, 12, 3, 16),
    "vit-s16": _size(384, 12, 6, 16),
    "vit-b16": _size(768, 12, 12, 16),
    "vit-b32": _size(768, 12, 12, 32),
    "vit-l16": _size(1024, 24, 16, 16),
    "vit-h14": _size(1280, 32, 16, 14),
}
