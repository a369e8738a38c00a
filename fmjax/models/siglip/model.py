"""SigLIP (arXiv:2303.15343): images and texts, each pair of which is judged by itself.

Shapes: I images, J texts, T tokens, C channels, P size of the common space.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.core.execution import Execution
from fmjax.models.siglip.config import SiglipConfig, SiglipTextConfig, SiglipVisionConfig
from fmjax.models.siglip.towers import TextTower, VisionTower
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

__all__ = ["STACK", "Siglip", "SiglipText", "SiglipVision"]

# Where the paper starts: most pairs do not belong together. (transformers starts both at 0.)
_SCALE, _BIAS = math.log(10.0), -10.0


class Siglip(nn.Module):
    """Both encoders, or the one of images under a classifier.

    Attributes:
      config: the architecture.
      execution: precision, scanning, rematerialisation, kernels.
    """

    config: SiglipConfig
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
          input_ids: i32 [J, T], padded to the length that the model was trained on (64).
          pixel_values: [I, height, width, C], normalised; positions are interpolated where the
            size is not the config's.
          attention_mask: [J, T], 1 where there is a token. Published models are trained without
            one and read the last slot, padding or not.
          position_ids: i32 [J, T]; default 0, 1, ….
          output_hidden_states: return every layer's output too.

        Raises:
          DataError: inputs that are missing or do not fit.
        """
        cfg, ex = self.config, self.execution
        check_adapter(self)
        check_given(cfg.head, input_ids, pixel_values)
        vision = text = None
        if pixel_values is not None:
            tower = VisionTower(cfg.vision_config, ex, name="vision_model")
            vision = tower(pixel_values, output_hidden_states)
        if cfg.head == "image-classification":
            std = cfg.initializer_factor * cfg.vision_config.hidden_size**-0.5
            dense = Dense(
                cfg.num_labels,
                ("embed", None),
                True,
                nn.initializers.normal(std),
                ex,
                jnp.float32,
                name="classifier",
            )
            x = vision.last_hidden_state
            mean = dropout(self, jnp.mean(x, 1), cfg.classifier_rate)
            return ImageClassifierOutput(dense(mean), x, vision.hidden_states)
        if input_ids is not None:
            tower = TextTower(cfg.text_config, ex, name="text_model")
            text = tower(input_ids, attention_mask, position_ids, output_hidden_states)

        def number(name: str, value: float) -> jax.Array:
            return learned(self, name, nn.initializers.constant(value), (1,), (None,), ex)

        return compare(
            None if vision is None else vision.pooler_output,
            None if text is None else text.pooler_output,
            number("logit_scale", _SCALE),
            number("logit_bias", _BIAS),
            vision=vision,
            text=text,
        )

    def dummy_inputs(self) -> dict[str, Any]:
        """The smallest valid inputs, for tracing."""
        images = dummy_images(self.config.vision_config)
        return images if self.config.head else images | dummy_texts()


class SiglipText(nn.Module):
    """The encoder of texts by itself.

    Attributes:
      config: the architecture.
      execution: precision, scanning, rematerialisation, kernels.
    """

    config: SiglipTextConfig
    execution: Execution = Execution()

    @nn.compact
    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        output_hidden_states: bool = False,
    ) -> EncoderOutput:
        """As `Siglip` of texts; pooler_output f32 [J, P]."""
        check_adapter(self)
        tower = TextTower(self.config, self.execution, name="text_model")
        return tower(input_ids, attention_mask, position_ids, output_hidden_states)

    def dummy_inputs(self) -> dict[str, Any]:
        """The smallest valid inputs, for tracing."""
        return dummy_texts()


class SiglipVision(nn.Module):
    """The encoder of images by itself.

    Attributes:
      config: the architecture.
      execution: precision, scanning, rematerialisation, kernels.
    """

    config: SiglipVisionConfig
    execution: Execution = Execution()

    @nn.compact
    def __call__(
        self, pixel_values: jax.Array, output_hidden_states: bool = False
    ) -> EncoderOutput:
        """As `Siglip` of images."""
        check_adapter(self)
        tower = VisionTower(self.config, self.execution, name="vision_model")
        return tower(pixel_values, output_hidden_states)

    def dummy_inputs(self) -> dict[str, Any]:
        """The smallest valid inputs, for tracing."""
        return dummy_images(self.config)
