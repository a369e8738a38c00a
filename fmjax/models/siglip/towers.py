"""SigLIP's encoders of texts and of images.

Matrices start as in the original (big_vision): Xavier's uniform in the layers, tables by their
width.

Shapes: B batch, T tokens, C channels, D hidden size, P size of the common space.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.core.execution import Execution
from fmjax.models.siglip.config import SiglipTextConfig, SiglipVisionConfig
from fmjax.models.towers import Initializers, check_text, encode, positions
from fmjax.nn.attention_pool import AttentionPool
from fmjax.nn.dense import Dense
from fmjax.nn.embed import Embed
from fmjax.nn.masks import Mask
from fmjax.nn.norms import LayerNorm
from fmjax.nn.outputs import EncoderOutput
from fmjax.nn.patches import PatchEmbeddings

_xavier = nn.initializers.xavier_uniform()
_LAYERS = Initializers(_xavier, _xavier, _xavier)


def _table(rows: int, D: int, axis: str, ex: Execution, name: str) -> Embed:
    return Embed(rows, D, (axis, "embed"), nn.initializers.normal(D**-0.5), ex, name=name)


class TextTower(nn.Module):
    """Texts, every token of which sees all others; the last slot stands for the text.

    Texts are padded to one length, and padding is part of what the model reads: it was trained
    without a mask.
    """

    config: SiglipTextConfig
    execution: Execution

    @nn.compact
    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None,
        position_ids: jax.Array | None,
        collect: bool,
    ) -> EncoderOutput:
        cfg, ex = self.config, self.execution
        others = {"attention_mask": attention_mask, "position_ids": position_ids}
        check_text(cfg.max_position_embeddings, input_ids, **others)
        if position_ids is None:
            position_ids = jnp.arange(input_ids.shape[1], dtype=jnp.int32)[None]
        D = cfg.hidden_size
        words = _table(cfg.vocab_size, D, "vocab", ex, "token_embedding")
        places = _table(cfg.max_position_embeddings, D, "positions", ex, "position_embedding")
        x = words(input_ids) + places(position_ids)
        valid = None if attention_mask is None else attention_mask.astype(bool)
        x, states = encode(cfg, _LAYERS, ex, x, Mask(causal=False, valid=valid), collect)
        x = LayerNorm(cfg.layer_norm_eps, ex, final=True, name="final_layer_norm")(x)
        init = nn.initializers.lecun_normal()
        head = Dense(cfg.projection_size, ("embed", None), True, init, ex, jnp.float32, name="head")
        return EncoderOutput(x, head(x[:, -1]), states)


class VisionTower(nn.Module):
    """Patches of an image, without a class token; a learned query reads them all."""

    config: SiglipVisionConfig
    execution: Execution

    @nn.compact
    def __call__(self, pixel_values: jax.Array, collect: bool) -> EncoderOutput:
        cfg, ex = self.config, self.execution
        D, side = cfg.hidden_size, cfg.patch_size
        embed = PatchEmbeddings(
            D,
            (side, side),
            cfg.num_channels,
            kernel_init=nn.initializers.lecun_normal(),
            execution=ex,
            name="patch_embedding",
        )
        patches, grid = embed(pixel_values)
        table = _table(cfg.num_patches, D, "positions", ex, "position_embedding")
        x = patches + positions(table, cfg, grid)
        x, states = encode(cfg, _LAYERS, ex, x, Mask(causal=False), collect)
        x = LayerNorm(cfg.layer_norm_eps, ex, final=True, name="post_layernorm")(x)
        if not cfg.vision_use_head:
            return EncoderOutput(x, None, states)
        pool = AttentionPool(
            cfg.num_attention_heads,
            cfg.intermediate_size,
            cfg.hidden_act,
            cfg.layer_norm_eps,
            kernel_init=_xavier,
            fused=True,
            execution=ex,
            name="head",
        )
        return EncoderOutput(x, pool(x), states)
