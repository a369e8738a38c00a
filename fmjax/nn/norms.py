"""Normalisation layers. Statistics are taken in float32 whatever the compute dtype."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.core.execution import Execution
from fmjax.nn.backward import together
from fmjax.nn.param import param


class RMSNorm(nn.Module):
    """x / rms(x) · scale over the last axis (arXiv:1910.07467).

    Attributes:
      epsilon: added to the mean square.
      execution: precision.
      offset: None as in LLaMA: the normalised value is rounded to the compute dtype before it is
        scaled. A number o as in Gemma (1): scaled by o + scale in float32, then rounded.
      final: it stands on the last layer, see `fmjax.nn.backward.together`.
    """

    epsilon: float = 1e-6
    execution: Execution = Execution()
    offset: float | None = None
    final: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        ex = self.execution
        init = nn.initializers.constant(1.0 - (self.offset or 0.0))
        shape, between = (x.shape[-1],), x.ndim - 2
        scale = param(self, "scale", init, shape, ("norm",), ex.param_dtype, between=between)
        if self.final:
            x, scale = together(x, scale)
        x32 = x.astype(jnp.float32)
        y = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, -1, keepdims=True) + self.epsilon)
        if self.offset is None:
            return y.astype(ex.dtype) * scale.astype(ex.dtype)
        return (y * (self.offset + scale.astype(jnp.float32))).astype(ex.dtype)


class LayerNorm(nn.Module):
    """(x − mean) / std · scale + bias over the last axis (arXiv:1607.06450).

    Attributes:
      epsilon: added to the variance.
      execution: precision.
      final: it stands on the last layer, see `fmjax.nn.backward.together`.
    """

    epsilon: float = 1e-5
    execution: Execution = Execution()
    final: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        ex, shape = self.execution, (x.shape[-1],)

        def vector(name: str, init: nn.initializers.Initializer) -> jax.Array:
            axes, between = ("norm",), x.ndim - 2
            return param(self, name, init, shape, axes, ex.param_dtype, between=between)

        scale = vector("scale", nn.initializers.ones)
        bias = vector("bias", nn.initializers.zeros)
        if self.final:
            x, scale = together(x, scale)
        x32 = x.astype(jnp.float32)
        x32 = x32 - jnp.mean(x32, -1, keepdims=True)
        y = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, -1, keepdims=True) + self.epsilon)
        y = y * scale.astype(jnp.float32) + bias.astype(jnp.float32)
        return y.astype(ex.dtype)
