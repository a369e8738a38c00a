"""CLIP (arXiv:2103.00020): an encoder of images and one of texts, compared in a common space.

Shapes: I images, J texts, T tokens, C channels, P size of the common space.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.core.execution import Execution
from fmjax.models.clip.config import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from fmjax.models.clip.start import normal
from fmjax.models.clip.text import TextTower
from fmjax.models.clip.vision import VisionTower
from fmjax.models.towers import (
    STACK,
    check_adapter,
    check_given,
    compare,
    dummy_images,
    dummy_texts,
)
from fmjax.nn.dense import Dense
from fmjax.nn.dropout import dropout
from fmjax.nn.learned import learned
from fmjax.nn.outputs import ContrastiveOutput, EncoderOutput, ImageClassifierOutput

__all__ = ["CLIP", "STACK", "CLIPText", "CLIPVision"]


def _project(pooled: jax.Array, size: int, factor: float, ex: Execution, name: str) -> jax.Array:
    """Into the common space, f32 [B, P]; called inside a model's `__call__`."""
    init = normal(factor * pooled.shape[-1] ** -0.5)
    return Dense(size, ("embed", None), False, init, ex, jnp.float32, name=name)(pooled)


class CLIP(nn.Module):
    """Both encoders, or the one of images under a classifier.

    Attributes:
      config: the architecture.
      execution: precision, scanning, rematerialisation, kernels.
    """

    config: CLIPConfig
    execution: Execution = Execution()

    @nn.compact
    def __call__(
        self,
        input_ids: jax.Array | None = None,
        pixel_values: jax.Array | None = None,
        attention_mask: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        output_hidden_states: bool = False,
    ) -> ContrastiveOutput | ImageClassifierOutput:
        """Encodes images, texts or both.

        Args:
          input_ids: i32 [J, T], each with the end-of-text id.
          pixel_values: [I, height, width, C], normalised; positions are interpolated where the
            size is not the config's.
          attention_mask: [J, T], 1 where there is a token. Behind its end a text is not read, so
            none is needed for padding on the right.
          position_ids: i32 [J, T]; default 0, 1, ….
          output_hidden_states: return every layer's output too.

        Raises:
          DataError: inputs that are missing or do not fit.
        """
        cfg, ex = self.config, self.execution
        check_adapter(self)
        check_given(cfg.head, input_ids, pixel_values)
        vision = text = images = texts = None
        if pixel_values is not None:
            tower = VisionTower(cfg.vision_config, ex, name="vision_model")
            vision = tower(pixel_values, output_hidden_states)
        if cfg.head == "image-classification":
            init = normal(cfg.initializer_factor * cfg.vision_config.hidden_size**-0.5)
            dense = Dense(
                cfg.num_labels, ("embed", None), True, init, ex, jnp.float32, name="classifier"
            )
            mean = jnp.mean(vision.last_hidden_state[:, 1:], 1)
            mean = dropout(self, mean, cfg.classifier_rate)
            return ImageClassifierOutput(
                dense(mean), vision.last_hidden_state, vision.hidden_states
            )
        P, factor = cfg.projection_dim, cfg.initializer_factor
        if vision is not None:
            images = _project(vision.pooler_output, P, factor, ex, "visual_projection")
        if input_ids is not None:
            tower = TextTower(cfg.text_config, ex, name="text_model")
            text = tower(input_ids, attention_mask, position_ids, output_hidden_states)
            texts = _project(text.pooler_output, P, factor, ex, "text_projection")
        init = nn.initializers.constant(cfg.logit_scale_init_value)
        scale = learned(self, "logit_scale", init, (), (), ex)
        return compare(images, texts, scale, vision=vision, text=text)

    def dummy_inputs(self) -> dict[str, Any]:
        """The smallest valid inputs, for tracing."""
        images = dummy_images(self.config.vision_config)
        return images if self.config.head else images | dummy_texts()


class CLIPText(nn.Module):
    """The encoder of texts by itself, with its projection where the head says so.

    Attributes:
      config: the architecture.
      execution: precision, scanning, rematerialisation, kernels.
    """

    config: CLIPTextConfig
    execution: Execution = Execution()

    @nn.compact
    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        output_hidden_states: bool = False,
    ) -> EncoderOutput | ContrastiveOutput:
        """As `CLIP` of texts; what transformers calls text_embeds here is text_features."""
        cfg, ex = self.config, self.execution
        check_adapter(self)
        tower = TextTower(cfg, ex, name="text_model")
        text = tower(input_ids, attention_mask, position_ids, output_hidden_states)
        if cfg.head is None:
            return text
        P, factor = cfg.projection_dim, cfg.initializer_factor
        texts = _project(text.pooler_output, P, factor, ex, "text_projection")
        return compare(None, texts, None, text=text)

    def dummy_inputs(self) -> dict[str, Any]:
        """The smallest valid inputs, for tracing."""
        return dummy_texts()


class CLIPVision(nn.Module):
    """The encoder of images by itself, with its projection where the head says so.

    Attributes:
      config: the architecture.
      execution: precision, scanning, rematerialisation, kernels.
    """

    config: CLIPVisionConfig
    execution: Execution = Execution()

    @nn.compact
    def __call__(
        self, pixel_values: jax.Array, output_hidden_states: bool = False
    ) -> EncoderOutput | ContrastiveOutput:
        """As `CLIP` of images; what transformers calls image_embeds here is image_features."""
        cfg, ex = self.config, self.execution
        check_adapter(self)
        vision = VisionTower(cfg, ex, name="vision_model")(pixel_values, output_hidden_states)
        if cfg.head is None:
            return vision
        P, factor = cfg.projection_dim, cfg.initializer_factor
        images = _project(vision.pooler_output, P, factor, ex, "visual_projection")
        return compare(images, None, None, vision=vision)

    def dummy_inputs(self) -> dict[str, Any]:
        """The smallest valid inputs, for tracing."""
        return dummy_images(self.config)
