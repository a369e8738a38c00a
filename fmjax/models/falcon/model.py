"""The Falcon decoder (arXiv:2311.16867), as in `transformers.FalconForCausalLM`.

Shapes: B batch, T new tokens, S slots (T without a cache), D hidden size, H query heads, G
key–value heads, R = H / G query heads of a group, K head size.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.core.execution import Execution
from fmjax.core.logical import constrain
from fmjax.models.falcon.config import FalconConfig
from fmjax.nn.alibi import alibi, token_positions
from fmjax.nn.attention import attention
from fmjax.nn.decoder import DecoderContext, DecoderModel
from fmjax.nn.decoder_heads import Decoded
from fmjax.nn.dense import Dense
from fmjax.nn.dropout import dropout
from fmjax.nn.embed import Embed
from fmjax.nn.mlp import MLP
from fmjax.nn.norms import LayerNorm
from fmjax.nn.rope import cos_sin, rotate
from fmjax.nn.stack import apply_layers

STACK = "h"


class SelfAttention(nn.Module):
    """Grouped-query attention with a fused projection: x [B, T, D] → [B, T, D]."""

    config: FalconConfig
    execution: Execution

    @nn.compact
    def __call__(self, x: jax.Array, ctx: DecoderContext) -> jax.Array:
        cfg, ex = self.config, self.execution
        B, T, D = x.shape
        H, G, K = cfg.num_attention_heads, cfg.kv_heads, cfg.head_dim
        R = H // G
        init = nn.initializers.normal(cfg.initializer_range)
        # Tensor parallelism splits between groups, so that queries stay with their key and value;
        # a single group is whole on every device.
        axes = ("embed", "kv_heads" if G > 1 else None, "qkv", None)
        fused = Dense((G, R + 2, K), axes, cfg.bias, init, ex, name="query_key_value")(x)
        q, k, v = fused[..., :R, :].reshape(B, T, H, K), fused[..., R, :], fused[..., R + 1, :]
        if not cfg.alibi:
            q, k = rotate(q, *ctx.tables), rotate(k, *ctx.tables)
        out = attention(
            self,
            q,
            k,
            v,
            ctx.mask,
            bias=ctx.tables if cfg.alibi else None,
            # The reference drops probabilities in this case only.
            dropout_rate=cfg.attention_dropout if cfg.alibi else 0.0,
            cache_index=ctx.cache_index,
            implementation=ex.attention,
        )
        return Dense(D, ("heads", "embed"), cfg.bias, init, ex, name="dense")(out)


class Layer(nn.Module):
    """Pre-norm attention and MLP, side by side or one after the other."""

    config: FalconConfig
    execution: Execution

    @nn.compact
    def __call__(self, x: jax.Array, ctx: DecoderContext, own: None) -> jax.Array:
        cfg, ex = self.config, self.execution
        init = nn.initializers.normal(cfg.initializer_range)
        names = ("dense_h_to_4h", "dense_4h_to_h")
        mlp = MLP(cfg.ffn_hidden_size, cfg.activation, names, cfg.bias, init, init, ex, name="mlp")
        norms = [LayerNorm(cfg.layer_norm_epsilon, ex, name=name) for name in cfg.norms]
        normed = norms[0](x)
        attended = SelfAttention(cfg, ex, name="self_attention")(normed, ctx)
        if cfg.parallel_attn:
            out = attended + mlp(norms[1](x) if len(norms) == 2 else normed)
        else:
            x = x + dropout(self, attended, cfg.attention_dropout)
            out = mlp(norms[1](x))
        return constrain(x + dropout(self, out, cfg.hidden_dropout), ("batch", "seq", "act_embed"))


class Falcon(DecoderModel):
    """Falcon, under the head that the config names.

    ALiBi counts the tokens of attention_mask (as in transformers); where there is none it reads
    position_ids, so that packed documents restart.
    """

    config: FalconConfig

    def decode(
        self, input_ids: jax.Array, positions: jax.Array, ctx: DecoderContext, collect: bool
    ) -> Decoded:
        """Embeddings, layers, final norm; see `DecoderModel`."""
        cfg, ex = self.config, self.execution
        if cfg.alibi:
            valid, prefix, slots = ctx.mask.valid, ctx.mask.virtual, ctx.mask.slots
            keys_BS = positions if valid is None else prefix + token_positions(valid, slots)
            virtual_BP = jnp.broadcast_to(jnp.arange(prefix), (keys_BS.shape[0], prefix))
            keys_BS = jnp.concatenate([virtual_BP, keys_BS], 1)
            # Rounded as in training, and scaled like the scores.
            tables = alibi(cfg.num_attention_heads, keys_BS, jnp.bfloat16) * cfg.head_dim**-0.5
        else:
            tables = cos_sin(cfg.rope, cfg.head_dim, cfg.max_position_embeddings, positions)
        init = nn.initializers.normal(cfg.initializer_range)
        embed = Embed(
            cfg.vocab_size,
            cfg.hidden_size,
            embedding_init=init,
            execution=ex,
            name="word_embeddings",
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
        x = LayerNorm(cfg.layer_norm_epsilon, ex, final=True, name="ln_f")(x)
        return Decoded(x0, outputs, x, embed)
