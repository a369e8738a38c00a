"""The learner of each objective."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

import fmjax
from fmjax.core.errors import ConfigError
from fmjax.core.execution import Execution
from fmjax.data import augment
from fmjax.models.config import ModelConfig
from fmjax.nn.projection import ProjectionHead, WithHead
from fmjax.nn.projection_mlp import ProjectionMLP
from fmjax.objectives import (
    DINO,
    BatchStatistics,
    ContrastiveImageText,
    DINOv2,
    ImageClassification,
    MaskedAutoencoding,
    SigmoidImageText,
    SimCLR,
)
from fmjax.recipes.vision.learner import Given, Learner
from fmjax.train import freeze, schedules

CLASSIFIER = "image-classification"
# Encoders whose vectors are their own pooler's.
_POOLED = ("resnet", "clip_vision_model", "siglip_vision_model")
# BYOL's strengths, which DINO has.
_JITTER = (0.4, 0.4, 0.2, 0.1)
Features = Callable[[Any, Any, jax.Array], jax.Array]


def supervised(given: Given) -> Learner:
    """Labels of pictures."""
    config = _image_only(given.config, "supervised", "vit-s16")
    config = config.replace(head=CLASSIFIER, id2label=given.classes, problem_type=None)
    model = fmjax.build(config, **given.execution)
    views = given.views
    return Learner(
        model,
        _normed(ImageClassification(label_smoothing=given.heads.label_smoothing), config),
        augment.supervised(
            given.image_size,
            classes=len(given.classes),
            mixup=views.mixup,
            cutmix=views.cutmix,
            **given.view(),
        ),
        None,
        lambda state: (model, state.variables["params"]),
        needs="labels",
    )


def mae(given: Given) -> Learner:
    """Pixels of hidden patches."""
    config = given.config
    if config.model_type != "vit_mae":
        raise ConfigError(
            f"--objective mae trains a vit_mae, not a {config.model_type}; give --model mae-b16 or "
            "a config.json of one"
        )
    model = fmjax.build(config.replace(head="pretraining"), **given.execution)
    objective = MaskedAutoencoding(config.patch_size, config.norm_pix_loss)
    return Learner(
        model,
        objective,
        augment.mae(given.image_size, **given.view()),
        features(config.replace(head=None), given, "mean"),
        lambda state: (model, state.variables["params"]),
        trainable=freeze(*objective.frozen),
        reconstructs=True,
    )


def simclr(given: Given) -> Learner:
    """Two views of a picture find each other."""
    config = _one_encoder(given.config, "simclr", "resnet-50").replace(head=None)
    views, execution = given.views, given.execution
    grey = {} if views.color else {"gray_probability": 0.0}
    projection = ProjectionMLP(
        given.heads.projection, given.heads.hidden, execution=Execution(**execution)
    )
    module = _with_head(config, given, projection)
    return Learner(
        module,
        BatchStatistics(SimCLR(temperature=given.heads.temperature)),
        augment.simclr(given.image_size, views.color, blur=views.blur, **given.view(), **grey),
        features(config, given, module.pool, "backbone"),
        lambda state: (module.backbone, state.variables["params"]["backbone"]),
        evaluates=False,
    )


def dino(given: Given) -> Learner:
    """A student agrees on crops with the average of itself."""
    return _distilled(given, DINO, augment.dino)


def dinov2(given: Given) -> Learner:
    """The same with hidden patches, and pictures spread over the sphere."""
    if not hasattr(given.config, "use_mask_token"):
        raise ConfigError(
            f"--objective dinov2 hides patches behind a token that {given.config.model_type} has "
            "not; give --model dinov2-s14 or vit-s16"
        )
    return _distilled(given, DINOv2, augment.dinov2, patch_size=given.patch)


def _distilled(given: Given, objective: Any, views: Any, **more: Any) -> Learner:
    config = _one_encoder(given.config, "dino", "vit-s16").replace(head=None)
    if more and hasattr(config, "use_mask_token"):
        config = config.replace(use_mask_token=True)
    heads, steps = given.heads, given.steps
    head = ProjectionHead(
        heads.prototypes,
        heads.hidden,
        kernel_init=nn.initializers.normal(heads.head_range),
        learned_scale=objective is DINOv2,
        execution=Execution(**given.execution),
    )
    module = _with_head(config, given, head)
    strength = given.views.color
    colours: dict[str, Any] = {"jitter": tuple(strength * j for j in _JITTER)}
    if not strength:
        colours["gray_probability"] = 0.0
    if not given.views.blur:
        colours["blur_probability"] = 0.0
    if not strength or not given.views.solarize:
        colours["solarize_probability"] = 0.0
    small = given.views.local_size or _local_size(given)
    if small % given.patch and hasattr(config, "patch_size"):
        raise ConfigError(
            f"--local-size {small} is not a number of whole patches of {given.patch} pixels"
        )
    view = given.view()
    least = view["scale"][0]
    crops = views(
        given.image_size,
        small,
        given.views.local_crops,
        local_scale=(min(0.05, least), least) if least > 0.05 else (least, least),
        **more,
        **view,
        **colours,
    )
    # Sharp enough from the start, where the end is sharper than the published start.
    first = min(0.04, heads.teacher_temperature)
    warm = max(round(0.3 * steps), 1)
    return Learner(
        module,
        _normed(
            objective(
                teacher_temperature=schedules.ramp(first, heads.teacher_temperature, warm),
                teacher_momentum=schedules.cosine(heads.teacher_momentum, 1.0, steps),
                freeze_last_layer=given.frozen_steps,
            ),
            config,
        ),
        crops,
        _teacher(features(config, given, module.pool, "backbone")),
        lambda state: (module.backbone, _teachers(state.extra)["params"]["backbone"]),
        held_steps=given.frozen_steps,
        evaluates=False,
    )


def _teacher(student: Features) -> Features:
    """Of the teacher, which is what the run leaves behind."""
    return lambda variables, extra, pixels: student(_teachers(extra), extra, pixels)


def _teachers(extra: Any) -> Any:
    """Variables of the teacher; batch statistics stand around the objective's state."""
    return extra.get("objective", extra)["teacher"]


def _local_size(given: Given) -> int:
    """Whole patches that make about 0.43 of the side, as 96 of 224 pixels."""
    return max(round(0.43 * given.image_size / given.patch), 1) * given.patch


def _with_head(config: ModelConfig, given: Given, head: nn.Module) -> WithHead:
    """The encoder, with a head on what its vectors are taken from."""
    own = config.model_type in _POOLED or getattr(config, "pooling", None) is not None
    backbone = fmjax.build(config, **given.execution)
    prefix = 1 + getattr(config, "num_register_tokens", 0)
    return WithHead(backbone, head, pool="pooler" if own else "cls", prefix=prefix)


def clip(given: Given) -> Learner:
    """Pictures and captions find each other, by a softmax."""
    return _image_text(given, "clip", ContrastiveImageText())


def siglip(given: Given) -> Learner:
    """Pictures and captions find each other, pair by pair."""
    return _image_text(given, "siglip", SigmoidImageText())


def _image_text(given: Given, family: str, objective: Any) -> Learner:
    config = given.config
    if config.model_type not in ("clip", "siglip"):
        raise ConfigError(
            f"--objective {family} trains an encoder of images and one of texts, and "
            f"{config.model_type} is not both; give --model clip-vit-b32 or siglip-b16-224"
        )
    model = fmjax.build(config, **given.execution)
    return Learner(
        model,
        objective,
        augment.mae(given.image_size, **given.view() | {"flip": 0.0}),
        None,
        lambda state: (model, state.variables["params"]),
        needs="captions",
    )


def features(config: ModelConfig, given: Given, pooling: str, part: str = "") -> Features:
    """(variables, extra, pixel_values) → f32 [B, D] of the encoder by itself.

    Args:
      config: of the encoder without a head.
      given: how it is executed, and the pooling where the settings name one.
      pooling: else; see `pool`.
      part: of the parameters, that the encoder's stand under.

    Raises:
      ConfigError: an encoder without what the settings name.
    """
    if given.pooling != "auto":
        pooling = given.pooling
        if config.model_type in _POOLED:
            raise ConfigError(
                f"--features {pooling}: the tokens of a {config.model_type} are not compared here; "
                "leave it out for the encoder's own vectors"
            )
    first = 1 + getattr(config, "num_register_tokens", 0)
    encoder = fmjax.build(config, **given.execution)

    def features(variables: Any, extra: Any, pixels: jax.Array) -> jax.Array:
        params = variables["params"][part] if part else variables["params"]
        return pool(encoder.apply({"params": params}, pixel_values=pixels), pooling, first)

    return features


def pool(output: Any, pooling: str, first: int = 1) -> jax.Array:
    """f32 [B, D] of an encoder's output.

    Args:
      output: of the encoder.
      pooling: "cls", "mean" of the patches, "patches", side by side, or "pooler", the model's own.
      first: tokens before the patches.
    """
    if pooling == "pooler":
        return output.pooler_output.reshape(len(output.pooler_output), -1).astype(jnp.float32)
    tokens = output.last_hidden_state.astype(jnp.float32)
    if pooling == "cls":
        return tokens[:, 0]
    patches = tokens[:, first:]
    return patches.mean(1) if pooling == "mean" else patches.reshape(len(patches), -1)


def _normed(objective: Any, config: ModelConfig) -> Any:
    """With running statistics, where the model has batch norm."""
    return BatchStatistics(objective) if config.model_type == "resnet" else objective


def _one_encoder(config: ModelConfig, objective: str, example: str) -> ModelConfig:
    """`_image_only`, and no encoder of texts beside it."""
    if hasattr(config, "vision_config"):
        raise ConfigError(
            f"--objective {objective} trains one image encoder, and {config.model_type} has one of "
            f"texts too; give --model {example}"
        )
    return _image_only(config, objective, example)


def _image_only(config: ModelConfig, objective: str, example: str) -> ModelConfig:
    """The config of an image encoder.

    Raises:
      ConfigError: another model.
    """
    if not hasattr(config, "num_channels"):
        raise ConfigError(
            f"--objective {objective} trains an image encoder, and {config.model_type} is none; "
            f"give --model {example}"
        )
    return config


LEARNERS: dict[str, Callable[[Given], Learner]] = {
    "supervised": supervised,
    "mae": mae,
    "simclr": simclr,
    "dino": dino,
    "dinov2": dinov2,
    "clip": clip,
    "siglip": siglip,
}
