"""Configuration of the Qwen family: Qwen2, Qwen2.5 and Qwen3, the dense models."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from fmjax.models.config import require
from fmjax.models.heads import Architectures, HeadedConfig, architectures
from fmjax.models.rotary import (
    FULL,
    SLIDING,
    TokenId,
    pop_rope,
    settle_heads,
    settle_layer_types,
)
from fmjax.nn.rope import Rope


@dataclasses.dataclass(frozen=True)
class QwenConfig(HeadedConfig):
    """Fields and defaults as in `transformers.Qwen2Config` and `Qwen3Config`.

    Attributes:
      model_type: "qwen2" (biases on queries, keys and values) or "qwen3" (norms on queries and
        keys).
      num_key_value_heads: G; None means as many as query heads.
      head_dim: K; None means hidden_size / num_attention_heads, or 128 for Qwen3.
      rope: `rope_parameters`, or the older `rope_theta` and `rope_scaling`.
      use_sliding_window: without it `sliding_window` is ignored, and becomes None.
      sliding_window: keys that a query sees in a sliding layer, its own included.
      max_window_layers: this many layers, from the first one, see everything.
      layer_types: "full_attention" or "sliding_attention" for each layer; None follows
        `max_window_layers`.
      attention_bias: biases on all of attention's projections (Qwen3).
    """

    vocab_size: int = 151936
    hidden_size: int = 4096
    intermediate_size: int = 22016
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 32
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 32768
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    rope: Rope = Rope()
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    max_window_layers: int = 28
    layer_types: tuple[str, ...] | None = None
    attention_bias: bool = False
    attention_dropout: float = 0.0
    tie_word_embeddings: bool = False
    pad_token_id: int | None = None
    bos_token_id: TokenId = None
    eos_token_id: TokenId = None
    model_type: str = "qwen2"

    ARCHITECTURES: ClassVar[Mapping[str, Architectures]] = {
        "qwen2": architectures("Qwen2"),
        "qwen3": architectures("Qwen3"),
    }
    # Multi-modal positions, which the vision models use.
    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {"use_mrope": (False,)}

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            not self.attention_bias or self.model_type == "qwen3",
            "config: attention_bias needs model_type='qwen3'; transformers' qwen2 ignores it",
        )
        if self.head_dim is None and self.model_type == "qwen3":
            object.__setattr__(self, "head_dim", 128)
        if not self.use_sliding_window:
            object.__setattr__(self, "sliding_window", None)
        settle_heads(self)
        settle_layer_types(self, self._usual_layer_types())

    def _usual_layer_types(self) -> tuple[str, ...]:
        full = self.num_hidden_layers if self.sliding_window is None else self.max_window_layers
        return tuple(FULL if i < full else SLIDING for i in range(self.num_hidden_layers))

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The sliding window of each layer."""
        types = self.layer_types or self._usual_layer_types()
        return tuple(self.sliding_window if t == SLIDING else None for t in types)

    @property
    def qkv_bias(self) -> bool:
        """Whether the projections to queries, keys and values have biases."""
        return self.model_type == "qwen2" or self.attention_bias

    @property
    def qk_norm(self) -> bool:
        """Whether queries and keys are normed."""
        return self.model_type == "qwen3"

    @classmethod
    def _read(cls, hf: dict[str, Any]) -> dict[str, Any]:
        hf = super()._read(hf)
        rope = pop_rope(hf)
        return hf | {"rope": rope}

    def _write(self, values: dict[str, Any]) -> dict[str, Any]:
        values = super()._write(values)
        values["rope_parameters"] = values.pop("rope").to_hf()
        values["layer_types"] = list(self.layer_types or self._usual_layer_types())
        if self.model_type == "qwen2":
            del values["attention_bias"]
        return values


def _qwen2(
    width: int, inner: int, layers: int, heads: int, kv_heads: int, **others: Any
) -> QwenConfig:
    common = dict(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=32768,
        rope=Rope(rope_theta=1e6),
        max_window_layers=layers,
        bos_token_id=151643,
        eos_token_id=151643,
    )
    return QwenConfig(**(common | others))


def _qwen3(
    width: int, inner: int, layers: int, heads: int, tied: bool = False, **others: Any
) -> QwenConfig:
    common = dict(
        head_dim=128,
        max_position_embeddings=40960,
        tie_word_embeddings=tied,
        eos_token_id=151645,
        model_type="qwen3",
    )
    return _qwen2(width, inner, layers, heads, 8, **(common | others))


_TIED = dict(tie_word_embeddings=True)
_WIDE = dict(vocab_size=152064)
_LONG = dict(max_position_embeddings=131072)

# Published sizes by name; the base models where there are others.
PRESETS: dict[str, QwenConfig] = {
    "qwen2-0.5b": _qwen2(896, 4864, 24, 14, 2, **_TIED, **_LONG),
    "qwen2-1.5b": _qwen2(1536, 8960, 28, 12, 2, **_TIED, **_LONG),
    "qwen2-7b": _qwen2(3584, 18944, 28, 28, 4, **_WIDE, **_LONG),
    "qwen2-72b": _qwen2(8192, 29568, 80, 64, 8, rms_norm_eps=1e-5, **_WIDE, **_LONG),
    "qwen2.5-0.5b": _qwen2(896, 4864, 24, 14, 2, **_TIED),
    "qwen2.5-1.5b": _qwen2(1536, 8960, 28, 12, 2, **_TIED, **_LONG),
    "qwen2.5-3b": _qwen2(2048, 11008, 36, 16, 2, **_TIED),
    "qwen2.5-7b": _qwen2(3584, 18944, 28, 28, 4, **_WIDE, **_LONG),
    "qwen2.5-14b": _qwen2(5120, 13824, 48, 40, 8, rms_norm_eps=1e-5, **_WIDE, **_LONG),
    "qwen2.5-32b": _qwen2(5120, 27648, 64, 40, 8, rms_norm_eps=1e-5, **_WIDE, **_LONG),
    "qwen2.5-72b": _qwen2(8192, 29568, 80, 64, 8, rms_norm_eps=1e-5, **_WIDE, **_LONG),
    "qwen3-0.6b": _qwen3(1024, 3072, 28, 16, tied=True),
    "qwen3-1.7b": _qwen3(2048, 6144, 28, 16, tied=True),
    "qwen3-4b": _qwen3(2560, 9728, 36, 32, tied=True),
    "qwen3-8b": _qwen3(4096, 12288, 36, 32),
    "qwen3-14b": _qwen3(5120, 17408, 40, 40),
    "qwen3-32b": _qwen3(5120, 25600, 64, 64),
}
