"""Configuration of the BERT family: BERT and RoBERTa."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from fmjax.core.errors import ConfigError
from fmjax.models.config import ModelConfig, require

TokenId = int | tuple[int, ...] | None

# model_type → head → class that transformers names in `architectures`. None is the bare encoder.
ARCHITECTURES: dict[str, dict[str | None, str]] = {
    "bert": {
        None: "BertModel",
        "masked-lm": "BertForMaskedLM",
        "pretraining": "BertForPreTraining",
        "sequence-classification": "BertForSequenceClassification",
        "token-classification": "BertForTokenClassification",
        "question-answering": "BertForQuestionAnswering",
    },
    "roberta": {
        None: "RobertaModel",
        "masked-lm": "RobertaForMaskedLM",
        "sequence-classification": "RobertaForSequenceClassification",
        "token-classification": "RobertaForTokenClassification",
        "question-answering": "RobertaForQuestionAnswering",
    },
}

# Tensors of heads. A file may hold those of another head than the one that is built (the published
# bert-base has both of its pretraining and a pooler), and lack those of a new one.
HEAD_TENSORS = re.compile(r"^((bert|roberta)\.)?pooler\.|^(cls|classifier|lm_head|qa_outputs)\.")

PROBLEM_TYPES = (
    "regression",
    "single_label_classification",
    "multi_label_classification",
    None,
)

# What transformers takes for a key that a RoBERTa config.json leaves out.
_ROBERTA_DEFAULTS = {
    "vocab_size": 50265,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}


@dataclasses.dataclass(frozen=True)
class BertConfig(ModelConfig):
    """Fields and defaults as in `transformers.BertConfig` and `RobertaConfig`, dropout included.

    Attributes:
      model_type: "bert" or "roberta".
      head: what stands on the encoder, a key of `ARCHITECTURES[model_type]`; config.json says it
        in `architectures`.
      max_position_embeddings: rows of the position table. RoBERTa's tokens start at row
        pad_token_id + 1.
      classifier_dropout: before the classifiers; None means hidden_dropout_prob.
      id2label: the names of the labels, in order; there are as many logits.
      problem_type: of sequence classification, one of `PROBLEM_TYPES`; the loss depends on it.
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
    classifier_dropout: float | None = None
    id2label: tuple[str, ...] = ("LABEL_0", "LABEL_1")
    problem_type: str | None = None
    head: str | None = None
    model_type: str = "bert"

    # Notes of the original TensorFlow code, and a switch of older transformers.
    HARMLESS: ClassVar[frozenset[str]] = frozenset(
        {
            "directionality",
            "gradient_checkpointing",
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
        require(
            self.model_type in ARCHITECTURES,
            f"config: model_type {self.model_type!r} is not of the BERT family",
        )
        known = ARCHITECTURES[self.model_type]
        require(
            self.head in known,
            f"config: {self.model_type} has no head {self.head!r}; choose one of "
            f"{', '.join(map(str, known))}",
        )
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
        require(labels > 0, "config: id2label is empty; name at least one label")
        require(
            self.head != "question-answering" or labels == 2,
            f"config: question-answering has a start and an end logit, but id2label names {labels}",
        )
        require(
            self.problem_type in PROBLEM_TYPES,
            f"config: problem_type={self.problem_type!r} is unknown; choose one of "
            f"{', '.join(map(str, PROBLEM_TYPES))}",
        )
        require(
            self.problem_type != "single_label_classification" or labels > 1,
            "config: problem_type='single_label_classification' needs two labels or more; "
            "use 'regression' for one number",
        )

    @classmethod
    def _read(cls, hf: dict[str, Any]) -> dict[str, Any]:
        model_type = hf.get("model_type", "bert")
        if model_type == "roberta":
            hf = _ROBERTA_DEFAULTS | hf
        named = hf.pop("architectures", None)
        if named and "head" not in hf:
            heads = {name: head for head, name in ARCHITECTURES.get(model_type, {}).items()}
            if named[0] not in heads:
                raise ConfigError(
                    f"config: architectures names {named[0]}, which is not supported; "
                    f"fmjax reads {', '.join(heads)}"
                )
            hf["head"] = heads[named[0]]
        hf.pop("label2id", None)
        labels, number = hf.pop("id2label", None), hf.pop("num_labels", None)
        if labels is not None:
            hf["id2label"] = _labels(labels)
        elif number is not None:
            hf["id2label"] = tuple(f"LABEL_{i}" for i in range(number))
        return hf

    def _write(self, values: dict[str, Any]) -> dict[str, Any]:
        values["architectures"] = [ARCHITECTURES[self.model_type][values.pop("head")]]
        labels = values.pop("id2label")
        values["id2label"] = {str(i): label for i, label in enumerate(labels)}
        values["label2id"] = {label: i for i, label in enumerate(labels)}
        return values

    @property
    def num_labels(self) -> int:
        """Logits of the classification heads."""
        return len(self.id2label)

    @property
    def head_dim(self) -> int:
        """K."""
        return self.hidden_size // self.num_attention_heads

    @property
    def classifier_rate(self) -> float:
        """Dropout before the classifiers."""
        given = self.classifier_dropout
        return self.hidden_dropout_prob if given is None else given

    @property
    def position_limit(self) -> int:
        """Rows of the position table that tokens can stand on."""
        offset = self.pad_token_id + 1 if self.model_type == "roberta" else 0
        return self.max_position_embeddings - offset


def _labels(given: Any) -> tuple[str, ...]:
    """{"0": "NEG", "1": "POS"} (or a sequence of names) → ("NEG", "POS")."""
    if not isinstance(given, Mapping):
        return tuple(given)
    numbered = {int(number): str(label) for number, label in given.items()}
    require(
        sorted(numbered) == list(range(len(numbered))),
        f"config: id2label numbers its labels {sorted(numbered)}; count them from 0",
    )
    return tuple(numbered[i] for i in range(len(numbered)))


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
