"""What is known of a parameter before it exists."""

import dataclasses
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class ParamSpec:
    """One leaf of a model's abstract tree.

    Attributes:
      shape: of the array, leading `layers` axis included.
      dtype: of the array.
      axes: a logical axis name (or None) for each dimension.
    """

    shape: tuple[int, ...]
    dtype: Any
    axes: tuple[str | None, ...]

    def struct(self, sharding: jax.sharding.Sharding | None = None) -> jax.ShapeDtypeStruct:
        """The leaf as JAX's own abstract array, for compiling and restoring."""
        return jax.ShapeDtypeStruct(self.shape, self.dtype, sharding=sharding)
