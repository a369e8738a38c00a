"""Configuration of the Falcon family."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from fmjax.models.config import require
from fmjax.models.heads import Architectures, HeadedConfig, architectures
from fmjax.models.rotary import rope_dict
from fmjax.nn.rope import Rope

TokenId = int | tuple[int, ...] | None


@dataclasses.dataclass(frozen=True)
class FalconConfig(HeadedConfig):
    """Fields and defaults as in `transformers.FalconConfig`.

    Attributes:
      new_decoder_architecture: query heads in `num_kv_heads` groups, each with its key and value.
      multi_query: otherwise, one key and value for all query heads; if False, one for each.
      num_kv_heads: read with `new_decoder_architecture` only; None means as many as query heads.
      parallel_attn: attention and MLP read the same x; if False, the MLP reads attention's result.
      num_ln_in_parallel_attn: 2 gives attention and MLP a norm each (new decoder architecture
        only); None means 2 there and 1 elsewhere.
      alibi: positions as a bias on the scores instead of rotation.
      rope: `rope_parameters`, or the older `rope_theta` and `rope_scaling`; unused with `alibi`.
      bias: on every projection but the head.
      ffn_hidden_size: width of the MLP; None means 4 · hidden_size.
      attention_dropout: of the probabilities with `alibi`, of attention's result in serial blocks.
    """

    vocab_size: int = 65024
    hidden_size: int = 4544
    num_hidden_layers: int = 32
    num_attention_heads: int = 71
    num_kv_heads: int | None = None
    new_decoder_architecture: bool = False
    multi_query: bool = True
    parallel_attn: bool = True
    num_ln_in_parallel_attn: int | None = None
    alibi: bool = False
    rope: Rope = Rope()
    max_position_embeddings: int = 2048
    bias: bool = False
    ffn_hidden_size: int | None = None
    activation: str = "gelu"
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    tie_word_embeddings: bool = True
    pad_token_id: int | None = None
    bos_token_id: TokenId = 11
    eos_token_id: TokenId = 11
    model_type: str = "falcon"

    ARCHITECTURES: ClassVar[Mapping[str, Architectures]] = {"falcon": architectures("Falcon")}
    TOKEN_CLASSIFIER: ClassVar[str] = "classifier"
    # The width of the MLP is `ffn_hidden_size`, whatever its ratio to hidden_size.
    HARMLESS: ClassVar[frozenset[str]] = frozenset({"ff_factor"})
    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "apply_residual_connection_post_layernorm": (False,)
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        heads, new = self.num_attention_heads, self.new_decoder_architecture
        for field, value in (
            ("num_kv_heads", heads),
            ("ffn_hidden_size", 4 * self.hidden_size),
            ("num_ln_in_parallel_attn", 2 if new else 1),
        ):
            if getattr(self, field) is None:
                object.__setattr__(self, field, value)
        require(
            self.hidden_size % heads == 0,
            f"config: hidden_size={self.hidden_size} is not a multiple of "
            f"num_attention_heads={heads}",
        )
        require(
            not new or (self.num_kv_heads >= 1 and heads % self.num_kv_heads == 0),
            f"config: num_attention_heads={heads} is not a multiple of "
            f"num_kv_heads={self.num_kv_heads}",
        )
        require(
            new or self.multi_query or self.num_kv_heads == heads,
            f"config: num_kv_heads={self.num_kv_heads} below num_attention_heads={heads} needs "
            "new_decoder_architecture",
        )
        require(
            self.parallel_attn or not new,
            "config: new_decoder_architecture has no serial blocks; set parallel_attn to true",
        )
        require(
            self.num_ln_in_parallel_attn in (1, 2),
            f"config: num_ln_in_parallel_attn={self.num_ln_in_parallel_attn} must be 1 or 2",
        )
        require(
            self.num_ln_in_parallel_attn == 1 or new or not self.parallel_attn,
            "config: num_ln_in_parallel_attn=2 needs new_decoder_architecture",
        )
        require(
            self.head_dim % 2 == 0,
            f"config: hidden_size / num_attention_heads={self.head_dim} must be even; "
            "transformers' falcon makes RoPE tables even with alibi",
        )
        require(
            self.rope.rope_type == "proportional" or self.rope.partial_rotary_factor in (None, 1.0),
            f"config: partial_rotary_factor={self.rope.partial_rotary_factor} needs rope_type "
            "'proportional'; transformers' falcon otherwise rotates whole heads",
        )

    @classmethod
    def _read(cls, hf: dict[str, Any]) -> dict[str, Any]:
        hf = super()._read(hf)
        if (width := hf.pop("n_embed", None)) is not None:
            hf["hidden_size"] = width  # the older name, which wins in transformers
        theta, parameters = hf.pop("rope_theta", None), rope_dict(hf)
        if theta is not None:
            parameters.setdefault("rope_theta", theta)
        return hf | {"rope": Rope.from_hf(parameters)}

    def _write(self, values: dict[str, Any]) -> dict[str, Any]:
        values = super()._write(values)
        values["rope_parameters"] = values.pop("rope").to_hf()
        return values

    @property
    def head_dim(self) -> int:
        """K."""
        return self.hidden_size // self.num_attention_heads

    @property
    def kv_heads(self) -> int:
        """G, the key–value heads that there are."""
        one = self.multi_query and not self.new_decoder_architecture
        return 1 if one else self.num_kv_heads

    @property
    def _usual_classifier_dropout(self) -> float:
        return self.hidden_dropout

    @property
    def norms(self) -> tuple[str, ...]:
        """Names of a block's norms: attention's and, if it has one of its own, the MLP's."""
        if not self.parallel_attn:
            return ("input_layernorm", "post_attention_layernorm")
        if self.num_ln_in_parallel_attn == 2:
            return ("ln_attn", "ln_mlp")
        return ("input_layernorm",)


# Published sizes by name.
PRESETS: dict[str, FalconConfig] = {
    "falcon-7b": FalconConfig(),
    "falcon-40b": FalconConfig(
        hidden_size=8192,
        num_hidden_layers=60,
        num_attention_heads=128,
        num_kv_heads=8,
        new_decoder_architecture=True,
    ),
    "falcon-rw-1b": FalconConfig(
        vocab_size=50304,
        hidden_size=2048,
        num_hidden_layers=24,
        num_attention_heads=32,
        multi_query=False,
        parallel_attn=False,
        alibi=True,
        bias=True,
        bos_token_id=1,
        eos_token_id=2,
    ),
}
