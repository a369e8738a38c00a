"""The Qwen2 (arXiv:2407.10671) and Qwen3 (arXiv:2505.09388) decoders.

Shapes: B batch, T new tokens, S slots (T without a cache), D hidden size, V vocabulary.
"""

import functools

import flax.linen as nn
import jax

from fmjax.core.execution import Execution
from fmjax.core.logical import constrain
from fmjax.models.qwen.config import QwenConfig
from fmjax.nn.decoder import DecoderContext, DecoderModel, split_windows
from fmjax.nn.decoder_heads import Decoded
from fmjax.nn.embed import Embed
from fmjax.nn.mlp import GatedMLP
from fmjax.nn.norms import RMSNorm
from fmjax.nn.rope import cos_sin
from fmjax.nn.rotary_attention import RotaryAttention
from fmjax.nn.stack import apply_layers

STACK = "layers"


class Layer(nn.Module):
    """Pre-norm attention and SwiGLU; `window` is the layer's own, if layers differ."""

    config: QwenConfig
    execution: Execution

    @nn.compact
    def __call__(self, x: jax.Array, ctx: DecoderContext, window: jax.Array | None) -> jax.Array:
        cfg, ex = self.config, self.execution
        init = nn.initializers.normal(cfg.initializer_range)
        norm = functools.partial(RMSNorm, cfg.rms_norm_eps, ex)
        attention = RotaryAttention(
            cfg.num_attention_heads,
            cfg.num_key_value_heads,
            cfg.head_dim,
            qkv_bias=cfg.qkv_bias,
            out_bias=cfg.attention_bias,
            qk_norm=norm if cfg.qk_norm else None,
            dropout_rate=cfg.attention_dropout,
            kernel_init=init,
            execution=ex,
            name="self_attn",
        )
        mlp = GatedMLP(
            cfg.intermediate_size, cfg.hidden_act, kernel_init=init, execution=ex, name="mlp"
        )
        x = x + attention(norm(name="input_layernorm")(x), ctx.with_window(window, cfg.windows))
        x = x + mlp(norm(name="post_attention_layernorm")(x))
        return constrain(x, ("batch", "seq", "act_embed"))


class Qwen(DecoderModel):
    """Qwen2 or Qwen3, under the head that the config names."""

    config: QwenConfig

    def decode(
        self, input_ids: jax.Array, positions: jax.Array, ctx: DecoderContext, collect: bool
    ) -> Decoded:
        """Embeddings, layers, final norm; see `DecoderModel`."""
        cfg, ex = self.config, self.execution
        window, per_layer = split_windows(cfg.windows)
        ctx = ctx.with_window(window)
        tables = cos_sin(cfg.rope, cfg.head_dim, cfg.max_position_embeddings, positions)
        init = nn.initializers.normal(cfg.initializer_range)
        embed = Embed(
            cfg.vocab_size, cfg.hidden_size, embedding_init=init, execution=ex, name="embed_tokens"
        )
        x0 = constrain(embed(input_ids), ("batch", "seq", "act_embed"))
        x, outputs = apply_layers(
            lambda name: Layer(cfg, ex, name=name),
            cfg.num_hidden_layers,
            x0,
            ctx.replace(tables=tables),
            per_layer,
            name=STACK,
            execution=ex,
            collect=collect,
        )
        x = RMSNorm(cfg.rms_norm_eps, ex, final=True, name="norm")(x)
        return Decoded(x0, outputs, x, embed)
