"""Weights map of SigLIP: names and layouts of `SiglipModel`, and of its encoders by themselves."""

from fmjax.convert import TRANSPOSE, Chain, Row, Split
from fmjax.models.siglip.config import SiglipConfig, SiglipTextConfig, SiglipVisionConfig
from fmjax.models.tower_rows import TowerRows, linear, plain
from fmjax.models.vision_rows import OIHW


def rows(config: SiglipConfig | SiglipTextConfig | SiglipVisionConfig) -> list[Row]:
    """File tensor ↔ parameter, for exactly the parameters that `config` gives the model."""
    match config:
        case SiglipTextConfig():
            return _text(True)
        case SiglipVisionConfig():
            return _vision(config, True)
    if config.head == "image-classification":
        return [*_vision(config.vision_config, False), *linear("classifier", True)]
    return [
        plain("logit_scale"),
        plain("logit_bias"),
        *_text(False),
        *_vision(config.vision_config, False),
    ]


def _text(alone: bool) -> list[Row]:
    tower = TowerRows("text_model", alone)
    return [
        tower.table("token_embedding"),
        tower.table("position_embedding"),
        *tower.layers(),
        *tower.norm("final_layer_norm", "final_layer_norm"),
        *tower.dense("head", "head"),
    ]


def _vision(config: SiglipVisionConfig, alone: bool) -> list[Row]:
    tower = TowerRows("vision_model", alone)
    rows = [
        tower.row("embeddings.patch_embedding.weight", "patch_embedding/projection/kernel", OIHW),
        tower.row("embeddings.patch_embedding.bias", "patch_embedding/projection/bias"),
        tower.table("position_embedding"),
        *tower.layers(),
        *tower.norm("post_layernorm", "post_layernorm"),
    ]
    if not config.vision_use_head:
        return rows
    parts = (3, config.hidden_size)
    attention = "head.attention"
    return [
        *rows,
        tower.row("head.probe", "head/probe/token"),
        tower.row(
            f"{attention}.in_proj_weight",
            "head/in_proj/weight",
            Chain((TRANSPOSE, Split(1, parts))),
        ),
        tower.row(f"{attention}.in_proj_bias", "head/in_proj/bias", Split(0, parts)),
        *tower.dense(f"{attention}.out_proj", "head/o_proj"),
        *tower.norm("head.layernorm", "head/norm"),
        *tower.dense("head.mlp.fc1", "head/mlp/fc1"),
        *tower.dense("head.mlp.fc2", "head/mlp/fc2"),
    ]
