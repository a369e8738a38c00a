"""Configuration of Mixtral."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from fmjax.models.config import require
from fmjax.models.heads import Architectures, HeadedConfig, architectures
from fmjax.models.rotary import TokenId, pop_rope, settle_heads
from fmjax.nn.rope import Rope

_THETA = 1e6  # What transformers takes where a Mixtral config.json gives none.


@dataclasses.dataclass(frozen=True)
class MixtralConfig(HeadedConfig):
    """Fields and defaults as in `transformers.MixtralConfig`.

    Attributes:
      num_key_value_heads: G; None means as many as query heads.
      head_dim: K; None means hidden_size / num_attention_heads.
      rope: `rope_parameters`, or the older `rope_theta` and `rope_scaling`.
      sliding_window: keys that a query sees, its own included; None means all.
      num_local_experts: E of each layer; some files call it `num_experts`.
      num_experts_per_tok: how many of them a token visits.
      output_router_logits: return the router's logits where the caller does not say.
      router_aux_loss_coef: weight of the load-balancing loss in training.
    """

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 8
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 131072
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-5
    rope: Rope = Rope(rope_theta=_THETA)
    sliding_window: int | None = None
    attention_dropout: float = 0.0
    num_experts_per_tok: int = 2
    num_local_experts: int = 8
    output_router_logits: bool = False
    router_aux_loss_coef: float = 0.001
    tie_word_embeddings: bool = False
    pad_token_id: int | None = None
    bos_token_id: TokenId = 1
    eos_token_id: TokenId = 2
    model_type: str = "mixtral"

    ARCHITECTURES: ClassVar[Mapping[str, Architectures]] = {"mixtral": architectures("Mixtral")}
    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "attention_bias": (False,),
        "router_jitter_noise": (0.0,),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        settle_heads(self)
        require(
            self.sliding_window is None or self.sliding_window > 0,
            f"config: sliding_window={self.sliding_window} must be positive or null",
        )
        require(
            1 <= self.num_experts_per_tok <= self.num_local_experts,
            f"config: num_experts_per_tok={self.num_experts_per_tok} must be between 1 and "
            f"num_local_experts={self.num_local_experts}",
        )

    @property
    def expert_share(self) -> float:
        """Share of the experts that a token visits."""
        return self.num_experts_per_tok / self.num_local_experts

    @classmethod
    def _read(cls, hf: dict[str, Any]) -> dict[str, Any]:
        hf = super()._read(hf)
        if "num_experts" in hf:
            hf.setdefault("num_local_experts", hf.pop("num_experts"))
        rope = pop_rope(hf, _THETA)
        return hf | {"rope": rope}

    def _write(self, values: dict[str, Any]) -> dict[str, Any]:
        values = super()._write(values)
        values["rope_parameters"] = values.pop("rope").to_hf()
        return values


# Published sizes by name.
PRESETS: dict[str, MixtralConfig] = {
    "mixtral-8x7b": MixtralConfig(max_position_embeddings=32768, router_aux_loss_coef=0.02),
    "mixtral-8x22b": MixtralConfig(
        hidden_size=6144,
        intermediate_size=16384,
        num_hidden_layers=56,
        num_attention_heads=48,
        max_position_embeddings=65536,
    ),
}
