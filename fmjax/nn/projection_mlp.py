"""SimCLR's projection head: what the contrastive loss sees, and nothing else does."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.core.execution import Execution
from fmjax.nn.batch_norm import BatchNorm
from fmjax.nn.dense import Dense


class ProjectionMLP(nn.Module):
    """Dense layers with batch norm, a ReLU after all but the last: [B, D] → f32 [B, features].

    As in the code of arXiv:2006.10029: no dense layer has a bias, and the last norm has none.

    Attributes:
      features: size of a projection.
      hidden: width of the layers before the last one.
      layers: in all, 3 there and 2 in the first paper.
      execution: precision.
    """

    features: int = 128
    hidden: int = 2048
    layers: int = 3
    execution: Execution = Execution()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        ex = self.execution
        for i in range(self.layers):
            last = i == self.layers - 1
            axes = ("embed", "mlp") if i % 2 == 0 else ("mlp", "embed")
            width = self.features if last else self.hidden
            x = Dense(width, axes, execution=ex, name=f"dense_{i}")(x)
            x = BatchNorm(use_bias=not last, execution=ex, name=f"norm_{i}")(x)
            x = x if last else nn.relu(x)
        return x.astype(jnp.float32)
