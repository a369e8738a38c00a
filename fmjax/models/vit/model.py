"""The vision transformer (arXiv:2010.11929).

Shapes: B batch, H × W pixels, C channels, P patches, T = 1 + P tokens, D hidden size, N labels.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.core.errors import ConfigError
from fmjax.core.execution import Execution
from fmjax.core.logical import constrain
from fmjax.models.vision import pair
from fmjax.models.vit.config import ViTConfig
from fmjax.nn import prefix_port
from fmjax.nn.activations import activation
from fmjax.nn.attention_pool import AttentionPool
from fmjax.nn.dense import Dense
from fmjax.nn.dropout import drop_path_rates, dropout
from fmjax.nn.encoder_block import PreNormBlock
from fmjax.nn.masks import Mask
from fmjax.nn.norms import LayerNorm
from fmjax.nn.outputs import EncoderOutput, ImageClassifierOutput
from fmjax.nn.patches import PatchEmbeddings
from fmjax.nn.ports import check_expanded
from fmjax.nn.stack import apply_layers
from fmjax.nn.vision_tokens import GridPositions, Tokens, hide, put_before

STACK = "layers"


class ViT(nn.Module):
    """ViT with the head that the config names.

    Attributes:
      config: the architecture.
      execution: precision, scanning, rematerialisation, kernels.
    """

    config: ViTConfig
    execution: Execution = Execution()

    @nn.compact
    def __call__(
        self,
        pixel_values: jax.Array,
        bool_masked_pos: jax.Array | None = None,
        output_hidden_states: bool = False,
    ) -> EncoderOutput | ImageClassifierOutput:
        """Runs the encoder and the head.

        Args:
          pixel_values: [B, H, W, C], floating and normalised. Positions are resampled where the
            grid of patches is not the config's.
          bool_masked_pos: bool [B, P], patches in whose place the mask token stands.
          output_hidden_states: return every layer's output too.

        Returns:
          The output of `config.head`. `last_hidden_state` [B, T, D] is normed; its first token is
          the class token, the patches follow row by row.

        Raises:
          DataError: inputs of another shape or dtype.
          ConfigError: bool_masked_pos without a mask token, or an adapter that does not fit.
        """
        cfg, ex = self.config, self.execution
        check_expanded(self)
        # torch's trunc_normal_ cuts at ±2, a hundred of these standard deviations away.
        init = nn.initializers.normal(cfg.initializer_range)
        D, zeros = cfg.hidden_size, nn.initializers.zeros
        patches = PatchEmbeddings(
            D, cfg.patch, cfg.num_channels, True, init, ex, name="patch_embeddings"
        )
        x, grid = patches(pixel_values)
        if cfg.use_mask_token:
            x = hide(x, bool_masked_pos, Tokens(D, 1, zeros, ex, name="mask_token")())
        elif bool_masked_pos is not None:
            raise ConfigError("bool_masked_pos needs a mask token; set use_mask_token=True")
        positions = GridPositions(D, cfg.grid, 1, False, init, ex, name="position_embeddings")
        first, places = positions(grid)
        x = put_before(Tokens(D, 1, init, ex, name="cls_token")() + first, x + places)
        x0 = constrain(dropout(self, x, cfg.hidden_dropout_prob), ("batch", "seq", "act_embed"))
        mask = Mask(causal=False, virtual=prefix_port.offset(self, x0.shape[1], None))
        x, outputs = apply_layers(
            lambda name: PreNormBlock(
                cfg.num_attention_heads,
                cfg.intermediate_size,
                cfg.hidden_act,
                cfg.layer_norm_eps,
                cfg.qkv_bias,
                cfg.hidden_dropout_prob,
                cfg.attention_probs_dropout_prob,
                init,
                ex,
                name=name,
            ),
            cfg.num_hidden_layers,
            x0,
            mask,
            drop_path_rates(cfg.drop_path_rate, cfg.num_hidden_layers),
            name=STACK,
            execution=ex,
            collect=output_hidden_states,
        )
        x = LayerNorm(cfg.layer_norm_eps, ex, name="final_norm")(x)
        hidden_states = (x0, *outputs) if output_hidden_states else None
        if cfg.head is None:
            return EncoderOutput(x, _pooled(cfg, x, init, ex), hidden_states)
        y = dropout(self, _vector(cfg, x, init, ex), cfg.classifier_rate)
        classifier = Dense(
            cfg.num_labels, ("embed", None), True, init, ex, jnp.float32, name="classifier"
        )
        return ImageClassifierOutput(classifier(y), x, hidden_states)

    def dummy_inputs(self) -> dict[str, Any]:
        """An image of the config's size, for tracing."""
        cfg = self.config
        return {"pixel_values": jnp.zeros((1, *pair(cfg.image_size), cfg.num_channels))}


def _vector(
    cfg: ViTConfig, x: jax.Array, init: nn.initializers.Initializer, ex: Execution
) -> jax.Array:
    """What classifiers read [B, D] of the normed tokens [B, T, D]; inside `__call__`."""
    match cfg.pooling:
        case "mean":
            return jnp.mean(x[:, 1:].astype(jnp.float32), 1).astype(x.dtype)
        case "map":
            return AttentionPool(
                cfg.num_attention_heads,
                cfg.intermediate_size,
                cfg.hidden_act,
                cfg.layer_norm_eps,
                init,
                execution=ex,
                name="attention_pool",
            )(x)
        case _:
            return x[:, 0]


def _pooled(
    cfg: ViTConfig, x: jax.Array, init: nn.initializers.Initializer, ex: Execution
) -> jax.Array:
    """The bare encoder's `pooler_output`; inside `__call__`."""
    if cfg.pooling is not None:
        return _vector(cfg, x, init, ex)
    dense = Dense(cfg.pooler_size, ("embed", None), True, init, ex, name="pooler")
    return activation(cfg.pooler_act)(dense(x[:, 0]))
