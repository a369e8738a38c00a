"""One vector from many by attention of a learned query: multi-head attention pooling, "MAP".

(arXiv:1810.00825, in the form of arXiv:2106.04560.) Shapes: B batch, T tokens, D hidden size, H
heads, K head size.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.core.execution import Execution
from fmjax.nn.dense import Dense
from fmjax.nn.mlp import MLP
from fmjax.nn.norms import LayerNorm
from fmjax.nn.param import param
from fmjax.nn.vision_tokens import Tokens

Initializer = Callable[..., jax.Array]


class AttentionPool(nn.Module):
    """A learned token attends to x [B, T, D], then passes an MLP with a residual: → [B, D].

    Attributes:
      heads: H.
      intermediate: width of the MLP.
      act: name of its activation.
      epsilon: of the norm.
      kernel_init: of the probe and all kernels.
      fused: queries, keys and values are one array, as in files of torch's `MultiheadAttention`.
      execution: precision.
    """

    heads: int
    intermediate: int
    act: str = "gelu"
    epsilon: float = 1e-6
    kernel_init: Initializer = nn.initializers.normal(0.02)
    fused: bool = False
    execution: Execution = Execution()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        ex, init, D = self.execution, self.kernel_init, x.shape[-1]
        fused = FusedProjection(D, init, ex, name="in_proj") if self.fused else None

        def project(y: jax.Array, part: int, name: str) -> jax.Array:
            if fused is None:
                y = Dense(D, ("embed", "heads"), True, init, ex, name=name)(y)
            else:
                y = fused(y, part)
            return y.reshape(*y.shape[:-1], self.heads, D // self.heads)

        q = project(Tokens(D, 1, init, ex, name="probe")(), 0, "q_proj")[0, 0]  # [H, K]
        k, v = project(x, 1, "k_proj"), project(x, 2, "v_proj")
        scale = (D // self.heads) ** -0.5
        scores = jnp.einsum("hk,bthk->bht", q * scale, k, preferred_element_type=jnp.float32)
        probs = jax.nn.softmax(scores, -1).astype(v.dtype)
        y = jnp.einsum("bht,bthk->bhk", probs, v).reshape(-1, 1, D)
        y = Dense(D, ("heads", "embed"), True, init, ex, name="o_proj")(y)
        z = LayerNorm(self.epsilon, ex, name="norm")(y)
        mlp = MLP(
            self.intermediate,
            self.act,
            ("fc1", "fc2"),
            kernel_init=init,
            out_init=init,
            execution=ex,
            name="mlp",
        )
        return (y + mlp(z))[:, 0]


class FusedProjection(nn.Module):
    """Queries, keys and values side by side, W [D, 3, D] and b [3, D], each used by itself.

    A pool's queries are one token's, so that multiplying by all of W would be work for nothing.

    Attributes:
      features: D.
      kernel_init: of W, as a matrix [D, 3 · D].
      execution: precision.
    """

    features: int
    kernel_init: Initializer
    execution: Execution

    def setup(self) -> None:
        D, dtype, axes = self.features, self.execution.param_dtype, ("embed", "qkv", "heads")

        def init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
            return self.kernel_init(key, (D, 3 * D), dtype).reshape(shape)

        self.weight = param(self, "weight", init, (D, 3, D), axes, dtype)
        self.bias = param(self, "bias", nn.initializers.zeros, (3, D), axes[1:], dtype)

    def __call__(self, x: jax.Array, part: int) -> jax.Array:
        """x [B, T, D] → [B, T, D] by part 0, 1 or 2: query, key or value."""
        dtype = self.execution.dtype
        y = jnp.matmul(x.astype(dtype), self.weight[:, part].astype(dtype))
        return y + self.bias[part].astype(dtype)
