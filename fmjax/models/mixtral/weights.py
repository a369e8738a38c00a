"""Weights map of Mixtral: the layout that `MixtralFor…` writes, with a tensor an expert.

Files that hold the experts fused, as transformers keeps them in memory, are read too.
"""

from fmjax.convert import TRANSPOSE, Fused, Row
from fmjax.models.decoder_rows import LAYER, around, dense, norm
from fmjax.models.mixtral.config import MixtralConfig

_MOE = f"{LAYER}block_sparse_moe."
_FUSED = f"{LAYER}mlp."


def _experts(name: str, path: str, fused: Fused) -> Row:
    return Row(
        f"{_MOE}experts.{{expert}}.{name}.weight",
        f"layers/mlp/experts/{path}/weight",
        TRANSPOSE,
        fused=fused,
    )


def rows(config: MixtralConfig) -> list[Row]:
    """File tensor ↔ parameter, for exactly the parameters that `config` gives the model."""
    gate_up = f"{_FUSED}experts.gate_up_proj"
    layers = [
        norm("input_layernorm"),
        *(r for p in "qkvo" for r in dense(f"self_attn.{p}_proj")),
        norm("post_attention_layernorm"),
        Row(
            f"{_MOE}gate.weight",
            "layers/mlp/gate/weight",
            TRANSPOSE,
            fused=Fused(f"{_FUSED}gate.weight"),
        ),
        _experts("w1", "gate_proj", Fused(gate_up, part=0, parts=2)),
        _experts("w2", "down_proj", Fused(f"{_FUSED}experts.down_proj")),
        _experts("w3", "up_proj", Fused(gate_up, part=1, parts=2)),
    ]
    return around(layers, config)
