"""Configuration of GPT-2."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from fmjax.models.config import require
from fmjax.models.heads import Architectures, HeadedConfig, architectures

TokenId = int | tuple[int, ...] | None


@dataclasses.dataclass(frozen=True)
class GPT2Config(HeadedConfig):
    """Fields and defaults as in `transformers.GPT2Config`, dropout included.

    Attributes:
      n_inner: width of the MLP; None means 4 · n_embd.
      scale_attn_weights: divide the scores by √K.
      scale_attn_by_inverse_layer_idx: divide them by the layer's number (from 1), too.
      reorder_and_upcast_attn: the reference then takes scores in float32, as is always done here.
    """

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    resid_pdrop: float = 0.1
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    reorder_and_upcast_attn: bool = False
    tie_word_embeddings: bool = True
    pad_token_id: int | None = None
    bos_token_id: TokenId = 50256
    eos_token_id: TokenId = 50256
    model_type: str = "gpt2"

    ARCHITECTURES: ClassVar[Mapping[str, Architectures]] = {
        "gpt2": architectures("GPT2") | {"causal-lm": "GPT2LMHeadModel"}
    }
    TOKEN_CLASSIFIER: ClassVar[str] = "classifier"
    # `summary_*` belong to the double-heads model; n_ctx is an old name for n_positions.
    HARMLESS: ClassVar[frozenset[str]] = frozenset(
        {
            "n_ctx",
            "n_special",
            "predict_special_tokens",
            "summary_type",
            "summary_use_proj",
            "summary_activation",
            "summary_proj_to_labels",
            "summary_first_dropout",
        }
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.n_embd % self.n_head == 0,
            f"config: n_embd={self.n_embd} is not a multiple of n_head={self.n_head}",
        )

    @classmethod
    def _read(cls, hf: dict[str, Any]) -> dict[str, Any]:
        hf = super()._read(hf)
        # The names that every family shares, which transformers accepts for GPT-2 too.
        for common, own in (
            ("hidden_size", "n_embd"),
            ("max_position_embeddings", "n_positions"),
            ("num_attention_heads", "n_head"),
            ("num_hidden_layers", "n_layer"),
        ):
            if common in hf:
                hf.setdefault(own, hf.pop(common))
        return hf

    @property
    def position_limit(self) -> int:
        """Rows of the table of learned positions."""
        return self.n_positions

    # The names that the other families' fields bear.

    @property
    def hidden_size(self) -> int:
        """D."""
        return self.n_embd

    @property
    def num_hidden_layers(self) -> int:
        """L."""
        return self.n_layer

    @property
    def num_attention_heads(self) -> int:
        """H."""
        return self.n_head

    @property
    def head_dim(self) -> int:
        """K."""
        return self.n_embd // self.n_head

    @property
    def inner(self) -> int:
        """Width of the MLP."""
        return 4 * self.n_embd if self.n_inner is None else self.n_inner


# Published sizes by name.
PRESETS: dict[str, GPT2Config] = {
    "gpt2": GPT2Config(),
    "gpt2-medium": GPT2Config(n_embd=1024, n_layer=24, n_head=16),
    "gpt2-large": GPT2Config(n_embd=1280, n_layer=36, n_head=20),
    "gpt2-xl": GPT2Config(n_embd=1600, n_layer=48, n_head=25),
}
