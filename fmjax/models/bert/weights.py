"""Weights map of the BERT family: names and layouts of `BertFor…` and `RobertaFor…`."""

from collections.abc import Callable

from fmjax.convert import TRANSPOSE, Row
from fmjax.models.bert.config import BertConfig

_LAYER = "encoder.layer.{layer}."
# dense layer, its norm, the table that words are read off, the bias of the words.
_PREDICTIONS = {
    "bert": (
        "cls.predictions.transform.dense",
        "cls.predictions.transform.LayerNorm",
        "cls.predictions.decoder",
        "cls.predictions.bias",
    ),
    "roberta": ("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", "lm_head.bias"),
}

Spell = Callable[[str], tuple[str, ...]]


def rows(config: BertConfig) -> list[Row]:
    """File tensor ↔ parameter, for exactly the parameters that `config` gives the model."""
    base = f"{config.model_type}."
    # The encoder's names have a prefix where it stands under a head; files have them either way.
    prefixes = ("", base) if config.head is None else (base, "")

    def spell(name: str) -> tuple[str, ...]:
        return tuple(prefix + n for n in _spell(name) for prefix in prefixes)

    def layer(name: str, path: str) -> list[Row]:
        return _dense(_LAYER + name, f"layers/{path}", spell)

    def layer_norm(name: str, path: str) -> list[Row]:
        return _norm(_LAYER + name, f"layers/{path}", spell)

    tables = ("word_embeddings", "position_embeddings", "token_type_embeddings")
    return [
        *(_row(f"embeddings.{t}.weight", f"{t}/embedding", spell) for t in tables),
        *_norm("embeddings.LayerNorm", "embeddings_norm", spell),
        *(
            r
            for p in ("query", "key", "value")
            for r in layer(f"attention.self.{p}", f"attention/{p}")
        ),
        *layer("attention.output.dense", "attention/output"),
        *layer_norm("attention.output.LayerNorm", "attention_norm"),
        *layer("intermediate.dense", "mlp/intermediate"),
        *layer("output.dense", "mlp/output"),
        *layer_norm("output.LayerNorm", "mlp_norm"),
        *_head(config, _dense("pooler.dense", "pooler", spell)),
    ]


def _head(config: BertConfig, pooler: list[Row]) -> list[Row]:
    roberta = config.model_type == "roberta"
    match config.head:
        case "masked-lm":
            return _predictions(config)
        case "pretraining":
            relationship = _dense("cls.seq_relationship", "seq_relationship")
            return [*pooler, *_predictions(config), *relationship]
        case "sequence-classification" if roberta:
            return [
                *_dense("classifier.dense", "pooler"),
                *_dense("classifier.out_proj", "classifier"),
            ]
        case "sequence-classification":
            return [*pooler, *_dense("classifier", "classifier")]
        case "token-classification":
            return _dense("classifier", "classifier")
        case "question-answering":
            return _dense("qa_outputs", "qa_outputs")
        case _:
            return pooler


def _predictions(config: BertConfig) -> list[Row]:
    dense, norm, decoder, bias = _PREDICTIONS[config.model_type]
    return [
        *_dense(dense, "predictions/dense"),
        *_norm(norm, "predictions/norm"),
        Row(bias, "predictions/bias"),
        Row(f"{decoder}.weight", "word_embeddings/embedding", copy=True),
        Row(f"{decoder}.bias", "predictions/bias", copy=True),
    ]


def _spell(name: str) -> tuple[str, ...]:
    """The name, and what files converted from TensorFlow call the parameters of a layer norm."""
    old = name.replace("LayerNorm.weight", "LayerNorm.gamma")
    old = old.replace("LayerNorm.bias", "LayerNorm.beta")
    return (name,) if old == name else (name, old)


def _row(name: str, path: str, spell: Spell = _spell) -> Row:
    written, *others = spell(name)
    return Row(written, path, aliases=tuple(others))


def _dense(name: str, path: str, spell: Spell = _spell) -> list[Row]:
    written, *others = spell(f"{name}.weight")
    kernel = Row(written, f"{path}/kernel", TRANSPOSE, aliases=tuple(others))
    return [kernel, _row(f"{name}.bias", f"{path}/bias", spell)]


def _norm(name: str, path: str, spell: Spell = _spell) -> list[Row]:
    return [
        _row(f"{name}.weight", f"{path}/scale", spell),
        _row(f"{name}.bias", f"{path}/bias", spell),
    ]
