"""NF4: four bits a weight, one scale for each block of 64 (QLoRA, arXiv:2305.14314).

Bit for bit as bitsandbytes' CPU kernels compute it: codes, scales and dequantised values.
"""

import dataclasses
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from fmjax.core import logical
from fmjax.core.errors import ConfigError
from fmjax.quant import double
from fmjax.quant.codebook import decode_nf4, encode_nf4
from fmjax.quant.packed import Packed, rounded

BLOCKSIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
STORAGES = ("uint4", "uint8")
PIECE = 1 << 24
"""Weights that a product on one device dequantises at a time (32 MB in bfloat16)."""
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
        scales = self.scales()
        if self.blocked:
            return self._decode(self.codes, scales)
        codes = jnp.stack([self.codes >> 4, self.codes & 15], 1).reshape(-1)
        codes = codes[: math.prod(self.matrix)]
        values = decode_nf4(codes) * jnp.repeat(scales, self.blocksize)[: codes.size]
        return rounded(values.reshape(-1, self.matrix[0]).T.reshape(self.matrix), self.dtype)

    def _decode(self, codes: jax.Array, scales: jax.Array) -> jax.Array:
        """Whole blocks: stored codes and their scales (blocks, *out) → f32 (inputs, *out)."""
        values = decode_nf4(unpacked(codes, self.blocksize)) * scales[:, None]
        return rounded(values.reshape(-1, *self.matrix[1:]), self.dtype)

    def product(self, x: jax.Array, dtype: Any) -> jax.Array:
        """x [..., in] → x W [..., *out], accumulated and returned in `dtype`."""
        pieces = self._pieces()
        if pieces == 1:
            return super().product(x, dtype)

        def add(total: jax.Array, piece: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
            x, *held = piece
            w = self._decode(*held).astype(x.dtype)
            return total + jnp.tensordot(x, w, 1, preferred_element_type=total.dtype), None

        xs = jnp.moveaxis(x.reshape(*x.shape[:-1], pieces, -1), -2, 0)
        zero = jnp.zeros((*x.shape[:-1], *self.matrix[1:]), jnp.promote_types(dtype, jnp.float32))
        return jax.lax.scan(add, zero, (xs, *self._cut(pieces)))[0].astype(dtype)

    def transposed_product(self, y: jax.Array) -> jax.Array:
        """y [..., *out] → y Wᵀ [..., in], in the dtype of y."""
        pieces = self._pieces()
        if pieces == 1:
            return super().transposed_product(y)
        out = len(self.matrix) - 1
        axes = tuple(range(y.ndim - out, y.ndim)), tuple(range(1, out + 1))
        xs = jax.lax.map(
            lambda held: jnp.tensordot(y, self._decode(*held).astype(y.dtype), axes),
            self._cut(pieces),
        )
        return jnp.moveaxis(xs, 0, -2).reshape(*y.shape[: y.ndim - out], self.matrix[0])

    def _pieces(self) -> int:
        """How many parts of the inputs a product takes one after the other.

        A large matrix is never whole in full precision. On several devices it is left to the
        compiler, which cuts it by its sharding.
        """
        mesh = logical.current()
        if not self.blocked or (mesh is not None and mesh[0].size > 1):
            return 1
        blocks, size = self.matrix[0] // self.blocksize, math.prod(self.matrix)
        fits = (n for n in range(1, blocks + 1) if blocks % n == 0 and size <= n * PIECE)
        return next(fits, blocks)

    def _cut(self, pieces: int) -> tuple[jax.Array, jax.Array]:
        """Codes and scales with a leading axis of pieces."""
        return tuple(x.reshape(pieces, -1, *x.shape[1:]) for x in (self.codes, self.scales()))

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
