"""Configs of models with a choice of heads: which there are, and how config.json names them."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from fmjax.core.errors import ConfigError
from fmjax.models.config import ModelConfig, require

Architectures = dict[str | None, str]

PROBLEM_TYPES = (
    "regression",
    "single_label_classification",
    "multi_label_classification",
    None,
)

# Head → how transformers calls the class with it.
_CLASSES: Architectures = {
    None: "{}Model",
    "causal-lm": "{}ForCausalLM",
    "masked-lm": "{}ForMaskedLM",
    "pretraining": "{}ForPreTraining",
    "sequence-classification": "{}ForSequenceClassification",
    "token-classification": "{}ForTokenClassification",
    "question-answering": "{}ForQuestionAnswering",
    "image-classification": "{}ForImageClassification",
}

DECODER_HEADS = (
    None,
    "causal-lm",
    "sequence-classification",
    "token-classification",
    "question-answering",
)

_LABELS = ("LABEL_0", "LABEL_1")  # transformers' own names, which a config.json leaves out


def architectures(name: str, heads: tuple[str | None, ...] = DECODER_HEADS) -> Architectures:
    """Head → class of transformers: {None: "LlamaModel", "causal-lm": "LlamaForCausalLM", …}."""
    return {head: _CLASSES[head].format(name) for head in heads}


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadedConfig(ModelConfig):
    """Base of the configs of families that have several heads; they add `model_type`.

    Attributes:
      ARCHITECTURES: model_type → head → the class that transformers names in `architectures`. A
        config.json that names none has the head that is the field's default.
      HEAD_TENSORS: names in the files of what belongs to heads. Files may hold those of another
        head than the one that is built, and lack those of a new one.
      TOKEN_CLASSIFIER: the module that classifies tokens.
      head: what stands on the hidden states, a key of `ARCHITECTURES[model_type]`; None: nothing.
      id2label: the names of the labels, in order; the classifiers have as many logits.
      problem_type: of sequence classification, one of `PROBLEM_TYPES`; the loss depends on it.
      classifier_dropout: before the classifiers; None means the family's own.
    """

    ARCHITECTURES: ClassVar[Mapping[str, Architectures]]
    HEAD_TENSORS: ClassVar[re.Pattern[str]] = re.compile(
        r"^(lm_head|score|classifier|qa_outputs)\."
    )
    TOKEN_CLASSIFIER: ClassVar[str] = "score"

    head: str | None = "causal-lm"
    id2label: tuple[str, ...] = _LABELS
    problem_type: str | None = None
    classifier_dropout: float | None = None

    def __post_init__(self) -> None:
        name = type(self).__name__
        require(
            self.model_type in self.ARCHITECTURES,
            f"config: {name} has no model_type {self.model_type!r}; choose one of "
            f"{', '.join(self.ARCHITECTURES)}",
        )
        heads = self.ARCHITECTURES[self.model_type]
        require(
            self.head in heads,
            f"config: {self.model_type} has no head {self.head!r}; choose one of "
            f"{', '.join(map(str, heads))}",
        )
        object.__setattr__(self, "id2label", _in_order(self.id2label))
        require(self.num_labels > 0, "config: id2label is empty; name at least one label")
        require(
            self.problem_type in PROBLEM_TYPES,
            f"config: problem_type={self.problem_type!r} is unknown; choose one of "
            f"{', '.join(map(str, PROBLEM_TYPES))}",
        )
        require(
            self.problem_type != "single_label_classification" or self.num_labels > 1,
            "config: problem_type='single_label_classification' needs two labels or more; "
            "use 'regression' for one number",
        )

    @property
    def num_labels(self) -> int:
        """Logits of the classifiers."""
        return len(self.id2label)

    @property
    def classifier_rate(self) -> float:
        """Dropout before the classifiers."""
        given = self.classifier_dropout
        return self._usual_classifier_dropout if given is None else given

    @property
    def _usual_classifier_dropout(self) -> float:
        return 0.1

    @classmethod
    def _read(cls, hf: dict[str, Any]) -> dict[str, Any]:
        known = cls.ARCHITECTURES.get(hf.get("model_type", cls.model_type))
        named = hf.pop("architectures", None)
        if named and known and "head" not in hf:
            # Early conversions of LLaMA say LLaMAForCausalLM.
            heads = {name.lower(): head for head, name in known.items()}
            if not isinstance(named, list) or not isinstance(named[0], str):
                raise ConfigError(f"config: architectures={named!r} must be a list of names")
            if named[0].lower() not in heads:
                raise ConfigError(
                    f"config: architectures names {named[0]}, which is not supported; "
                    f"fmjax reads {', '.join(known.values())}; choose a head with override"
                )
            hf["head"] = heads[named[0].lower()]
        # The first says nothing that id2label does not; transformers does not read the second.
        for key in ("label2id", "_num_labels"):
            hf.pop(key, None)
        number = hf.pop("num_labels", None)
        if number is not None and hf.get("id2label") is None:
            hf["id2label"] = tuple(f"LABEL_{i}" for i in range(number))
        return {k: v for k, v in hf.items() if k != "id2label" or v is not None}

    def _write(self, values: dict[str, Any]) -> dict[str, Any]:
        values["architectures"] = [self.ARCHITECTURES[self.model_type][values.pop("head")]]
        for key in ("problem_type", "classifier_dropout"):
            if values[key] is None:
                del values[key]
        labels = values.pop("id2label")
        if tuple(labels) != _LABELS:
            values["id2label"] = {str(i): label for i, label in enumerate(labels)}
            values["label2id"] = {label: i for i, label in enumerate(labels)}
        return values


def _in_order(labels: Any) -> tuple[str, ...]:
    """{"0": "NEG", "1": "POS"}, or a sequence of names → ("NEG", "POS")."""
    if isinstance(labels, list | tuple):
        return tuple(map(str, labels))
    numbers = isinstance(labels, Mapping) and all(str(n).isdecimal() for n in labels)
    require(numbers, f"config: id2label={labels!r} must map numbers to names, or list the names")
    numbered = {int(number): str(label) for number, label in labels.items()}
    require(
        sorted(numbered) == list(range(len(numbered))),
        f"config: id2label numbers its labels {sorted(numbered)}; count them from 0",
    )
    return tuple(numbered[i] for i in range(len(numbered)))
