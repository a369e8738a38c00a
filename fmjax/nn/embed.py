"""Embedding tables."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.core.execution import Execution
from fmjax.nn import ports, prompt_port
from fmjax.nn.lookup import lookup
from fmjax.nn.param import param
from fmjax.nn.product import product

HEAD = "attend"
"""Under an embedding's path in the adapter: the leaves of the head that shares its table."""


class Embed(nn.Module):
    """A table [num, features] that is read by id, and by `attend` as a tied output head.

    Attributes:
      num: rows.
      features: columns.
      axes: logical names of the two dimensions.
      embedding_init: initialiser.
      execution: precision.
      scale: multiplies what is read (not what is attended to), rounded to the compute dtype.
    """

    num: int
    features: int
    axes: tuple[str | None, str | None] = ("vocab", "embed")
    embedding_init: Callable[..., jax.Array] = nn.initializers.normal(0.02)
    execution: Execution = Execution()
    scale: float | None = None

    def setup(self) -> None:
        self.embedding = param(
            self,
            "embedding",
            self.embedding_init,
            (self.num, self.features),
            self.axes,
            self.execution.param_dtype,
        )

    def __call__(self, ids: jax.Array) -> jax.Array:
        """ids i32[...] → [..., features]. An id outside the table gives NaN, never a wrong row."""
        y = lookup(self.embedding, ids, self.axes, self.execution.dtype)
        y = ports.low_rank_embedding(self, ids, y, self.embedding)
        y = y if self.scale is None else y * jnp.asarray(self.scale, y.dtype)
        return prompt_port.vectors(self, ids, y)

    def attend(self, x: jax.Array) -> jax.Array:
        """x [..., features] → f32 logits [..., num] against every row."""
        dtype = self.execution.dtype

        def multiply(x: jax.Array) -> jax.Array:
            return product(x.astype(dtype), self.embedding.astype(dtype), jnp.float32, last=True)

        # The head has an adapter of its own, as if it were a layer of its own.
        return ports.low_rank(self, x, self.embedding.T, multiply, below=HEAD)
