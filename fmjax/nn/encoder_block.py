"""Blocks of encoders that see all of their input: attention in both directions, pre-norm layers.

Shapes: B batch, T tokens, D hidden size, H heads, K head size.
"""

from collections.abc import Callable

import flax.linen as nn
import jax

from fmjax.core.execution import Execution
from fmjax.core.logical import constrain
from fmjax.nn.attention import attention
from fmjax.nn.dense import Dense
from fmjax.nn.dropout import drop_path, dropout
from fmjax.nn.masks import Mask
from fmjax.nn.mlp import MLP
from fmjax.nn.norms import LayerNorm
from fmjax.nn.param import param

Initializer = Callable[..., jax.Array]


class SelfAttention(nn.Module):
    """Multi-head attention of all tokens to all: x [B, T, D] → [B, T, D].

    Attributes:
      heads: H, which divides D.
      use_bias: on queries, keys and values; the output has one.
      dropout_rate: of the probabilities.
      kernel_init: of the kernels.
      execution: precision and kernel.
      out_init: of the output's kernel; None means kernel_init.
    """

    heads: int
    use_bias: bool = True
    dropout_rate: float = 0.0
    kernel_init: Initializer = nn.initializers.normal(0.02)
    execution: Execution = Execution()
    out_init: Initializer | None = None

    @nn.compact
    def __call__(self, x: jax.Array, mask: Mask) -> jax.Array:
        ex = self.execution
        B, T, D = x.shape

        def project(name: str) -> jax.Array:
            axes = ("embed", "heads")
            dense = Dense(D, axes, self.use_bias, self.kernel_init, ex, name=name)
            return dense(x).reshape(B, T, self.heads, D // self.heads)

        out = attention(
            self,
            project("q_proj"),
            project("k_proj"),
            project("v_proj"),
            mask,
            dropout_rate=self.dropout_rate,
            implementation=ex.attention,
        )
        init = self.out_init or self.kernel_init
        return Dense(D, ("heads", "embed"), True, init, ex, name="o_proj")(out)


class LayerScale(nn.Module):
    """x · scale over the last axis (arXiv:2103.17239).

    Attributes:
      value: that every number starts from.
      execution: precision.
    """

    value: float
    execution: Execution = Execution()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init, shape = nn.initializers.constant(self.value), (x.shape[-1],)
        dtype, between = self.execution.param_dtype, x.ndim - 2
        scale = param(self, "scale", init, shape, ("norm",), dtype, between=between)
        return x * scale.astype(x.dtype)


class PreNormBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): the layer of ViT (arXiv:2010.11929).

    Called as `apply_layers` calls layers; what is the layer's own is its rate of `drop_path`.

    Attributes:
      heads: H.
      intermediate: width of the MLP.
      act: name of its activation.
      epsilon: of the norms.
      qkv_bias: on queries, keys and values.
      dropout_rate: of what each of the two adds.
      attention_dropout: of the probabilities.
      kernel_init: of the kernels.
      execution: precision and kernel.
      mlp_init: of the MLP's first kernel; None means kernel_init.
      residual_init: of the two that write into the residual stream; None means kernel_init.
    """

    heads: int
    intermediate: int
    act: str = "gelu"
    epsilon: float = 1e-6
    qkv_bias: bool = True
    dropout_rate: float = 0.0
    attention_dropout: float = 0.0
    kernel_init: Initializer = nn.initializers.normal(0.02)
    execution: Execution = Execution()
    mlp_init: Initializer | None = None
    residual_init: Initializer | None = None

    @nn.compact
    def __call__(self, x: jax.Array, mask: Mask, own: jax.Array | None) -> jax.Array:
        ex, init = self.execution, self.kernel_init
        into_mlp, out = self.mlp_init or init, self.residual_init or init
        y = LayerNorm(self.epsilon, ex, name="attention_norm")(x)
        attend = SelfAttention(
            self.heads, self.qkv_bias, self.attention_dropout, init, ex, out, name="attention"
        )
        y = dropout(self, attend(y, mask), self.dropout_rate)
        x = x + drop_path(self, y, own)
        y = LayerNorm(self.epsilon, ex, name="mlp_norm")(x)
        names = ("fc1", "fc2")
        mlp = MLP(self.intermediate, self.act, names, True, into_mlp, out, execution=ex, name="mlp")
        y = dropout(self, mlp(y), self.dropout_rate)
        return constrain(x + drop_path(self, y, own), ("batch", "seq", "act_embed"))
