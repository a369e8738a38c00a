"""The Gemma (arXiv:2403.08295) and Gemma 2 (arXiv:2408.00118) decoders.

Shapes: B batch, T new tokens, S slots (T without a cache), D hidden size, V vocabulary.
"""

import functools

import flax.linen as nn
import jax

from fmjax.core.execution import Execution
from fmjax.core.logical import constrain
from fmjax.models.gemma.config import GemmaConfig
from fmjax.nn.decoder import DecoderContext, DecoderModel, split_windows
from fmjax.nn.decoder_heads import Decoded
from fmjax.nn.embed import Embed
from fmjax.nn.mlp import GatedMLP
from fmjax.nn.norms import RMSNorm
from fmjax.nn.rope import cos_sin
from fmjax.nn.rotary_attention import RotaryAttention
from fmjax.nn.stack import apply_layers

STACK = "layers"


def _norm(config: GemmaConfig, execution: Execution, name: str, final: bool = False) -> RMSNorm:
    """Gemma's norms learn how far the scale is from 1."""
    return RMSNorm(config.rms_norm_eps, execution, offset=1.0, final=final, name=name)


class Layer(nn.Module):
    """Attention and GeGLU, normed before and, in Gemma 2, after; `window` is the layer's own."""

    config: GemmaConfig
    execution: Execution

    @nn.compact
    def __call__(self, x: jax.Array, ctx: DecoderContext, window: jax.Array | None) -> jax.Array:
        cfg, ex = self.config, self.execution
        init = nn.initializers.normal(cfg.initializer_range)
        norm = functools.partial(_norm, cfg, ex)
        attention = RotaryAttention(
            cfg.num_attention_heads,
            cfg.num_key_value_heads,
            cfg.head_dim,
            qkv_bias=cfg.attention_bias,
            out_bias=cfg.attention_bias,
            scale=(cfg.query_pre_attn_scalar or cfg.head_dim) ** -0.5,
            softcap=cfg.attn_logit_softcapping,
            dropout_rate=cfg.attention_dropout,
            kernel_init=init,
            execution=ex,
            name="self_attn",
        )
        mlp = GatedMLP(
            cfg.intermediate_size, cfg.hidden_act, kernel_init=init, execution=ex, name="mlp"
        )
        y = attention(norm("input_layernorm")(x), ctx.with_window(window, cfg.windows))
        if cfg.post_norms:
            x = x + norm("post_attention_layernorm")(y)
            y = mlp(norm("pre_feedforward_layernorm")(x))
            y = norm("post_feedforward_layernorm")(y)
        else:
            x = x + y
            y = mlp(norm("post_attention_layernorm")(x))
        return constrain(x + y, ("batch", "seq", "act_embed"))


class Gemma(DecoderModel):
    """Gemma 1 or 2, under the head that the config names."""

    config: GemmaConfig

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
            cfg.vocab_size,
            cfg.hidden_size,
            embedding_init=init,
            execution=ex,
            # Rounded to the compute dtype before it multiplies: 55.5 for the 7B in bfloat16.
            scale=cfg.embedding_scale,
            name="embed_tokens",
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
        x = _norm(cfg, ex, "norm", final=True)(x)
        return Decoded(x0, outputs, x, embed, softcap=cfg.final_logit_softcapping)
