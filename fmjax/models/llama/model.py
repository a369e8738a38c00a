"""The LLaMA decoder (arXiv:2302.13971), with Mistral's sliding window (arXiv:2310.06825).

Shapes: B batch, T new tokens, S slots (T without a cache), D hidden size, H query heads, G
key–value heads, K head size, V vocabulary.
"""

import flax.linen as nn
import jax

from fmjax.core.execution import Execution
from fmjax.core.logical import constrain
from fmjax.models.llama.config import LlamaConfig
from fmjax.nn.decoder import DecoderContext, DecoderModel
from fmjax.nn.decoder_heads import Decoded
from fmjax.nn.embed import Embed
from fmjax.nn.mlp import GatedMLP
from fmjax.nn.norms import RMSNorm
from fmjax.nn.rope import cos_sin
from fmjax.nn.rotary_attention import RotaryAttention
from fmjax.nn.stack import apply_layers

STACK = "layers"


class Layer(nn.Module):
    """Pre-norm attention and SwiGLU."""

    config: LlamaConfig
    execution: Execution

    @nn.compact
    def __call__(self, x: jax.Array, ctx: DecoderContext, own: None) -> jax.Array:
        cfg, ex = self.config, self.execution
        init = nn.initializers.normal(cfg.initializer_range)
        attention = RotaryAttention(
            cfg.num_attention_heads,
            cfg.num_key_value_heads,
            cfg.head_dim,
            qkv_bias=cfg.attention_bias,
            out_bias=cfg.attention_bias,
            dropout_rate=cfg.attention_dropout,
            kernel_init=init,
            execution=ex,
            name="self_attn",
        )
        norm = RMSNorm(cfg.rms_norm_eps, ex, name="input_layernorm")
        x = x + attention(norm(x), ctx)
        norm = RMSNorm(cfg.rms_norm_eps, ex, name="post_attention_layernorm")
        mlp = GatedMLP(cfg.intermediate_size, cfg.hidden_act, cfg.mlp_bias, init, ex, name="mlp")
        return constrain(x + mlp(norm(x)), ("batch", "seq", "act_embed"))


class Llama(DecoderModel):
    """LLaMA, under the head that the config names."""

    config: LlamaConfig

    def decode(
        self, input_ids: jax.Array, positions: jax.Array, ctx: DecoderContext, collect: bool
    ) -> Decoded:
        """Embeddings, layers, final norm; see `DecoderModel`."""
        cfg, ex = self.config, self.execution
        ctx = ctx.with_window(cfg.sliding_window)
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
            name=STACK,
            execution=ex,
            collect=collect,
        )
        x = RMSNorm(cfg.rms_norm_eps, ex, final=True, name="norm")(x)
        return Decoded(x0, outputs, x, embed)
