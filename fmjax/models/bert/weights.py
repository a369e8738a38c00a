"""Weights map of the BERT family: names and layouts of `BertFor…` and `RobertaFor…`."""

from fmjax.convert import IDENTITY, TRANSPOSE, Row, Transform
from fmjax.models.bert.config import BertConfig

_LAYER = "encoder.layer.{layer}."


def rows(config: BertConfig) -> list[Row]:
    """File tensor ↔ parameter, for exactly the parameters that `config` gives the model."""
    base = f"{config.model_type}."

    def row(name: str, path: str, transform: Transform = IDENTITY) -> Row:
        """Of the encoder, whose names bear the prefix `base` where it stands under a head."""
        spellings = [prefix + n for n in (name, _legacy(name)) for prefix in (base, "")]
        written = spellings[config.head is None]
        return Row(written, path, transform, aliases=tuple(s for s in spellings if s != written))

    def dense(name: str, path: str) -> list[Row]:
        return [
            row(f"{name}.weight", f"{path}/kernel", TRANSPOSE),
            row(f"{name}.bias", f"{path}/bias"),
        ]

    def norm(name: str, path: str) -> list[Row]:
        return [row(f"{name}.weight", f"{path}/scale"), row(f"{name}.bias", f"{path}/bias")]

    tables = ("word_embeddings", "position_embeddings", "token_type_embeddings")
    projections = ("query", "key", "value")
    pooled = config.head in (None, "pretraining") or (
        config.head == "sequence-classification" and config.model_type == "bert"
    )
    return [
        *(row(f"embeddings.{t}.weight", f"{t}/embedding") for t in tables),
        *norm("embeddings.LayerNorm", "embeddings_norm"),
        *(r for p in projections for r in dense(f"{_LAYER}attention.self.{p}", _attention(p))),
        *dense(f"{_LAYER}attention.output.dense", _attention("output")),
        *norm(f"{_LAYER}attention.output.LayerNorm", "layers/attention_norm"),
        *dense(f"{_LAYER}intermediate.dense", "layers/mlp/intermediate"),
        *dense(f"{_LAYER}output.dense", "layers/mlp/output"),
        *norm(f"{_LAYER}output.LayerNorm", "layers/mlp_norm"),
        *(dense("pooler.dense", "pooler") if pooled else []),
        *_head(config),
    ]


def _attention(name: str) -> str:
    return f"layers/attention/{name}"


def _legacy(name: str) -> str:
    """As files converted from TensorFlow call the parameters of a layer norm."""
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
        "LayerNorm.bias", "LayerNorm.beta"
    )


def _head(config: BertConfig) -> list[Row]:
    def row(name: str, path: str, transform: Transform = IDENTITY) -> Row:
        old = _legacy(name)
        return Row(name, path, transform, aliases=(old,) if old != name else ())

    def dense(name: str, path: str) -> list[Row]:
        return [
            row(f"{name}.weight", f"{path}/kernel", TRANSPOSE),
            row(f"{name}.bias", f"{path}/bias"),
        ]

    def predictions(dense_name: str, norm: str, decoder: str, bias: str) -> list[Row]:
        return [
            *dense(dense_name, "predictions/dense"),
            row(f"{norm}.weight", "predictions/norm/scale"),
            row(f"{norm}.bias", "predictions/norm/bias"),
            row(bias, "predictions/bias"),
            Row(f"{decoder}.weight", "word_embeddings/embedding", copy=True),
            Row(f"{decoder}.bias", "predictions/bias", copy=True),
        ]

    roberta = config.model_type == "roberta"
    words = (
        ("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", "lm_head.bias")
        if roberta
        else (
            "cls.predictions.transform.dense",
            "cls.predictions.transform.LayerNorm",
            "cls.predictions.decoder",
            "cls.predictions.bias",
        )
    )
    match config.head:
        case "masked-lm":
            return predictions(*words)
        case "pretraining":
            return [*predictions(*words), *dense("cls.seq_relationship", "seq_relationship")]
        case "sequence-classification" if roberta:
            return [
                *dense("classifier.dense", "pooler"),
                *dense("classifier.out_proj", "classifier"),
            ]
        case "sequence-classification" | "token-classification":
            return dense("classifier", "classifier")
        case "question-answering":
            return dense("qa_outputs", "qa_outputs")
        case _:
            return []
