"""Weights map of CLIP: names and layouts of `CLIPModel`, and of its encoders by themselves."""

from fmjax.convert import Row
from fmjax.models.clip.config import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from fmjax.models.tower_rows import CONV, TowerRows, linear, plain


def rows(config: CLIPConfig | CLIPTextConfig | CLIPVisionConfig) -> list[Row]:
    """File tensor ↔ parameter, for exactly the parameters that `config` gives the model."""
    alone = config.head is None
    match config:
        case CLIPTextConfig():
            return [*_text(alone), *([] if alone else linear("text_projection", False))]
        case CLIPVisionConfig():
            return [*_vision(alone), *([] if alone else linear("visual_projection", False))]
    if config.head == "image-classification":
        return [*_vision(False), *linear("classifier", True)]
    return [
        plain("logit_scale"),
        *_text(False),
        *_vision(False),
        *linear("visual_projection", False),
        *linear("text_projection", False),
    ]


def _text(alone: bool) -> list[Row]:
    tower = TowerRows("text_model", alone)
    return [
        tower.table("token_embedding"),
        tower.table("position_embedding"),
        *tower.layers(),
        *tower.norm("final_layer_norm", "final_layer_norm"),
    ]


def _vision(alone: bool) -> list[Row]:
    tower = TowerRows("vision_model", alone)
    return [
        tower.row("embeddings.class_embedding", "class_embedding"),
        tower.row("embeddings.patch_embedding.weight", "patch_embedding/kernel", CONV),
        tower.table("position_embedding"),
        # Their spelling.
        *tower.norm("pre_layrnorm", "pre_layrnorm"),
        *tower.layers(),
        *tower.norm("post_layernorm", "post_layernorm"),
    ]
