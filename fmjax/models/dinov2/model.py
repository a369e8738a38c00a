"""DINOv2's vision transformer (arXiv:2304.07193), and the one with registers (arXiv:2309.16588).

Shapes: B batch, H × W pixels, C channels, P patches, R registers, T = 1 + R + P tokens, D hidden
size, N labels.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.core.errors import ConfigError
from fmjax.core.execution import Execution
from fmjax.core.logical import constrain
from fmjax.models.dinov2.config import Dinov2Config
from fmjax.models.vision import pair
from fmjax.nn import prefix_port
from fmjax.nn.dense import Dense
from fmjax.nn.dropout import drop_path, drop_path_rates, dropout
from fmjax.nn.encoder_block import LayerScale, SelfAttention
from fmjax.nn.masks import Mask
from fmjax.nn.mlp import MLP, FusedGatedMLP
from fmjax.nn.norms import LayerNorm
from fmjax.nn.outputs import EncoderOutput, ImageClassifierOutput
from fmjax.nn.patches import PatchEmbeddings
from fmjax.nn.ports import check_expanded
from fmjax.nn.stack import apply_layers
from fmjax.nn.vision_tokens import GridPositions, Tokens, hide, put_before

STACK = "layers"


class Layer(nn.Module):
    """Attention and MLP, each normed before and scaled after (LayerScale)."""

    config: Dinov2Config
    execution: Execution

    @nn.compact
    def __call__(self, x: jax.Array, mask: Mask, own: jax.Array | None) -> jax.Array:
        cfg, ex = self.config, self.execution
        init = nn.initializers.normal(cfg.initializer_range)
        attend = SelfAttention(
            cfg.num_attention_heads,
            cfg.qkv_bias,
            cfg.attention_probs_dropout_prob,
            init,
            ex,
            name="attention",
        )
        y = attend(LayerNorm(cfg.layer_norm_eps, ex, name="attention_norm")(x), mask)
        y = LayerScale(cfg.layerscale_value, ex, name="attention_scale")(y)
        x = x + drop_path(self, y, own)
        width = cfg.intermediate_size
        if cfg.use_swiglu_ffn:
            names = ("weights_in", "weights_out")
            mlp = FusedGatedMLP(width, "silu", names, True, init, ex, name="mlp")
        else:
            names, act = ("fc1", "fc2"), cfg.hidden_act
            mlp = MLP(width, act, names, True, init, init, ex, name="mlp")
        y = mlp(LayerNorm(cfg.layer_norm_eps, ex, name="mlp_norm")(x))
        y = LayerScale(cfg.layerscale_value, ex, name="mlp_scale")(y)
        return constrain(x + drop_path(self, y, own), ("batch", "seq", "act_embed"))


class Dinov2(nn.Module):
    """DINOv2 with the head that the config names.

    Attributes:
      config: the architecture.
      execution: precision, scanning, rematerialisation, kernels.
    """

    config: Dinov2Config
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
          The output of `config.head`. `last_hidden_state` [B, T, D] is normed: the class token,
          which is `pooler_output` too, the registers, the patches row by row. Classifiers read the
          class token and the mean of the patches side by side.

        Raises:
          DataError: inputs of another shape or dtype.
          ConfigError: bool_masked_pos without a mask token, or an adapter that does not fit.
        """
        cfg, ex = self.config, self.execution
        check_expanded(self)
        # torch's trunc_normal_ cuts at ±2, a hundred of these standard deviations away.
        init = nn.initializers.normal(cfg.initializer_range)
        D, R, zeros = cfg.hidden_size, cfg.num_register_tokens, nn.initializers.zeros
        patches = PatchEmbeddings(
            D, cfg.patch, cfg.num_channels, True, init, ex, name="patch_embeddings"
        )
        x, grid = patches(pixel_values)
        if cfg.use_mask_token:
            x = hide(x, bool_masked_pos, Tokens(D, 1, zeros, ex, name="mask_token")())
        elif bool_masked_pos is not None:
            raise ConfigError("bool_masked_pos needs a mask token; set use_mask_token=True")
        positions = GridPositions(
            D, cfg.grid, 1, cfg.antialias, init, ex, name="position_embeddings"
        )
        first, places = positions(grid)
        x = x + places
        if R:
            x = put_before(Tokens(D, R, zeros, ex, name="register_tokens")(), x)
        x = put_before(Tokens(D, 1, init, ex, name="cls_token")() + first, x)
        x0 = constrain(dropout(self, x, cfg.hidden_dropout_prob), ("batch", "seq", "act_embed"))
        x, outputs = apply_layers(
            lambda name: Layer(cfg, ex, name=name),
            cfg.num_hidden_layers,
            x0,
            Mask(causal=False, virtual=prefix_port.offset(self, x0.shape[1], None)),
            drop_path_rates(cfg.drop_path_rate, cfg.num_hidden_layers, grow=False),
            name=STACK,
            execution=ex,
            collect=output_hidden_states,
        )
        x = LayerNorm(cfg.layer_norm_eps, ex, name="final_norm")(x)
        hidden_states = (x0, *outputs) if output_hidden_states else None
        if cfg.head is None:
            return EncoderOutput(x, x[:, 0], hidden_states)
        mean = jnp.mean(x[:, 1 + R :].astype(jnp.float32), 1).astype(x.dtype)
        y = dropout(self, jnp.concatenate([x[:, 0], mean], -1), cfg.classifier_rate)
        classifier = Dense(
            cfg.num_labels, ("embed", None), True, init, ex, jnp.float32, name="classifier"
        )
        return ImageClassifierOutput(classifier(y), x, hidden_states)

    def dummy_inputs(self) -> dict[str, Any]:
        """An image of the config's size, for tracing."""
        cfg = self.config
        return {"pixel_values": jnp.zeros((1, *pair(cfg.image_size), cfg.num_channels))}
