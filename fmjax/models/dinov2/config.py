"""Configuration of DINOv2's vision transformer."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from fmjax.models.config import require
from fmjax.models.heads import Architectures, architectures
from fmjax.models.vision import Size, VisionConfig

_HEADS = (None, "image-classification")
_REGISTERS = "dinov2_with_registers"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dinov2Config(VisionConfig):
    """Fields and defaults as in `transformers.Dinov2Config` and `Dinov2WithRegistersConfig`.

    Attributes:
      model_type: "dinov2" or "dinov2_with_registers".
      mlp_ratio: width of the MLP over hidden_size; transformers reads whole numbers alone.
      layerscale_value: that the scales of the residual branches start from.
      drop_path_rate: of stochastic depth, the same in all layers.
      use_swiglu_ffn: a gated MLP (SwiGLU), of two thirds of the width.
      use_mask_token: has a vector that stands in the place of hidden patches (`bool_masked_pos`).
      num_register_tokens: learned tokens after the class token, which have no position
        (arXiv:2309.16588); "dinov2" has none.
      head: None is the bare encoder.
    """

    mlp_ratio: float = 4
    layer_norm_eps: float = 1e-6
    patch_size: Size = 14
    layerscale_value: float = 1.0
    drop_path_rate: float = 0.0
    use_swiglu_ffn: bool = False
    use_mask_token: bool = True
    num_register_tokens: int = 0
    model_type: str = "dinov2"

    ARCHITECTURES: ClassVar[Mapping[str, Architectures]] = {
        "dinov2": architectures("Dinov2", _HEADS),
        _REGISTERS: architectures("Dinov2WithRegisters", _HEADS),
    }
    HEAD_TENSORS: ClassVar[re.Pattern[str]] = re.compile(r"^classifier\.")
    # Stated by the files with registers; transformers reads neither and does as they say.
    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "interpolate_antialias": (True,),
        "interpolate_offset": (0.0,),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        registers = self.num_register_tokens
        require(
            0 <= self.drop_path_rate < 1,
            f"config: drop_path_rate={self.drop_path_rate} must be in [0, 1)",
        )
        require(
            registers >= 0 and (self.model_type == _REGISTERS or not registers),
            f"config: a {self.model_type} has no num_register_tokens={registers}; "
            f"with registers its model_type is {_REGISTERS}",
        )
        require(
            self.model_type != _REGISTERS or self.use_mask_token,
            f"config: a {_REGISTERS} has a mask token; leave use_mask_token out",
        )
        require(
            self.model_type != _REGISTERS or registers,
            f"config: a {_REGISTERS} has num_register_tokens, usually 4; without any its "
            "model_type is dinov2",
        )

    @property
    def caveat(self) -> str | None:
        if self.mlp_ratio == int(self.mlp_ratio):
            return None
        return (
            f"transformers refuses mlp_ratio={self.mlp_ratio}, as it takes whole numbers alone; "
            "choose one of these to train a model that both read"
        )

    @property
    def intermediate_size(self) -> int:
        """Width of the MLP."""
        width = int(self.hidden_size * self.mlp_ratio)
        return (int(width * 2 / 3) + 7) // 8 * 8 if self.use_swiglu_ffn else width

    @property
    def antialias(self) -> bool:
        """Whether positions are resampled with antialiasing, as transformers does for registers."""
        return self.model_type == _REGISTERS

    @classmethod
    def _read(cls, hf: dict[str, Any]) -> dict[str, Any]:
        hf = super()._read(hf)
        defaults = {"patch_size": 16, "num_register_tokens": 4}
        return defaults | hf if hf.get("model_type") == _REGISTERS else hf

    def _write(self, values: dict[str, Any]) -> dict[str, Any]:
        values = super()._write(values)
        ratio = values["mlp_ratio"]
        values["mlp_ratio"] = int(ratio) if ratio == int(ratio) else ratio
        del values["use_mask_token" if self.model_type == _REGISTERS else "num_register_tokens"]
        return values


def _size(width: int, layers: int, heads: int, swiglu: bool = False) -> Dinov2Config:
    return Dinov2Config(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        image_size=518,
        layerscale_value=1e-5,
        use_swiglu_ffn=swiglu,
    )


# Published sizes by name (arXiv:2304.07193), with the LayerScale that training starts from.
PRESETS: dict[str, Dinov2Config] = {
    "dinov2-s14": _size(384, 12, 6),
    "dinov2-b14": _size(768, 12, 12),
    "dinov2-l14": _size(1024, 24, 16),
    "dinov2-g14": _size(1536, 40, 24, swiglu=True),
}
