"""Pooling by attention: one learned query reads a whole sequence.

Shapes: B batch, S tokens, D hidden size, H heads, K head size.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.core.execution import Execution
from fmjax.core.logical import constrain
from fmjax.nn.attention_xla import xla
from fmjax.nn.dense import Dense
from fmjax.nn.learned import learned
from fmjax.nn.masks import Mask
from fmjax.nn.mlp import MLP
from fmjax.nn.norms import LayerNorm

_xavier = nn.initializers.xavier_uniform()


class AttentionPool(nn.Module):
    """x [B, S, D] → [B, D]: multi-head attention pooling, as SigLIP has it (arXiv:2303.15343).

    The query is a learned token, the probe; an MLP with a pre-norm and a residual follows.

    Attributes:
      num_heads: H.
      intermediate_size: width of the MLP.
      act: of the MLP.
      epsilon: of the norm.
      kernel_init: of the MLP and of the output projection.
      execution: precision.
    """

    num_heads: int
    intermediate_size: int
    act: str
    epsilon: float
    kernel_init: Callable[..., jax.Array] = _xavier
    execution: Execution = Execution()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        ex = self.execution
        B, S, D = x.shape
        H, K = self.num_heads, D // self.num_heads
        probe = learned(self, "probe", _xavier, (1, 1, D), (None, None, "embed"), ex)
        weight, bias = _InProjection(D, ex, name="in_proj")()
        # Queries are the probe's only, so the parts are multiplied apart.
        q = probe.astype(ex.dtype) @ weight[:, 0] + bias[0]
        kv = jnp.einsum("bsd,dpe->pbse", x.astype(ex.dtype), weight[:, 1:]) + bias[1:, None, None]

        def heads(y: jax.Array) -> jax.Array:
            y = jnp.swapaxes(y.reshape(*y.shape[:2], H, K), 1, 2)
            return constrain(y, ("batch", "act_heads", None, None))

        q = heads(jnp.broadcast_to(q * K**-0.5, (B, 1, D)))
        # A single query: its scores are few, and kernels for long sequences have nothing to save.
        y = xla(q, heads(kv[0]), heads(kv[1]), Mask(causal=False))
        y = Dense(D, ("heads", "embed"), True, self.kernel_init, ex, name="out_proj")(y)
        mlp = MLP(
            self.intermediate_size,
            self.act,
            ("fc1", "fc2"),
            kernel_init=self.kernel_init,
            out_init=self.kernel_init,
            execution=ex,
            name="mlp",
        )
        return (y + mlp(LayerNorm(self.epsilon, ex, name="layernorm")(y)))[:, 0]


class _InProjection(nn.Module):
    """Queries, keys and values side by side, one array in the files: [D, 3, D] and [3, D]."""

    features: int
    execution: Execution

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array]:
        D, ex = self.features, self.execution
        axes = ("embed", "qkv", "heads")
        weight = learned(self, "weight", _as_one_matrix, (D, 3, D), axes, ex)
        bias = learned(self, "bias", nn.initializers.zeros, (3, D), axes[1:], ex)
        return weight.astype(ex.dtype), bias.astype(ex.dtype)


def _as_one_matrix(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    D, parts, E = shape
    return _xavier(key, (D, parts * E), dtype).reshape(shape)
