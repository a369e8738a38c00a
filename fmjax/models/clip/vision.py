"""CLIP's encoder of images.

Shapes: B batch, C channels, D hidden size.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.core.execution import Execution
from fmjax.models.clip.config import CLIPVisionConfig
from fmjax.models.clip.start import layers, normal
from fmjax.models.towers import encode
from fmjax.nn.conv import Conv
from fmjax.nn.embed import Embed
from fmjax.nn.learned import learned
from fmjax.nn.masks import Mask
from fmjax.nn.norms import LayerNorm
from fmjax.nn.outputs import EncoderOutput
from fmjax.nn.grid_positions import patch_grid, resize_positions


class VisionTower(nn.Module):
    """Patches of an image behind a class token, which stands for the image."""

    config: CLIPVisionConfig
    execution: Execution

    @nn.compact
    def __call__(self, pixel_values: jax.Array, collect: bool) -> EncoderOutput:
        cfg, ex = self.config, self.execution
        grid = patch_grid(pixel_values, cfg.patch_size, cfg.num_channels)
        B, D, factor = pixel_values.shape[0], cfg.hidden_size, cfg.initializer_factor
        size = (cfg.patch_size, cfg.patch_size)
        patches = Conv(
            D,
            size,
            (None, "embed"),
            stride=size,
            padding="VALID",
            use_bias=False,
            kernel_init=normal(factor * cfg.initializer_range),
            execution=ex,
            name="patch_embedding",
        )(pixel_values)
        scale = normal(factor * D**-0.5)
        first = learned(self, "class_embedding", scale, (D,), ("embed",), ex)
        side = cfg.image_size // cfg.patch_size
        rows = side * side + 1
        table = Embed(rows, D, ("positions", "embed"), scale, ex, name="position_embedding")
        places = table(jnp.arange(rows, dtype=jnp.int32)[None])[0]
        places = jnp.concatenate([places[:1], resize_positions(places[1:], (side, side), grid)])
        first = jnp.broadcast_to(first.astype(ex.dtype), (B, 1, D))
        x = jnp.concatenate([first, patches.reshape(B, -1, D)], 1) + places
        x = LayerNorm(cfg.layer_norm_eps, ex, name="pre_layrnorm")(x)
        x, states = encode(cfg, layers(cfg), ex, x, Mask(causal=False), collect)
        pooled = LayerNorm(cfg.layer_norm_eps, ex, name="post_layernorm")(x[:, 0])
        return EncoderOutput(x, pooled, states)
