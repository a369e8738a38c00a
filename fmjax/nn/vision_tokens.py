"""What stands beside the patches of an image: learned tokens, and the patches' positions."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.core.errors import DataError
from fmjax.core.execution import Execution
from fmjax.nn.interpolate import interpolate_grid
from fmjax.nn.param import param

Initializer = Callable[..., jax.Array]
Pair = tuple[int, int]


class Tokens(nn.Module):
    """Learned vectors that no pixel enters: class, mask and register tokens. () → [1, n, D].

    Attributes:
      features: D.
      count: n.
      init: initialiser.
      execution: precision.
    """

    features: int
    count: int = 1
    init: Initializer = nn.initializers.normal(0.02)
    execution: Execution = Execution()

    @nn.compact
    def __call__(self) -> jax.Array:
        shape, axes = (1, self.count, self.features), (None, None, "embed")
        token = param(self, "token", self.init, shape, axes, self.execution.param_dtype)
        return token.astype(self.execution.dtype)


class GridPositions(nn.Module):
    """A table of positions for n tokens and a grid of patches, which is resampled for another grid.

    Attributes:
      features: D.
      grid: (rows, columns) of the table.
      tokens: n, positions that come before those of the patches and belong to no place.
      antialias: of the resampling, see `fmjax.nn.interpolate`.
      init: initialiser of the table [1, n + rows · columns, D].
      execution: precision.
    """

    features: int
    grid: Pair
    tokens: int = 1
    antialias: bool = False
    init: Initializer = nn.initializers.normal(0.02)
    execution: Execution = Execution()

    def setup(self) -> None:
        shape = (1, self.tokens + self.grid[0] * self.grid[1], self.features)
        axes = (None, "positions", "embed")
        self.table = param(self, "table", self.init, shape, axes, self.execution.param_dtype)

    def __call__(self, grid: Pair) -> tuple[jax.Array, jax.Array]:
        """Positions of the tokens [1, n, D] and of the patches [1, rows · columns, D] of a grid."""
        first, places = self.table[:, : self.tokens], self.table[:, self.tokens :]
        if tuple(grid) != tuple(self.grid):
            places = interpolate_grid(places[0], self.grid, grid, self.antialias)[None]
        return first.astype(self.execution.dtype), places.astype(self.execution.dtype)


def put_before(tokens: jax.Array, x: jax.Array) -> jax.Array:
    """Tokens [1, n, D] before every row of x [B, T, D] → [B, n + T, D]."""
    return jnp.concatenate([jnp.broadcast_to(tokens, (x.shape[0], *tokens.shape[1:])), x], 1)


def hide(x: jax.Array, hidden: jax.Array | None, token: jax.Array) -> jax.Array:
    """Patches [B, P, D] with a mask token [1, 1, D] in the place of those that are hidden.

    Args:
      x: the patches.
      hidden: bool [B, P]; None hides none.
      token: what stands in their place.

    Raises:
      DataError: `hidden` is not a boolean for each patch.
    """
    if hidden is None:
        return x
    if hidden.shape != x.shape[:2] or hidden.dtype != jnp.bool_:
        raise DataError(
            f"bool_masked_pos is {hidden.dtype} {hidden.shape}; it must be a boolean for each "
            f"patch, {x.shape[:2]}"
        )
    return jnp.where(hidden[..., None], token.astype(x.dtype), x)
