"""An optimizer's moments in fewer bytes: bfloat16, or eight bits with a scale for each block.

Eight bits follow arXiv:2110.02861 and bitsandbytes: blocks of 256 values, each divided by its
largest magnitude and rounded to the nearest of 256 values of a dynamic map, whose seven decades
10⁻⁷ … 1 hold ever more, evenly spaced values the higher the decade. The maps are computed, not
looked up: their steps are elementwise, so that a compiler fuses them into the update, and no
accelerator has to gather millions of entries.
"""

import math
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp

BLOCK = 256
DECADES = 7


@flax.struct.dataclass
class Blockwise:
    """An array in eight bits.

    The codes lie in the array's own shape, so that they are sharded as it is. A block is a box of
    at most 256 neighbours in row-major order: as many of the last axes as fit, and a part of the
    one before; see `block_shape`. Where the sizes are powers of two or multiples of 256, these are
    the blocks of bitsandbytes, which cuts the flattened array; where they are not, blocks at the
    border are smaller, where bitsandbytes' would run on in the next row.

    Attributes:
      codes: u8, the array's shape.
      absmax: f32, [ceil(size / block size) for each axis].
      signed: whether values below zero have codes.
    """

    codes: jax.Array
    absmax: jax.Array
    signed: bool = flax.struct.field(pytree_node=False)


def block_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Size of a block along each axis: [80, 8192, 64] → (1, 4, 64); [4096, 11008] → (1, 256)."""
    left, sizes = BLOCK, []
    for size in reversed(shape):
        sizes.append(min(size, left))
        left = left // size if size <= left else 1
    return tuple(reversed(sizes))


def zeros(shape: Sequence[int], signed: bool) -> Blockwise:
    """A `Blockwise` that stands for zeros."""
    blocks = [math.ceil(size / b) for size, b in zip(shape, block_shape(shape), strict=True)]
    return Blockwise(jnp.zeros(shape, jnp.uint8), jnp.zeros(blocks, jnp.float32), signed)


def quantize(x: jax.Array, signed: bool) -> Blockwise:
    """f32 → eight bits; unsigned takes x ≥ 0."""
    boxes, inside = _boxes(x)
    absmax = jnp.max(jnp.abs(boxes), axis=inside, keepdims=True)
    boxes = _codes(boxes / jnp.where(absmax > 0, absmax, 1), signed).astype(jnp.uint8)
    return Blockwise(_whole(boxes, x.shape), jnp.squeeze(absmax, inside), signed)


def dequantize(x: Blockwise) -> jax.Array:
    """Eight bits → f32."""
    boxes, inside = _boxes(x.codes)
    values = _values(boxes.astype(jnp.float32), x.signed) * jnp.expand_dims(x.absmax, inside)
    return _whole(values, x.codes.shape)


def _boxes(x: jax.Array) -> tuple[jax.Array, tuple[int, ...]]:
    """[n₀, n₁, …] → [n₀/b₀, b₀, n₁/b₁, b₁, …], padded with zeros, and the axes of the b."""
    blocks = block_shape(x.shape)
    pad = [(0, -size % b) for size, b in zip(x.shape, blocks, strict=True)]
    x = jnp.pad(x, pad) if any(after for _, after in pad) else x
    shape = [n for size, b in zip(x.shape, blocks, strict=True) for n in (size // b, b)]
    return x.reshape(shape), tuple(range(1, len(shape), 2))


def _whole(boxes: jax.Array, shape: Sequence[int]) -> jax.Array:
    """The inverse of `_boxes`."""
    padded = [boxes.shape[i] * boxes.shape[i + 1] for i in range(0, boxes.ndim, 2)]
    return boxes.reshape(padded)[tuple(slice(size) for size in shape)]


# Both maps number the magnitudes upwards with a rank k: decade e holds the ranks from its `first`
# = 2^(e + low) up to twice that, evenly spaced; what is below the first decade is 0, above the last
# 1. The signed map has low = 0 and the codes 127 ± k; the unsigned one low = 1 and the codes k − 1.


def _values(codes: jax.Array, signed: bool) -> jax.Array:
    """Codes 0 … 255, as f32 → values in [−1, 1] or [0, 1], f32."""
    k, low = (jnp.abs(codes - 127), 0) if signed else (codes + 1, 1)
    first, size = _decade(k, [2.0 ** (e + low) for e in range(DECADES)], low)
    value = size * (0.1 + 0.9 * (k - first + 0.5) / first)
    value = jnp.where(k < 2**low, 0.0, jnp.where(k >= 2 ** (DECADES + low), 1.0, value))
    return jnp.where(codes < 127, -value, value) if signed else value


def _codes(x: jax.Array, signed: bool) -> jax.Array:
    """Values in [−1, 1] or [0, 1], f32 → the codes of the nearest values of the map, as f32."""
    y, low = (jnp.abs(x), 0) if signed else (x, 1)
    first, size = _decade(y, [10.0 ** (e - DECADES) for e in range(DECADES)], low)
    cell = jnp.floor((y / size - 0.1) / 0.9 * first)
    # Cells are wider by a factor of five in the next decade: what lies at the beginning of the
    # first is nearer to the last value of the decade before.
    k = first + jnp.clip(cell, 0, first - 1) - (y < size * (0.1 + 0.18 / first))
    smallest = 10.0 ** (1 - DECADES) * (0.1 + 0.45 / 2**low)
    k = jnp.where(y <= smallest / 2, 2**low - 1, jnp.where(k < 2**low, 2**low, k))
    k = jnp.where(y > _top(low), 2 ** (DECADES + low), k)
    return 127 + jnp.where(x < 0, -k, k) if signed else k - 1


def _top(low: int) -> float:
    """Halfway between the largest value of the last decade and 1."""
    return (0.1 + 0.9 * (1 - 0.5 / 2 ** (DECADES - 1 + low)) + 1) / 2


def _decade(x: jax.Array, starts: Sequence[float], low: int) -> tuple[jax.Array, jax.Array]:
    """(first rank, upper end) of the decade of each x, by the starts of the decades."""
    first = jnp.full(x.shape, 2.0**low, jnp.float32)
    size = jnp.full(x.shape, 10.0 ** (1 - DECADES), jnp.float32)
    for e in range(1, DECADES):
        inside = x >= starts[e]
        first = jnp.where(inside, 2.0 ** (e + low), first)
        size = jnp.where(inside, 10.0 ** (e + 1 - DECADES), size)
    return first, size


def stochastic_bfloat16(x: jax.Array, seed: jax.Array) -> jax.Array:
    """Rounds f32 to bfloat16, up with the probability that the expected value is x.

    To the nearest, 0.999 v would be v again (a bfloat16 has 8 bits) and a second moment could
    never fall. The randomness is a hash of the position and the seed, so that it fuses, and a
    resumed run rounds as the uninterrupted one.

    Args:
      x: f32, finite.
      seed: u32 [].
    """
    index = jnp.zeros(x.shape, jnp.uint32)
    for axis in range(x.ndim):
        index = index * jnp.uint32(x.shape[axis]) + jax.lax.broadcasted_iota(
            jnp.uint32, x.shape, axis
        )
    h = index ^ (seed * jnp.uint32(0x9E3779B9))
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):  # A 32-bit integer hash.
        h = (h ^ (h >> shift)) * jnp.uint32(factor)
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + (h >> 16)
    rounded = jax.lax.bitcast_convert_type(bits & jnp.uint32(0xFFFF0000), jnp.float32)
    return rounded.astype(jnp.bfloat16)
