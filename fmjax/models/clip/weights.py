"""Weights map of CLIP: names and layouts of `CLIPModel`, and of its encoders by themselves."""

from fmjax.convert import Row, Split
from fmjax.models.clip.config import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from fmjax.models.tower_rows import TowerRows, linear, plain
from fmjax.models.vision_rows import OIHW


def rows(config: CLIPConfig | CLIPTextConfig | CLIPVisionConfig) -> list[Row]:
    """File tensor ↔ parameter, for exactly the parameters that `config` gives the model."""
    alone = config.head is None
    match config:
        case CLIPTextConfig():
            return [*_text(alone), *([] if alone else linear("text_projection", False))]
        case CLIPVisionConfig():
            return [*_vision(config, alone), *([] if alone else linear("visual_projection", False))]
    if config.head == "image-classification":
        return [*_vision(config.vision_config, False), *linear("classifier", True)]
    return [
        plain("logit_scale"),
        *_text(False),
        *_vision(config.vision_config, False),
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


def _vision(config: CLIPVisionConfig, alone: bool) -> list[Row]:
    D = config.hidden_size
    tower = TowerRows("vision_model", alone)
    return [
        tower.row("embeddings.class_embedding", "class_embedding/token", Split(0, (1, 1, D))),
        tower.row("embeddings.patch_embedding.weight", "patch_embedding/projection/kernel", OIHW),
        tower.table("position_embedding"),
        # Their spelling.
        *tower.norm("pre_layrnorm", "pre_layrnorm"),
        *tower.layers(),
        *tower.norm("post_layernorm", "post_layernorm"),
    ]
