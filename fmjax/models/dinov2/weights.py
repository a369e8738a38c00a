"""Weights map of DINOv2: `Dinov2Model`, `Dinov2WithRegistersModel` and their classifiers."""

from fmjax.convert import TRANSPOSE, Row, Transform
from fmjax.convert.transforms import IDENTITY, Chain, Split
from fmjax.models.dinov2.config import Dinov2Config
from fmjax.models.vision_rows import VIT_LAYER, dense, embeddings, norm, prefixed


def rows(config: Dinov2Config) -> list[Row]:
    """File tensor ↔ parameter, for exactly the parameters that `config` gives the model."""
    base = f"{config.model_type}."
    prefix = "" if config.head is None else base
    tokens = ["cls_token", *["register_tokens"] * bool(config.num_register_tokens)]
    # A matrix of one row in the files.
    mask = Row(f"{prefix}embeddings.mask_token", "mask_token/token", Split(0, (1, 1)))
    encoder = [
        *embeddings(prefix, tokens),
        *[mask] * config.use_mask_token,
        *_layers(config, f"{prefix}encoder.layer.{{layer}}."),
        *norm(f"{prefix}layernorm", "final_norm"),
    ]
    return [*prefixed(encoder, base), *(dense("classifier", "classifier") if config.head else [])]


def _layers(config: Dinov2Config, layer: str) -> list[Row]:
    rows: list[Row] = []

    def add(name: str, path: str, transform: Transform = IDENTITY, module: str | None = None):
        rows.append(Row(layer + name, f"layers/{path}", transform, module=module))

    for name, (path, module) in VIT_LAYER.items():
        if name.startswith("attention."):
            add(f"{name}.weight", f"{path}/kernel", TRANSPOSE, layer + module)
            if config.qkv_bias or name == "attention.output.dense":
                add(f"{name}.bias", f"{path}/bias", module=layer + module)
    for i, name in enumerate(("attention", "mlp"), start=1):
        add(f"norm{i}.weight", f"{name}_norm/scale")
        add(f"norm{i}.bias", f"{name}_norm/bias")
        add(f"layer_scale{i}.lambda1", f"{name}_scale/scale")
    if config.use_swiglu_ffn:
        # Gate and up, one above the other. In transformers' memory they are two modules.
        halves = (2, config.intermediate_size)
        kernel = Chain((TRANSPOSE, Split(1, halves)))
        add("mlp.weights_in.weight", "mlp/weights_in/kernel", kernel)
        add("mlp.weights_in.bias", "mlp/weights_in/bias", Split(0, halves))
        down = f"{layer}mlp.down_proj"
        add("mlp.weights_out.weight", "mlp/weights_out/kernel", TRANSPOSE, down)
        add("mlp.weights_out.bias", "mlp/weights_out/bias", module=down)
        return rows
    for name in ("fc1", "fc2"):
        add(f"mlp.{name}.weight", f"mlp/{name}/kernel", TRANSPOSE)
        add(f"mlp.{name}.bias", f"mlp/{name}/bias")
    return rows
