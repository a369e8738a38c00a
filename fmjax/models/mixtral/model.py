"""The Mixtral decoder (arXiv:2401.04088).

Shapes: B batch, T new tokens, S slots (T without a cache), D hidden size, E experts, V vocabulary.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.core.execution import Execution
from fmjax.core.logical import constrain
from fmjax.models.mixtral.config import MixtralConfig
from fmjax.nn.decoder import DecoderContext, DecoderModel
from fmjax.nn.decoder_heads import Decoded
from fmjax.nn.embed import Embed
from fmjax.nn.moe import SparseMoE
from fmjax.nn.norms import RMSNorm
from fmjax.nn.rope import cos_sin
from fmjax.nn.rotary_attention import RotaryAttention
from fmjax.nn.stack import apply_layers

STACK = "layers"


class Layer(nn.Module):
    """Pre-norm attention and a sparse mixture of SwiGLUs, from and to (x, router logits).

    The logits that come in, those of the layer before, are dropped; they make the stack's carry.
    """

    config: MixtralConfig
    execution: Execution

    @nn.compact
    def __call__(
        self, x: tuple[jax.Array, jax.Array], ctx: DecoderContext, own: None
    ) -> tuple[jax.Array, jax.Array]:
        x, _ = x
        cfg, ex = self.config, self.execution
        init = nn.initializers.normal(cfg.initializer_range)
        norm = functools.partial(RMSNorm, cfg.rms_norm_eps, ex)
        attention = RotaryAttention(
            cfg.num_attention_heads,
            cfg.num_key_value_heads,
            cfg.head_dim,
            dropout_rate=cfg.attention_dropout,
            kernel_init=init,
            execution=ex,
            name="self_attn",
        )
        moe = SparseMoE(
            cfg.num_local_experts,
            cfg.num_experts_per_tok,
            cfg.intermediate_size,
            cfg.hidden_act,
            init,
            ex,
            name="mlp",
        )
        x = x + attention(norm(name="input_layernorm")(x), ctx)
        y, router_logits = moe(norm(name="post_attention_layernorm")(x))
        return constrain(x + y, ("batch", "seq", "act_embed")), router_logits


class Mixtral(DecoderModel):
    """Mixtral, under the head that the config names."""

    config: MixtralConfig

    def decode(
        self,
        input_ids: jax.Array,
        positions: jax.Array,
        ctx: DecoderContext,
        collect: bool,
        output_router_logits: bool | None = None,
    ) -> Decoded:
        """Embeddings, layers, final norm; see `DecoderModel`.

        Args:
          output_router_logits: return the logits of the routers too; default as the config says.
        """
        cfg, ex = self.config, self.execution
        ctx = ctx.with_window(cfg.sliding_window)
        tables = cos_sin(cfg.rope, cfg.head_dim, cfg.max_position_embeddings, positions)
        init = nn.initializers.normal(cfg.initializer_range)
        embed = Embed(
            cfg.vocab_size, cfg.hidden_size, embedding_init=init, execution=ex, name="embed_tokens"
        )
        x0 = constrain(embed(input_ids), ("batch", "seq", "act_embed"))
        routed = cfg.output_router_logits if output_router_logits is None else output_router_logits
        (x, _), outputs = apply_layers(
            lambda name: Layer(cfg, ex, name=name),
            cfg.num_hidden_layers,
            (x0, jnp.zeros((*input_ids.shape, cfg.num_local_experts), jnp.float32)),
            ctx.replace(tables=tables),
            name=STACK,
            execution=ex,
            collect=collect or routed,
        )
        x = RMSNorm(cfg.rms_norm_eps, ex, final=True, name="norm")(x)
        router_logits = tuple(logits for _, logits in outputs) if routed else None
        return Decoded(x0, [y for y, _ in outputs], x, embed, router_logits)
