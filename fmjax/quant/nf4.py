"""NF4: four bits a weight, one scale for each block of 64 (QLoRA, arXiv:2305.14314).

Bit for bit as bitsandbytes' CPU kernels compute it: codes, scales and dequantised values.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from fmjax.core.errors import ConfigError
from fmjax.quant import double
from fmjax.quant.codebook import decode_nf4, encode_nf4
from fmjax.quant.packed import Packed, rounded

BLOCKSIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
STORAGES = ("uint4", "uint8")
_TINY = np.float32(1e-38)  # Stands for a last, incomplete block whose weights are all zero.


@dataclasses.dataclass(frozen=True)
class NF4:
    """The format.

    Attributes:
      double: hold the blocks' scales in 8 bits (4.127 bits a weight) instead of float32 (4.5).
      blocksize: weights that share a scale.
    """

    double: bool = True
    blocksize: int = 64

    def __post_init__(self) -> None:
        if self.blocksize not in BLOCKSIZES:
            sizes = ", ".join(map(str, BLOCKSIZES))
            raise ConfigError(f"NF4: blocksize {self.blocksize} is not one of {sizes}")

    def pack(self, w: jax.Array, storage: str) -> "NF4Array":
        """One kernel (in, *out) of a floating dtype → packed."""
        name, matrix, w = w.dtype.name, w.shape, w.astype(jnp.float32)
        inputs, *out = matrix
        if inputs % self.blocksize == 0:
            blocks = w.reshape(-1, self.blocksize, *out)
            absmax = jnp.max(jnp.abs(blocks), 1)
            inverse = 1 / jnp.where(absmax == 0, 1, absmax)
            codes = encode_nf4(jnp.clip(blocks * inverse[:, None], -1, 1))
            codes = _store(codes, storage).reshape(-1, *out)
        else:
            codes, absmax = self._pack_flat(w.reshape(inputs, -1).T.reshape(-1))
        nested = offset = None
        if self.double:
            flat = jnp.moveaxis(absmax, 0, -1)
            absmax, nested, offset = double.compress(flat.reshape(-1))
            absmax = jnp.moveaxis(absmax.reshape(flat.shape), -1, 0)
        return NF4Array(codes, absmax, nested, offset, matrix, name, self.blocksize)

    def _pack_flat(self, w: jax.Array) -> tuple[jax.Array, jax.Array]:
        whole = w.size // self.blocksize * self.blocksize
        blocks, rest = w[:whole].reshape(-1, self.blocksize), w[whole:]
        absmax = jnp.max(jnp.abs(blocks), 1)
        inverse = 1 / jnp.where(absmax == 0, 1, absmax)
        scaled = (blocks * inverse[:, None]).reshape(-1)
        if rest.size:
            # The reference divides here, where it multiplies with the reciprocal above.
            last = jnp.max(jnp.abs(rest))
            scaled = jnp.concatenate([scaled, rest / jnp.where(last == 0, 1, last)])
            absmax = jnp.concatenate([absmax, jnp.where(last == 0, _TINY, last)[None]])
        codes = encode_nf4(jnp.clip(jnp.pad(scaled, (0, w.size % 2)), -1, 1)).reshape(-1, 2)
        return codes[:, 0] << 4 | codes[:, 1], absmax

    def empty(
        self, lead: tuple[int, ...], matrix: tuple[int, ...], dtype: np.dtype, storage: str
    ) -> "NF4Array":
        """A node of `ShapeDtypeStruct`s."""
        one = jax.eval_shape(lambda w: self.pack(w, storage), jax.ShapeDtypeStruct(matrix, dtype))
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((*lead, *x.shape), x.dtype), one)


@flax.struct.dataclass
class NF4Array(Packed):
    """A kernel in NF4.

    Where blocks divide the input size, the arrays keep the kernel's dimensions and their order, so
    that they shard as it does and a block lies along the second-to-last tile dimension. Elsewhere
    they are flat, as in a file. Shapes, with N = in · out weights, block size b and leading axes
    before each:

    Attributes:
      codes: uint4 (in, *out); or uint8 (in / 2, *out), of which row i · b / 2 + j holds rows
        i · b + j (high bits) and i · b + b / 2 + j of the kernel; flat: uint8 (⌈N / 2⌉).
      absmax: scale of each block, (in / b, *out); flat: (⌈N / b⌉). uint8 with double quantisation,
        else f32.
      nested_absmax: f32 (number of blocks / 256, rounded up), blocks counted in a file's order; or
        None.
      offset: f32 (), added to each scale; or None.
      blocksize: b.
    """

    codes: Any
    absmax: Any
    nested_absmax: Any
    offset: Any
    matrix: tuple[int, ...] = flax.struct.field(pytree_node=False)
    dtype_name: str = flax.struct.field(pytree_node=False)
    blocksize: int = flax.struct.field(pytree_node=False, default=64)

    name = "NF4"

    @property
    def format(self) -> NF4:
        """How it was made."""
        return NF4(self.nested_absmax is not None, self.blocksize)

    @property
    def blocked(self) -> bool:
        """Whether the arrays keep the kernel's dimensions."""
        return self.matrix[0] % self.blocksize == 0

    @property
    def lead(self) -> tuple[int, ...]:
        """Sizes of the leading axes."""
        return self.absmax.shape[: -len(self.matrix) if self.blocked else -1]

    def scales(self) -> jax.Array:
        """f32, of each block of one layer, in the shape of `absmax`."""
        if self.nested_absmax is None:
            return self.absmax
        flat = jnp.moveaxis(self.absmax, 0, -1)
        scales = double.expand(flat.reshape(-1), self.nested_absmax, self.offset)
        return jnp.moveaxis(scales.reshape(flat.shape), -1, 0)

    def _values(self) -> jax.Array:
        inputs, *out = self.matrix
        scales = self.scales()
        if self.blocked:
            codes = unpacked(self.codes, self.blocksize)
            values = (decode_nf4(codes) * scales[:, None]).reshape(self.matrix)
        else:
            codes = jnp.stack([self.codes >> 4, self.codes & 15], 1).reshape(-1)
            codes = codes[: np.prod(self.matrix)]
            sizes = jnp.repeat(scales, self.blocksize)[: codes.size]
            values = (decode_nf4(codes) * sizes).reshape(-1, inputs).T.reshape(self.matrix)
        return rounded(values, self.dtype)

    def axes(self, kernel_axes: tuple[str | None, ...]) -> "NF4Array":
        """The logical axes of each array, given those of the kernel: a node of tuples."""
        lead = tuple(kernel_axes[: len(kernel_axes) - len(self.matrix)])
        own = tuple(kernel_axes) if self.blocked else (*lead, None)
        nested = None if self.nested_absmax is None else (*lead, None)
        offset = None if self.offset is None else lead
        return self.replace(codes=own, absmax=own, nested_absmax=nested, offset=offset)


def _store(codes: jax.Array, storage: str) -> jax.Array:
    """Codes uint8 (blocks, b, *out) → uint4 of that shape, or two halves of a block in a uint8."""
    if storage == "uint4":
        return codes.astype(jnp.uint4)
    half = codes.shape[1] // 2
    return codes[:, :half] << 4 | codes[:, half:]


def unpacked(codes: jax.Array, blocksize: int) -> jax.Array:
    """Stored codes of one layer → (blocks, b, *out) of 0 … 15; for numpy arrays too."""
    out = codes.shape[1:]
    if codes.dtype == jnp.uint4:
        return codes.reshape(-1, blocksize, *out)
    halves = codes.reshape(-1, blocksize // 2, *out)
    xp = np if isinstance(codes, np.ndarray) else jnp
    return xp.concatenate([halves >> 4, halves & 15], 1)
