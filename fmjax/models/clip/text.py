"""CLIP's encoder of texts.

Shapes: B batch, T tokens, D hidden size.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.core.execution import Execution
from fmjax.models.clip.config import CLIPTextConfig
from fmjax.models.clip.start import layers, normal
from fmjax.models.towers import check_text, encode
from fmjax.nn.embed import Embed
from fmjax.nn.masks import Mask
from fmjax.nn.norms import LayerNorm
from fmjax.nn.outputs import EncoderOutput


class TextTower(nn.Module):
    """Texts read from left to right; what stands at the end of a text stands for it."""

    config: CLIPTextConfig
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
        masks = {"attention_mask": attention_mask, "position_ids": position_ids}
        check_text(cfg.max_position_embeddings, input_ids, **masks)
        if position_ids is None:
            position_ids = jnp.arange(input_ids.shape[1], dtype=jnp.int32)[None]
        D, factor = cfg.hidden_size, cfg.initializer_factor
        words = Embed(
            cfg.vocab_size,
            D,
            embedding_init=normal(factor * 0.02),
            execution=ex,
            name="token_embedding",
        )
        places = Embed(
            cfg.max_position_embeddings,
            D,
            ("positions", "embed"),
            normal(factor * 0.01),
            ex,
            name="position_embedding",
        )
        valid = None if attention_mask is None else attention_mask.astype(bool)
        x, states = encode(
            cfg,
            layers(cfg),
            ex,
            words(input_ids) + places(position_ids),
            Mask(causal=True, valid=valid),
            collect,
        )
        x = LayerNorm(cfg.layer_norm_eps, ex, final=True, name="final_layer_norm")(x)
        return EncoderOutput(x, _at_end(x, input_ids, cfg.eos_token_id), states)


def _at_end(x_BTD: jax.Array, ids_BT: jax.Array, eos_token_id: int) -> jax.Array:
    """[B, D] at the first end of text; at the first slot where there is none."""
    # Old files say 2 whatever the tokenizer's end is; it is the largest id of the vocabulary.
    end = ids_BT if eos_token_id == 2 else ids_BT == eos_token_id
    return jnp.take_along_axis(x_BTD, jnp.argmax(end, 1)[:, None, None], 1)[:, 0]
