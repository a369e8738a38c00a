"""CLIP's encoder of images.

Shapes: B batch, C channels, D hidden size.
"""

import flax.linen as nn
import jax

from fmjax.core.execution import Execution
from fmjax.models.clip.config import CLIPVisionConfig
from fmjax.models.clip.start import layers, normal
from fmjax.models.towers import encode, positions
from fmjax.nn.embed import Embed
from fmjax.nn.masks import Mask
from fmjax.nn.norms import LayerNorm
from fmjax.nn.outputs import EncoderOutput
from fmjax.nn.patches import PatchEmbeddings
from fmjax.nn.vision_tokens import Tokens, put_before


class VisionTower(nn.Module):
    """Patches of an image behind a class token, which stands for the image."""

    config: CLIPVisionConfig
    execution: Execution

    @nn.compact
    def __call__(self, pixel_values: jax.Array, collect: bool) -> EncoderOutput:
        cfg, ex = self.config, self.execution
        D, factor, side = cfg.hidden_size, cfg.initializer_factor, cfg.patch_size
        embed = PatchEmbeddings(
            D,
            (side, side),
            cfg.num_channels,
            use_bias=False,
            kernel_init=normal(factor * cfg.initializer_range),
            execution=ex,
            name="patch_embedding",
        )
        patches, grid = embed(pixel_values)
        scale = normal(factor * D**-0.5)
        first = Tokens(D, 1, scale, ex, name="class_embedding")()
        rows = cfg.num_patches + 1
        table = Embed(rows, D, ("positions", "embed"), scale, ex, name="position_embedding")
        x = put_before(first, patches) + positions(table, cfg, grid, 1)
        x = LayerNorm(cfg.layer_norm_eps, ex, name="pre_layrnorm")(x)
        x, states = encode(cfg, layers(cfg), ex, x, Mask(causal=False), collect)
        pooled = LayerNorm(cfg.layer_norm_eps, ex, name="post_layernorm")(x[:, 0])
        return EncoderOutput(x, pooled, states)
