"""What all packed weights have in common."""

import math
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np


class Packed:
    """A kernel [*lead, in, *out] held in few bits: a pytree node that is one leaf to `core.tree`.

    Its arrays have the kernel's leading axes (layers), so that a scan slices it as it slices the
    kernel; its static fields describe one matrix. The packed matrix is that of a file: [out, in]
    with the out axes made one, row after row.

    Attributes:
      matrix: (in, *out).
      dtype_name: of the kernel that it stands for.
    """

    name: ClassVar[str]
    matrix: tuple[int, ...]
    dtype_name: str

    @property
    def lead(self) -> tuple[int, ...]:
        """Sizes of the leading axes."""
        raise TypeError(f"{type(self).__name__} is a base class")

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the kernel that it stands for."""
        return (*self.lead, *self.matrix)

    @property
    def ndim(self) -> int:
        """Of the kernel that it stands for."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def dtype(self) -> np.dtype:
        """Of the kernel that it stands for."""
        return jnp.dtype(self.dtype_name)

    @property
    def sharding(self) -> Any:
        """Of the kernel's axes, where the codes keep them; None of flat or abstract codes."""
        codes = jax.tree.leaves(self)[0]
        return getattr(codes, "sharding", None) if len(codes.shape) == self.ndim else None

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays; two uint4 make one, as on the device that holds them so."""
        return sum(
            math.prod(x.shape) * jax.dtypes.itemsize_bits(x.dtype) // 8
            for x in jax.tree.leaves(self)
        )

    def dequantize(self, dtype: Any = None) -> jax.Array:
        """The kernel in `dtype` (default: the dtype it stands for), with its rounding in any case.

        Stacked layers are taken one by one. Traceable.
        """
        if self.lead:
            return jax.lax.map(lambda layer: layer.dequantize(dtype), self)
        dtype = self.dtype if dtype is None else jnp.dtype(dtype)
        return self._values().astype(dtype)

    def product(self, x: jax.Array, dtype: Any) -> jax.Array:
        """x [..., in] → x W [..., *out], accumulated and returned in `dtype`."""
        w = self.dequantize(x.dtype)
        return jax.lax.dot_general(
            x, w, (((x.ndim - 1,), (0,)), ((), ())), preferred_element_type=dtype
        )

    def transposed_product(self, y: jax.Array) -> jax.Array:
        """y [..., *out] → y Wᵀ [..., in], in the dtype of y."""
        w = self.dequantize(y.dtype)
        out = len(self.matrix) - 1
        axes = tuple(range(y.ndim - out, y.ndim)), tuple(range(1, out + 1))
        return jax.lax.dot_general(y, w, (axes, ((), ())))

    def axes(self, kernel_axes: tuple[str | None, ...]) -> Self:
        """The logical axes of each array, given those of the kernel: a node of tuples."""
        raise TypeError(f"{type(self).__name__} is a base class")

    def _values(self) -> jax.Array:
        """f32 (in, *out) of one layer, rounded to the dtype that it stands for."""
        raise TypeError(f"{type(self).__name__} is a base class")


def rounded(x: jax.Array, dtype: np.dtype) -> jax.Array:
    """f32 values, rounded to those that `dtype` has; not left out by the compiler."""
    if dtype == jnp.float32:
        return x
    info = jnp.finfo(dtype)
    return jax.lax.reduce_precision(x, info.nexp, info.nmant)
