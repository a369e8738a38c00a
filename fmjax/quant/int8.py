"""Int8: eight bits a weight, one scale for each output (LLM.int8(), arXiv:2208.07339).

Weight-only: activations keep their precision, and no outlier is held apart.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from fmjax.quant.packed import Packed, rounded

_UNIT = np.float32(1 / 127)


@dataclasses.dataclass(frozen=True)
class Int8:
    """The format; it has no options."""

    def pack(self, w: jax.Array, storage: str) -> "Int8Array":
        """One kernel (in, *out) of a floating dtype → packed, as `int8_vectorwise_quant`."""
        del storage
        scale = jnp.max(jnp.abs(w.astype(jnp.float32)), 0)
        # The reference takes the reciprocal first, and float16 weights often lie on a half step.
        steps = (1 / jnp.where(scale == 0, 1, scale)) * 127
        codes = jnp.round(w.astype(jnp.float32) * steps).astype(jnp.int8)
        return Int8Array(codes, scale, w.shape, w.dtype.name)

    def empty(
        self, lead: tuple[int, ...], matrix: tuple[int, ...], dtype: np.dtype, storage: str
    ) -> "Int8Array":
        """A node of `ShapeDtypeStruct`s."""
        del storage
        codes = jax.ShapeDtypeStruct((*lead, *matrix), jnp.int8)
        scale = jax.ShapeDtypeStruct((*lead, *matrix[1:]), jnp.float32)
        return Int8Array(codes, scale, matrix, dtype.name)


@flax.struct.dataclass
class Int8Array(Packed):
    """A kernel in int8.

    Attributes:
      codes: int8 [*lead, in, *out], −127 … 127.
      scale: f32 [*lead, *out], the largest magnitude among an output's weights.
    """

    codes: Any
    scale: Any
    matrix: tuple[int, ...] = flax.struct.field(pytree_node=False)
    dtype_name: str = flax.struct.field(pytree_node=False)

    name = "int8"

    @property
    def format(self) -> Int8:
        """How it was made."""
        return Int8()

    @property
    def lead(self) -> tuple[int, ...]:
        """Sizes of the leading axes."""
        return self.codes.shape[: -len(self.matrix)]

    def _values(self) -> jax.Array:
        return rounded(self.codes.astype(jnp.float32) * self.scale * _UNIT, self.dtype)

    def axes(self, kernel_axes: tuple[str | None, ...]) -> "Int8Array":
        """The logical axes of each array, given those of the kernel: a node of tuples."""
        axes, lead = tuple(kernel_axes), len(kernel_axes) - len(self.matrix)
        return self.replace(codes=axes, scale=axes[:lead] + axes[lead + 1 :])
