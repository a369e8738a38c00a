"""The attention block of decoders with rotary positions."""

from collections.abc import Callable

import flax.linen as nn
import jax

from fmjax.core.execution import Execution
from fmjax.nn.attention import attention
from fmjax.nn.decoder import DecoderContext
from fmjax.nn.dense import Dense
from fmjax.nn.rope import rotate


class RotaryAttention(nn.Module):
    """Grouped-query attention (arXiv:2305.13245) with rotary positions: x [B, T, D] → [B, T, D].

    The context's tables are the cos and sin of `fmjax.nn.rope.cos_sin`, its mask says who sees
    whom.

    Attributes:
      heads: H, of the queries.
      kv_heads: G, of keys and values; H is a multiple of it.
      head_dim: K.
      qkv_bias: on the projections to queries, keys and values.
      out_bias: on the projection back.
      qk_norm: given a name, makes a norm over K; for queries and keys, before they are rotated.
      scale: of the scores; default 1 / √K.
      softcap: bound c of the scores, s → c · tanh(s / c).
      dropout_rate: of the probabilities.
      kernel_init: of all projections.
    """

    heads: int
    kv_heads: int
    head_dim: int
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: Callable[..., nn.Module] | None = None
    scale: float | None = None
    softcap: float | None = None
    dropout_rate: float = 0.0
    kernel_init: Callable[..., jax.Array] = nn.initializers.normal(0.02)
    execution: Execution = Execution()

    @nn.compact
    def __call__(self, x: jax.Array, ctx: DecoderContext) -> jax.Array:
        B, T, D = x.shape
        K, init, ex = self.head_dim, self.kernel_init, self.execution

        def project(heads: int, axis: str, name: str) -> jax.Array:
            dense = Dense(heads * K, ("embed", axis), self.qkv_bias, init, ex, name=name)
            return dense(x).reshape(B, T, heads, K)

        q = project(self.heads, "heads", "q_proj")
        k = project(self.kv_heads, "kv_heads", "k_proj")
        v = project(self.kv_heads, "kv_heads", "v_proj")
        if self.qk_norm is not None:
            q, k = self.qk_norm(name="q_norm")(q), self.qk_norm(name="k_norm")(k)
        out = attention(
            self,
            rotate(q, *ctx.tables),
            rotate(k, *ctx.tables),
            v,
            ctx.mask,
            scale=self.scale,
            softcap=self.softcap,
            dropout_rate=self.dropout_rate,
            cache_index=ctx.cache_index,
            implementation=ex.attention,
        )
        return Dense(D, ("heads", "embed"), self.out_bias, init, ex, name="o_proj")(out)
