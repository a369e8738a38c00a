"""Weights map of ViT: names and layouts of `ViTModel` and `ViTForImageClassification`."""

from fmjax.convert import Row
from fmjax.models.vision_rows import dense, embeddings, norm, prefixed, vit_layers
from fmjax.models.vit.config import ViTConfig


def rows(config: ViTConfig) -> list[Row]:
    """File tensor ↔ parameter, for exactly the parameters that `config` gives the model."""
    # The encoder's names have a prefix where it stands under a head.
    prefix = "" if config.head is None else "vit."
    tokens = ["cls_token", *["mask_token"] * config.use_mask_token]
    encoder = [
        *embeddings(prefix, tokens),
        *vit_layers(f"{prefix}encoder.layer.", f"{prefix}layers.", "layers", config.qkv_bias),
        *norm(f"{prefix}layernorm", "final_norm"),
        *_pooling(config, prefix),
    ]
    head = dense("classifier", "classifier") if config.head else []
    return [*prefixed(encoder, "vit."), *head]


def _pooling(config: ViTConfig, prefix: str) -> list[Row]:
    if config.pooling == "map":
        name, path = f"{prefix}attention_pool", "attention_pool"
        layers = ("q_proj", "k_proj", "v_proj", "o_proj", "mlp.fc1", "mlp.fc2")
        return [
            Row(f"{name}.probe", f"{path}/probe/token"),
            *(row for n in layers for row in dense(f"{name}.{n}", f"{path}/{n.replace('.', '/')}")),
            *norm(f"{name}.norm", f"{path}/norm"),
        ]
    if config.pooling is None and config.head is None:
        return dense(f"{prefix}pooler.dense", "pooler")
    return []
