"""The GPT-2 decoder (Radford et al., 2019), as in `transformers.GPT2LMHeadModel`.

Shapes: B batch, T new tokens, S slots (T without a cache), D hidden size, H heads, K head size, V
vocabulary.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.core.execution import Execution
from fmjax.core.logical import constrain
from fmjax.models.gpt2.config import GPT2Config
from fmjax.nn.attention import attention
from fmjax.nn.decoder import DecoderContext, DecoderModel
from fmjax.nn.decoder_heads import Decoded
from fmjax.nn.dense import Dense
from fmjax.nn.dropout import dropout
from fmjax.nn.embed import Embed
from fmjax.nn.mlp import MLP
from fmjax.nn.norms import LayerNorm
from fmjax.nn.stack import apply_layers

STACK = "h"


def _init(config: GPT2Config, residual: bool = False) -> Any:
    """Projections into the residual stream start smaller, by 1 / √(number of them)."""
    std = config.initializer_range * ((2 * config.n_layer) ** -0.5 if residual else 1.0)
    return nn.initializers.normal(std)


class SelfAttention(nn.Module):
    """Multi-head attention with a fused projection: x [B, T, D] → [B, T, D]."""

    config: GPT2Config
    execution: Execution

    @nn.compact
    def __call__(self, x: jax.Array, ctx: DecoderContext, number: jax.Array) -> jax.Array:
        cfg, ex = self.config, self.execution
        B, T, D = x.shape
        H, K = cfg.n_head, D // cfg.n_head
        fused = Dense((3, D), ("embed", "qkv", "heads"), True, _init(cfg), ex, name="c_attn")
        qkv = fused(x).reshape(B, T, 3, H, K)
        scale = K**-0.5 if cfg.scale_attn_weights else 1.0
        if cfg.scale_attn_by_inverse_layer_idx:
            scale = scale / number
        out = attention(
            self,
            qkv[:, :, 0],
            qkv[:, :, 1],
            qkv[:, :, 2],
            ctx.mask,
            scale=scale,
            dropout_rate=cfg.attn_pdrop,
            cache_index=ctx.cache_index,
            implementation=ex.attention,
        )
        out = Dense(D, ("heads", "embed"), True, _init(cfg, True), ex, name="c_proj")(out)
        return dropout(self, out, cfg.resid_pdrop)


class Layer(nn.Module):
    """Pre-norm attention and MLP; `number` counts layers from 1."""

    config: GPT2Config
    execution: Execution

    @nn.compact
    def __call__(self, x: jax.Array, ctx: DecoderContext, number: jax.Array) -> jax.Array:
        cfg, ex = self.config, self.execution
        y = LayerNorm(cfg.layer_norm_epsilon, ex, name="ln_1")(x)
        x = x + SelfAttention(cfg, ex, name="attn")(y, ctx, number)
        mlp = MLP(
            cfg.inner,
            cfg.activation_function,
            ("c_fc", "c_proj"),
            kernel_init=_init(cfg),
            out_init=_init(cfg, True),
            execution=ex,
            name="mlp",
        )
        y = mlp(LayerNorm(cfg.layer_norm_epsilon, ex, name="ln_2")(x))
        return constrain(x + dropout(self, y, cfg.resid_pdrop), ("batch", "seq", "act_embed"))


class GPT2(DecoderModel):
    """GPT-2, under the head that the config names."""

    config: GPT2Config

    def decode(
        self, input_ids: jax.Array, positions: jax.Array, ctx: DecoderContext, collect: bool
    ) -> Decoded:
        """Embeddings, layers, final norm; see `DecoderModel`."""
        cfg, ex = self.config, self.execution
        init = _init(cfg)
        wte = Embed(cfg.vocab_size, cfg.n_embd, embedding_init=init, execution=ex, name="wte")
        wpe = Embed(cfg.n_positions, cfg.n_embd, ("positions", "embed"), init, ex, name="wpe")
        x0 = dropout(self, wte(input_ids) + wpe(positions), cfg.embd_pdrop)
        x0 = constrain(x0, ("batch", "seq", "act_embed"))
        x, outputs = apply_layers(
            lambda name: Layer(cfg, ex, name=name),
            cfg.n_layer,
            x0,
            ctx,
            jnp.arange(1, cfg.n_layer + 1, dtype=jnp.float32),
            name=STACK,
            execution=ex,
            collect=collect,
        )
        x = LayerNorm(cfg.layer_norm_epsilon, ex, final=True, name="ln_f")(x)
        return Decoded(x0, outputs, x, wte)
