"""Rows of the weights maps of decoders whose files are laid out like LLaMA's."""

from collections.abc import Sequence

from fmjax.convert import TRANSPOSE, Row

LAYER = "model.layers.{layer}."


def dense(name: str, bias: bool = False) -> list[Row]:
    """Rows of a linear layer of a layer: "mlp.up_proj" ↔ "layers/mlp/up_proj"."""
    path = "layers/" + name.replace(".", "/")
    weight = Row(f"{LAYER}{name}.weight", f"{path}/kernel", TRANSPOSE)
    return [weight, Row(f"{LAYER}{name}.bias", f"{path}/bias")] if bias else [weight]


def norm(name: str) -> Row:
    """Row of a norm of a layer."""
    return Row(f"{LAYER}{name}.weight", f"layers/{name.replace('.', '/')}/scale")


def around(layers: Sequence[Row], tied: bool) -> list[Row]:
    """The layers' rows between the embedding's, the last norm's and the head's."""
    return [
        Row("model.embed_tokens.weight", "embed_tokens/embedding"),
        *layers,
        Row("model.norm.weight", "norm/scale"),
        Row("lm_head.weight", "embed_tokens/embedding", copy=True)
        if tied
        else Row("lm_head.weight", "lm_head/kernel", TRANSPOSE),
    ]
