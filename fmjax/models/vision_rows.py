"""Rows of weights maps that the vision transformers of transformers share."""

import dataclasses
from collections.abc import Sequence

from fmjax.convert import IDENTITY, TRANSPOSE, Row, Transform
from fmjax.convert.transforms import Permute

OIHW = Permute((2, 3, 1, 0))  # torch's convolutions → ours
# Tensor of a layer in the files → (path below the layer, module of transformers since version 5).
VIT_LAYER = {
    "attention.attention.query": ("attention/q_proj", "attention.q_proj"),
    "attention.attention.key": ("attention/k_proj", "attention.k_proj"),
    "attention.attention.value": ("attention/v_proj", "attention.v_proj"),
    "attention.output.dense": ("attention/o_proj", "attention.o_proj"),
    "intermediate.dense": ("mlp/fc1", "mlp.fc1"),
    "output.dense": ("mlp/fc2", "mlp.fc2"),
}


def embeddings(prefix: str, tokens: Sequence[str] = ("cls_token",)) -> list[Row]:
    """Patches, positions and tokens, below "{prefix}embeddings."."""
    name = f"{prefix}embeddings."
    patches = "patch_embeddings/projection"
    return [
        *(Row(f"{name}{token}", f"{token}/token") for token in tokens),
        Row(f"{name}position_embeddings", "position_embeddings/table"),
        Row(f"{name}patch_embeddings.projection.weight", f"{patches}/kernel", OIHW),
        Row(f"{name}patch_embeddings.projection.bias", f"{patches}/bias"),
    ]


def vit_layers(file: str, module: str, path: str, qkv_bias: bool) -> list[Row]:
    """Layers of ViT.

    Args:
      file: what the names in the files begin with, as in "vit.encoder.layer.".
      module: what the names of transformers' modules begin with, as in "vit.layers.".
      path: of the stack, "layers".
      qkv_bias: whether queries, keys and values have biases.
    """

    def row(name: str, path: str, own: str, transform: Transform = IDENTITY) -> Row:
        return Row(f"{file}{{layer}}.{name}", path, transform, module=f"{module}{{layer}}.{own}")

    rows: list[Row] = []
    for name, (below, own) in VIT_LAYER.items():
        rows.append(row(f"{name}.weight", f"{path}/{below}/kernel", own, TRANSPOSE))
        if qkv_bias or not name.startswith("attention.attention"):
            rows.append(row(f"{name}.bias", f"{path}/{below}/bias", own))
    for name, below in (("layernorm_before", "attention_norm"), ("layernorm_after", "mlp_norm")):
        rows.append(row(f"{name}.weight", f"{path}/{below}/scale", name))
        rows.append(row(f"{name}.bias", f"{path}/{below}/bias", name))
    return rows


def prefixed(rows: Sequence[Row], prefix: str) -> list[Row]:
    """The rows, of which files may hold each name with and without a prefix such as "vit."."""

    def aliases(name: str) -> list[str]:
        bare = name.removeprefix(prefix)
        return [bare, prefix + bare]

    return [dataclasses.replace(row, aliases=aliases) for row in rows]


def dense(name: str, path: str, bias: bool = True) -> list[Row]:
    """A linear layer."""
    rows = [Row(f"{name}.weight", f"{path}/kernel", TRANSPOSE)]
    return rows + [Row(f"{name}.bias", f"{path}/bias")] * bias


def norm(name: str, path: str) -> list[Row]:
    """A layer norm."""
    return [Row(f"{name}.weight", f"{path}/scale"), Row(f"{name}.bias", f"{path}/bias")]
