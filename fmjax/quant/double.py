"""Double quantisation: the scales of NF4's blocks are themselves held in 8 bits.

Their mean is taken off and the rest quantised in blocks of 256 to a map of 256 values
(arXiv:2305.14314, section 3). Bit for bit as bitsandbytes computes it on a CPU.
"""

import jax
import jax.numpy as jnp

from fmjax.quant.codebook import ZERO, decode_dynamic, encode_dynamic

BLOCK = 256


def compress(scales: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """f32 [N] → (codes uint8 [N], absmax f32 [⌈N / 256⌉], offset f32 [])."""
    n = scales.size
    # Not a constant, or XLA multiplies with its reciprocal.
    offset = ordered_sum(scales) / jax.lax.optimization_barrier(jnp.float32(n))
    blocks = jnp.pad(scales - offset, (0, -n % BLOCK)).reshape(-1, BLOCK)
    absmax = jnp.max(jnp.abs(blocks), 1)
    inverse = 1 / jnp.where(absmax == 0, 1, absmax)
    codes = encode_dynamic(blocks * inverse[:, None])
    return jnp.where(absmax[:, None] == 0, 0, codes).reshape(-1)[:n], absmax, offset


def expand(codes: jax.Array, absmax: jax.Array, offset: jax.Array) -> jax.Array:
    """The inverse: codes uint8 [N] → f32 [N]."""
    sizes = jnp.repeat(absmax, BLOCK, total_repeat_length=absmax.size * BLOCK)[: codes.size]
    # A select between product and sum, which changes no value, keeps the compiler from fusing them
    # into one operation with one rounding.
    product = jnp.where(codes == ZERO, 0, decode_dynamic(codes) * sizes)
    return product + offset


def ordered_sum(x: jax.Array) -> jax.Array:
    """The sum of f32 [N] in the order in which torch adds on one thread of an x86 CPU.

    The order decides the last bit of the mean, and that bit some of the codes. Four vectors of
    eight lanes run side by side, each over a cascade of partial sums: 2^p in a row, 2^p of those
    sums, and so on.
    """
    n = x.size
    lanes = 8 if n >= 8 else 1
    vectors = x[: n // lanes * lanes].reshape(-1, lanes)
    rows = len(vectors) // 4
    radix = 1 << max(4, max(rows - 1, 0).bit_length() // 4)
    level, partial = vectors[: rows * 4].reshape(rows, 4, lanes), []
    for _ in range(3):
        whole = len(level) // radix * radix
        partial.append(_fold(level[whole:]))
        groups = level[:whole].reshape(-1, radix, 4, lanes)
        level = _fold(jnp.swapaxes(groups, 0, 1)) if whole else level[:0]
    partial.append(_fold(level))
    sums = _fold(jnp.stack(partial))
    first = _fold(jnp.concatenate([sums[:1], vectors[rows * 4 :]]))
    lane = _fold(jnp.concatenate([first[None], sums[1:]]))
    return _fold(jnp.concatenate([x[n // lanes * lanes :], lane]))


def _fold(x: jax.Array) -> jax.Array:
    """((x₀ + x₁) + x₂) + … over the leading axis; 0 of nothing."""
    zero = jnp.zeros(x.shape[1:], x.dtype)
    return jax.lax.scan(lambda total, row: (total + row, None), zero, x)[0]
