"""Configuration of the LLaMA family: LLaMA 1–3 and Mistral."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from fmjax.models.config import require
from fmjax.models.heads import Architectures, HeadedConfig, architectures
from fmjax.models.rotary import TokenId, pop_rope, settle_heads
from fmjax.nn.rope import Rope

_MISTRAL_DEFAULTS = {
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
}


@dataclasses.dataclass(frozen=True)
class LlamaConfig(HeadedConfig):
    """Fields and defaults as in `transformers.LlamaConfig` and `MistralConfig`.

    Attributes:
      model_type: "llama" or "mistral".
      num_key_value_heads: G; None means as many as query heads.
      head_dim: K; None means hidden_size / num_attention_heads.
      rope: `rope_parameters`, or the older `rope_theta` and `rope_scaling`.
      sliding_window: keys that a query sees, its own included (Mistral); None means all.
      attention_bias, mlp_bias: biases on the projections (LLaMA).
    """

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    rope: Rope = Rope()
    sliding_window: int | None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    attention_dropout: float = 0.0
    tie_word_embeddings: bool = False
    pad_token_id: int | None = None
    bos_token_id: TokenId = 1
    eos_token_id: TokenId = 2
    model_type: str = "llama"

    ARCHITECTURES: ClassVar[Mapping[str, Architectures]] = {
        "llama": architectures("Llama"),
        "mistral": architectures("Mistral"),
    }
    # Tensor-parallel bookkeeping of old conversions (the result is the same but for rounding), and
    # notes of theirs.
    HARMLESS: ClassVar[frozenset[str]] = frozenset(
        {"is_llama_config", "max_sequence_length", "pretraining_tp"}
    )
    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {"rope_interleaved": (False,)}

    def __post_init__(self) -> None:
        super().__post_init__()
        settle_heads(self)
        require(
            self.sliding_window is None or self.model_type == "mistral",
            "config: sliding_window needs model_type='mistral'; transformers' llama ignores it",
        )
        require(
            self.sliding_window is None or self.sliding_window > 0,
            f"config: sliding_window={self.sliding_window} must be positive or null",
        )
        require(
            not (self.attention_bias or self.mlp_bias) or self.model_type == "llama",
            "config: attention_bias and mlp_bias need model_type='llama'",
        )

    @classmethod
    def _read(cls, hf: dict[str, Any]) -> dict[str, Any]:
        hf = super()._read(hf)
        rope = pop_rope(hf)
        if hf.get("model_type") == "mistral":
            # What transformers takes for a key that a Mistral config.json leaves out.
            hf = _MISTRAL_DEFAULTS | hf
        else:
            # Written by some conversions, and without effect on transformers' llama.
            hf.pop("sliding_window", None)
        return hf | {"rope": rope}

    def _write(self, values: dict[str, Any]) -> dict[str, Any]:
        values = super()._write(values)
        values["rope_parameters"] = values.pop("rope").to_hf()
        if self.model_type == "mistral":
            del values["attention_bias"], values["mlp_bias"]
        else:
            del values["sliding_window"]
        return values


def _llama(width: int, inner: int, layers: int, heads: int, **others: Any) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        **others,
    )


def _llama3(width: int, inner: int, layers: int, heads: int, **others: Any) -> LlamaConfig:
    common = dict(
        vocab_size=128256,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope=Rope(rope_theta=500000.0),
        bos_token_id=128000,
        eos_token_id=128001,
    )
    return _llama(width, inner, layers, heads, **(common | others))


def _long(factor: float) -> dict[str, Any]:
    rope = Rope(
        rope_type="llama3",
        rope_theta=500000.0,
        factor=factor,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    )
    return dict(rope=rope, max_position_embeddings=131072)


_LLAMA2 = dict(max_position_embeddings=4096, rms_norm_eps=1e-5)
_MISTRAL = dict(
    model_type="mistral", num_key_value_heads=8, max_position_embeddings=32768, rms_norm_eps=1e-5
)

# Published sizes by name.
PRESETS: dict[str, LlamaConfig] = {
    "llama-7b": _llama(4096, 11008, 32, 32),
    "llama-13b": _llama(5120, 13824, 40, 40),
    "llama-33b": _llama(6656, 17920, 60, 52),
    "llama-65b": _llama(8192, 22016, 80, 64, rms_norm_eps=1e-5),
    "llama2-7b": _llama(4096, 11008, 32, 32, **_LLAMA2),
    "llama2-13b": _llama(5120, 13824, 40, 40, **_LLAMA2),
    "llama2-70b": _llama(8192, 28672, 80, 64, num_key_value_heads=8, **_LLAMA2),
    "llama3-8b": _llama3(4096, 14336, 32, 32),
    "llama3-70b": _llama3(8192, 28672, 80, 64),
    "llama3.1-8b": _llama3(4096, 14336, 32, 32, **_long(8.0)),
    "llama3.1-70b": _llama3(8192, 28672, 80, 64, **_long(8.0)),
    "llama3.1-405b": _llama3(16384, 53248, 126, 128, **_long(8.0)),
    "llama3.2-1b": _llama3(2048, 8192, 16, 32, tie_word_embeddings=True, **_long(32.0)),
    "llama3.2-3b": _llama3(
        3072, 8192, 28, 24, head_dim=128, tie_word_embeddings=True, **_long(32.0)
    ),
    "tinyllama-1.1b": _llama(2048, 5632, 22, 32, num_key_value_heads=4, rms_norm_eps=1e-5),
    "mistral-7b": _llama(4096, 14336, 32, 32, sliding_window=4096, **_MISTRAL),
    "mistral-7b-v0.3": _llama(
        4096, 14336, 32, 32, vocab_size=32768, rope=Rope(rope_theta=1e6), **_MISTRAL
    ),
}
