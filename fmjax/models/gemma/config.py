"""Configuration of the Gemma family: Gemma 1 and 2."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from fmjax.models.config import require
from fmjax.models.heads import DECODER_HEADS, Architectures, HeadedConfig, architectures
from fmjax.models.rotary import (
    FULL,
    SLIDING,
    TokenId,
    pop_rope,
    settle_heads,
    settle_layer_types,
)
from fmjax.nn.rope import Rope

_TANH_GELU = "gelu_pytorch_tanh"
# What transformers takes for a key that a Gemma 2 config.json leaves out.
_GEMMA2_DEFAULTS = {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
}
_GEMMA2_ONLY = (
    "query_pre_attn_scalar",
    "sliding_window",
    "layer_types",
    "final_logit_softcapping",
    "attn_logit_softcapping",
)
# transformers has no Gemma that answers questions.
_HEADS = DECODER_HEADS[:-1]


@dataclasses.dataclass(frozen=True)
class GemmaConfig(HeadedConfig):
    """Fields and defaults as in `transformers.GemmaConfig`; from a file, as in `Gemma2Config` too.

    Attributes:
      model_type: "gemma" or "gemma2". The latter norms what attention and MLP return, too.
      num_key_value_heads: G; None means as many as query heads.
      head_dim: K.
      hidden_act: of the MLP's gate; Gemma 2 files call it `hidden_activation`. Gemma's old "gelu"
        means the tanh approximation, as in the reference.
      rope: `rope_parameters`, or the older `rope_theta` and `rope_scaling`.
      query_pre_attn_scalar: scores are divided by its root; None means head_dim (Gemma 2).
      sliding_window: keys that a query sees in a sliding layer, its own included (Gemma 2).
      layer_types: "full_attention" or "sliding_attention" for each layer; None alternates them,
        sliding first (Gemma 2).
      attn_logit_softcapping, final_logit_softcapping: bounds of scores and logits (Gemma 2).
    """

    vocab_size: int = 256000
    hidden_size: int = 3072
    intermediate_size: int = 24576
    num_hidden_layers: int = 28
    num_attention_heads: int = 16
    num_key_value_heads: int | None = 16
    head_dim: int = 256
    hidden_act: str = _TANH_GELU
    max_position_embeddings: int = 8192
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    rope: Rope = Rope()
    attention_bias: bool = False
    attention_dropout: float = 0.0
    query_pre_attn_scalar: float | None = None
    sliding_window: int | None = None
    layer_types: tuple[str, ...] | None = None
    final_logit_softcapping: float | None = None
    attn_logit_softcapping: float | None = None
    tie_word_embeddings: bool = True
    pad_token_id: int | None = 0
    bos_token_id: TokenId = 2
    eos_token_id: TokenId = 1
    model_type: str = "gemma"

    ARCHITECTURES: ClassVar[Mapping[str, Architectures]] = {
        "gemma": architectures("Gemma", _HEADS),
        "gemma2": architectures("Gemma2", _HEADS),
    }
    # The reference's kind of cache, and an older name of Gemma 2's window that it does not read.
    HARMLESS: ClassVar[frozenset[str]] = frozenset({"cache_implementation", "sliding_window_size"})
    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {"use_bidirectional_attention": (False, None)}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden_act == "gelu" and self.model_type == "gemma":
            object.__setattr__(self, "hidden_act", _TANH_GELU)
        for name in _GEMMA2_ONLY:
            require(
                self.model_type == "gemma2" or getattr(self, name) is None,
                f"config: {name} needs model_type='gemma2'; transformers' gemma ignores it",
            )
        for name in ("final_logit_softcapping", "attn_logit_softcapping", "query_pre_attn_scalar"):
            value = getattr(self, name)
            require(value is None or value > 0, f"config: {name}={value} must be positive or null")
        settle_heads(self)
        if self.query_pre_attn_scalar is None and self.model_type == "gemma2":
            object.__setattr__(self, "query_pre_attn_scalar", self.head_dim)
        settle_layer_types(self, self._usual_layer_types())

    def _usual_layer_types(self) -> tuple[str, ...]:
        slides = self.sliding_window is not None
        return tuple(
            SLIDING if slides and i % 2 == 0 else FULL for i in range(self.num_hidden_layers)
        )

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The sliding window of each layer."""
        types = self.layer_types or self._usual_layer_types()
        return tuple(self.sliding_window if t == SLIDING else None for t in types)

    @property
    def embedding_scale(self) -> float:
        """√D."""
        return self.hidden_size**0.5

    @property
    def post_norms(self) -> bool:
        """Whether what attention and MLP return is normed."""
        return self.model_type == "gemma2"

    @classmethod
    def _read(cls, hf: dict[str, Any]) -> dict[str, Any]:
        hf = super()._read(hf)
        rope = pop_rope(hf)
        values = hf | {"rope": rope}
        newer = values.pop("hidden_activation", None)
        if hf.get("model_type") == "gemma2":
            # Only the newer name counts; the hub's files have both.
            return _GEMMA2_DEFAULTS | values | {"hidden_act": newer or _TANH_GELU}
        require(
            newer in (None, _TANH_GELU),
            f"config: transformers' gemma ignores hidden_activation={newer!r}; use hidden_act",
        )
        return values

    def _write(self, values: dict[str, Any]) -> dict[str, Any]:
        values = super()._write(values)
        values["rope_parameters"] = values.pop("rope").to_hf()
        if self.model_type == "gemma2":
            values["hidden_activation"] = values.pop("hidden_act")
            values["layer_types"] = list(self.layer_types or self._usual_layer_types())
        else:
            for name in _GEMMA2_ONLY:
                del values[name]
        return values


def _gemma2(
    width: int, inner: int, layers: int, heads: int, kv_heads: int, **others: Any
) -> GemmaConfig:
    common = _GEMMA2_DEFAULTS | dict(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        model_type="gemma2",
    )
    return GemmaConfig(**(common | others))


# Published sizes by name.
PRESETS: dict[str, GemmaConfig] = {
    "gemma-2b": GemmaConfig(
        hidden_size=2048,
        intermediate_size=16384,
        num_hidden_layers=18,
        num_attention_heads=8,
        num_key_value_heads=1,
    ),
    "gemma-7b": GemmaConfig(),
    "gemma2-2b": _gemma2(2304, 9216, 26, 8, 4),
    "gemma2-9b": _gemma2(3584, 14336, 42, 16, 8),
    "gemma2-27b": _gemma2(4608, 36864, 46, 32, 16, head_dim=128, query_pre_attn_scalar=144),
}
