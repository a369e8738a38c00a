"""Configuration of the BERT family: BERT and RoBERTa."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from fmjax.models.config import require
from fmjax.models.heads import Architectures, HeadedConfig, architectures

TokenId = int | tuple[int, ...] | None

_HEADS = (
    None,
    "masked-lm",
    "sequence-classification",
    "token-classification",
    "question-answering",
)

# What transformers takes for a key that a RoBERTa config.json leaves out.
_ROBERTA_DEFAULTS = {
    "vocab_size": 50265,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}


@dataclasses.dataclass(frozen=True)
class BertConfig(HeadedConfig):
    """Fields and defaults as in `transformers.BertConfig` and `RobertaConfig`, dropout included.

    Attributes:
      model_type: "bert" or "roberta".
      max_position_embeddings: rows of the position table. RoBERTa's tokens start at row
        pad_token_id + 1.
      classifier_dropout: before the classifiers; None means hidden_dropout_prob.
      head: None is the bare encoder.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    bos_token_id: TokenId = None
    eos_token_id: TokenId = None
    head: str | None = dataclasses.field(default=None, kw_only=True)
    model_type: str = "bert"

    ARCHITECTURES: ClassVar[Mapping[str, Architectures]] = {
        "bert": architectures("Bert", (*_HEADS, "pretraining")),
        "roberta": architectures("Roberta", _HEADS),
    }
    # The published bert-base has both heads of its pretraining and a pooler.
    HEAD_TENSORS: ClassVar[re.Pattern[str]] = re.compile(
        r"^((bert|roberta)\.)?pooler\.|^(cls|classifier|lm_head|qa_outputs)\."
    )
    # Notes of the original TensorFlow code.
    HARMLESS: ClassVar[frozenset[str]] = frozenset(
        {
            "directionality",
            "pooler_fc_size",
            "pooler_num_attention_heads",
            "pooler_num_fc_layers",
            "pooler_size_per_head",
            "pooler_type",
        }
    )
    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "position_embedding_type": ("absolute",),
        "tie_word_embeddings": (True,),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.hidden_size % self.num_attention_heads == 0,
            f"config: hidden_size={self.hidden_size} is not a multiple of "
            f"num_attention_heads={self.num_attention_heads}",
        )
        require(
            self.model_type != "roberta" or self.pad_token_id is not None,
            "config: RoBERTa counts positions from pad_token_id, which is null",
        )
        labels = self.num_labels
        require(
            self.head != "question-answering" or labels == 2,
            f"config: question-answering has a start and an end logit, but id2label names {labels}",
        )

    @classmethod
    def _read(cls, hf: dict[str, Any]) -> dict[str, Any]:
        hf = super()._read(hf)
        return _ROBERTA_DEFAULTS | hf if hf.get("model_type") == "roberta" else hf

    @property
    def head_dim(self) -> int:
        """K."""
        return self.hidden_size // self.num_attention_heads

    @property
    def _usual_classifier_dropout(self) -> float:
        return self.hidden_dropout_prob

    @property
    def position_limit(self) -> int:
        """Rows of the position table that tokens can stand on."""
        offset = self.pad_token_id + 1 if self.model_type == "roberta" else 0
        return self.max_position_embeddings - offset


def _sizes(name: str, **others: Any) -> dict[str, BertConfig]:
    base = BertConfig(head="masked-lm", **others)
    large = dict(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
    )
    return {f"{name}-base": base, f"{name}-large": base.replace(**large)}


# Published sizes by name, with the head of their pretraining.
PRESETS: dict[str, BertConfig] = {
    **_sizes("bert"),
    **_sizes(
        "roberta",
        model_type="roberta",
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        **_ROBERTA_DEFAULTS,
    ),
}
