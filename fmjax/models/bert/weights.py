"""Weights map of the BERT family: names and layouts of `BertFor…` and `RobertaFor…`."""

from fmjax.convert import IDENTITY, TRANSPOSE, Row, Transform
from fmjax.models.bert.config import BertConfig

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


def rows(config: BertConfig) -> list[Row]:
    """File tensor ↔ parameter, for exactly the parameters that `config` gives the model."""
    # The encoder's names have a prefix where it stands under a head.
    prefix = "" if config.head is None else f"{config.model_type}."
    layer = f"{prefix}encoder.layer.{{layer}}."
    tables = ("word_embeddings", "position_embeddings", "token_type_embeddings")
    return [
        *(_row(f"{prefix}embeddings.{t}.weight", f"{t}/embedding") for t in tables),
        *_norm(f"{prefix}embeddings.LayerNorm", "embeddings_norm"),
        *_dense(f"{layer}attention.self.query", "layers/attention/query"),
        *_dense(f"{layer}attention.self.key", "layers/attention/key"),
        *_dense(f"{layer}attention.self.value", "layers/attention/value"),
        *_dense(f"{layer}attention.output.dense", "layers/attention/output"),
        *_norm(f"{layer}attention.output.LayerNorm", "layers/attention_norm"),
        *_dense(f"{layer}intermediate.dense", "layers/mlp/intermediate"),
        *_dense(f"{layer}output.dense", "layers/mlp/output"),
        *_norm(f"{layer}output.LayerNorm", "layers/mlp_norm"),
        *_head(config, _dense(f"{prefix}pooler.dense", "pooler")),
    ]


def _head(config: BertConfig, pooler: list[Row]) -> list[Row]:
    match config.head:
        case "masked-lm":
            return _predictions(config)
        case "pretraining":
            relationship = _dense("cls.seq_relationship", "seq_relationship")
            return [*pooler, *_predictions(config), *relationship]
        case "sequence-classification" if config.model_type == "roberta":
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
        _row(bias, "predictions/bias"),
        Row(f"{decoder}.weight", "word_embeddings/embedding", copy=True),
        Row(f"{decoder}.bias", "predictions/bias", copy=True),
    ]


def _aliases(name: str) -> list[str]:
    """With and without the encoder's prefix; layer norms also as TensorFlow's files call them."""
    bare = name.removeprefix("bert.").removeprefix("roberta.")
    old = bare.replace("LayerNorm.weight", "LayerNorm.gamma")
    old = old.replace("LayerNorm.bias", "LayerNorm.beta")
    return [prefix + n for prefix in ("", "bert.", "roberta.") for n in (bare, old)]


def _row(name: str, path: str, transform: Transform = IDENTITY) -> Row:
    return Row(name, path, transform, aliases=_aliases)


def _dense(name: str, path: str) -> list[Row]:
    return [
        _row(f"{name}.weight", f"{path}/kernel", TRANSPOSE),
        _row(f"{name}.bias", f"{path}/bias"),
    ]


def _norm(name: str, path: str) -> list[Row]:
    return [_row(f"{name}.weight", f"{path}/scale"), _row(f"{name}.bias", f"{path}/bias")]
