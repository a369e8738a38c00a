"""Heads and labels in configs: what config.json says of them, there and back."""

import pytest

import fmjax
from fmjax.core.errors import ConfigError
from fmjax.models.gemma.config import GemmaConfig
from fmjax.models.gpt2.config import GPT2Config
from fmjax.models.llama.config import LlamaConfig
from fmjax.models.registry import get_family

DECODERS = "falcon gemma gemma2 gpt2 llama mistral mixtral qwen2 qwen3".split()


@pytest.mark.parametrize("model_type", DECODERS)
def test_architectures_name_the_classes_of_transformers(model_type: str) -> None:
    import transformers

    family = get_family(model_type)
    config_cls = type(transformers.AutoConfig.for_model(model_type))
    for head, auto in {
        None: "AutoModel",
        "causal-lm": "AutoModelForCausalLM",
        "sequence-classification": "AutoModelForSequenceClassification",
        "token-classification": "AutoModelForTokenClassification",
        "question-answering": "AutoModelForQuestionAnswering",
    }.items():
        known = getattr(transformers, auto)._model_mapping
        cls = known[config_cls].__name__ if config_cls in known else None
        assert family.architectures.get(head) == cls
        if cls is None:
            continue
        hf = {"model_type": model_type, "architectures": [cls], "num_labels": 3}
        config = family.config.from_hf(hf)
        assert config.head == head and config.id2label == ("LABEL_0", "LABEL_1", "LABEL_2")
        assert config.to_hf()["architectures"] == [family.architecture(config)] == [cls]
        assert family.config.from_hf(config.to_hf()) == config


def test_what_is_not_said() -> None:
    """No architectures: a language model. Labels and dropout of transformers: not written."""
    config = LlamaConfig.from_hf({"id2label": None, "classifier_dropout": None})
    assert config == LlamaConfig() and config.head == "causal-lm"
    hf = LlamaConfig().to_hf()
    assert not {"id2label", "label2id", "problem_type", "classifier_dropout", "head"} & hf.keys()


def test_labels_of_a_language_model_are_kept() -> None:
    """As in distilgpt2's config.json."""
    hf = {"_num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    config = GPT2Config.from_hf(hf | {"architectures": ["GPT2LMHeadModel"]})
    assert config.head == "causal-lm" and config.id2label == ("LABEL_0",)
    assert config.to_hf()["id2label"] == hf["id2label"]
    assert config.to_hf()["label2id"] == hf["label2id"]


def test_labels_in_any_spelling() -> None:
    for labels in ({"1": "yes", "0": "no"}, {0: "no", 1: "yes"}, ["no", "yes"], ("no", "yes")):
        for config in (
            LlamaConfig.from_hf({"id2label": labels, "num_labels": 7}),
            LlamaConfig().replace(id2label=labels),
            fmjax.build("llama-7b", override={"id2label": labels}).config,
        ):
            assert config.id2label == ("no", "yes") and config.num_labels == 2
    hash(LlamaConfig().replace(id2label={0: "no"}))


@pytest.mark.parametrize(
    ("config", "hf", "message"),
    [
        (GPT2Config, {"architectures": ["GPT2DoubleHeadsModel"]}, "DoubleHeads.*GPT2LMHeadModel"),
        (LlamaConfig, {"architectures": ["MistralForCausalLM"]}, "Mistral.*LlamaForCausalLM"),
        (GemmaConfig, {"head": "question-answering"}, "gemma has no head 'question-answering'"),
        (LlamaConfig, {"head": "masked-lm"}, "llama has no head 'masked-lm'; .*causal-lm"),
        (LlamaConfig, {"model_type": "qwen2"}, "LlamaConfig has no model_type 'qwen2'.*mistral"),
        (LlamaConfig, {"id2label": {"0": "a", "2": "b"}}, r"\[0, 2\]; count them from 0"),
        (LlamaConfig, {"id2label": []}, "id2label is empty"),
        (LlamaConfig, {"problem_type": "ranking"}, "problem_type='ranking'.*regression"),
        (
            LlamaConfig,
            {"problem_type": "single_label_classification", "num_labels": 1},
            "needs two labels",
        ),
        (LlamaConfig, {"token_classification_bias": False}, "token_classification_bias=False"),
    ],
)
def test_heads_and_labels_that_cannot_be(config, hf, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.from_hf(hf)


def test_a_head_named_outright_comes_before_architectures() -> None:
    hf = {"architectures": ["GPT2LMHeadModel"], "head": "token-classification"}
    assert GPT2Config.from_hf(hf).head == "token-classification"
    assert GPT2Config.from_hf({"head": None}).head is None
