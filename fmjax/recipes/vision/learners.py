"""The learner of each objective."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import fmjax
from fmjax.core.errors import ConfigError
from fmjax.data import augment
from fmjax.models.config import ModelConfig
from fmjax.objectives import (
    ContrastiveImageText,
    ImageClassification,
    MaskedAutoencoding,
    SigmoidImageText,
)
from fmjax.recipes.vision.learner import Given, Learner
from fmjax.train import freeze

CLASSIFIER = "image-classification"


def supervised(given: Given) -> Learner:
    """Labels of pictures."""
    config = _image_only(given.config, "supervised", "vit-s16")
    config = config.replace(head=CLASSIFIER, id2label=given.classes)
    model = fmjax.build(config, **given.execution)
    views = given.views
    return Learner(
        model,
        ImageClassification(label_smoothing=given.heads.label_smoothing),
        augment.supervised(
            given.image_size,
            classes=len(given.classes),
            rand_augment=(2, 9) if views.rand_augment else None,
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
    )


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
        augment.mae(given.image_size, **given.view()),
        None,
        lambda state: (model, state.variables["params"]),
        needs="captions",
    )


def features(
    config: ModelConfig, given: Given, pooling: str, part: str = ""
) -> Callable[[Any, Any, jax.Array], jax.Array]:
    """(variables, extra, pixel_values) → f32 [B, D] of the encoder by itself.

    Args:
      config: of the encoder without a head.
      given: how it is executed.
      pooling: "cls" or "mean" of the patches.
      part: of the parameters, that the encoder's stand under.
    """
    encoder = fmjax.build(config, **given.execution)

    def features(variables: Any, extra: Any, pixels: jax.Array) -> jax.Array:
        params = variables["params"][part] if part else variables["params"]
        return pool(config, encoder.apply({"params": params}, pixel_values=pixels), pooling)

    return features


def pool(config: ModelConfig, output: Any, pooling: str) -> jax.Array:
    """f32 [B, D] of an encoder's output: its class token, or the mean of its patches."""
    if config.model_type == "resnet":
        pooled = output.pooler_output
        return pooled.reshape(len(pooled), -1).astype(jnp.float32)
    tokens = output.last_hidden_state.astype(jnp.float32)
    return tokens[:, 0] if pooling == "cls" else tokens[:, 1:].mean(1)


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
    "clip": clip,
    "siglip": siglip,
}
