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
      execution: precision.
    """

    heads: int
    intermediate: int
    act: str = "gelu"
    epsilon: float = 1e-6
    kernel_init: Initializer = nn.initializers.normal(0.02)
    execution: Execution = Execution()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        ex, init, D = self.execution, self.kernel_init, x.shape[-1]

        def project(y: jax.Array, name: str) -> jax.Array:
            dense = Dense(D, ("embed", "heads"), True, init, ex, name=name)
            return dense(y).reshape(*y.shape[:-1], self.heads, D // self.heads)

        q = project(Tokens(D, 1, init, ex, name="probe")(), "q_proj")[0, 0]  # [H, K]
        k, v = project(x, "k_proj"), project(x, "v_proj")
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
