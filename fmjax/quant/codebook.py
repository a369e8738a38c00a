"""The tables that codes stand for: NF4's 16 values, and the 256 of bitsandbytes' dynamic map."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

# Quantiles of the normal distribution, arXiv:2305.14314 (appendix E).
NF4 = np.array(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    np.float32,
)
NF4_BOUNDS = (NF4[:-1] + NF4[1:]) / np.float32(2)
"""A value on a bound takes the lower code."""


def _dynamic() -> np.ndarray:
    # Seven decades; the i-th from the smallest is cut into 2^i equal parts, and each part is
    # represented by its middle (arXiv:1511.04561). Rounded to float32 where the reference rounds:
    # its edges are fused multiply-adds, counted from the nearer end.
    positive, tenth = [], np.float32(0.1)
    for i in range(7):
        parts = 2**i
        step, k = np.float64((1 - tenth) / np.float32(parts)), np.arange(parts + 1)
        edges = np.where(k <= parts // 2, np.float64(tenth) + step * k, 1 - step * (parts - k))
        edges = edges.astype(np.float32)
        positive.append(np.float32(10.0 ** (i - 6)) * ((edges[:-1] + edges[1:]) / np.float32(2)))
    positive = np.sort(np.concatenate(positive))
    return np.concatenate([-positive[::-1], [0], positive, [1]]).astype(np.float32)


DYNAMIC = _dynamic()
"""f32 [256], ascending: 127 negative values, 0, their opposites, 1."""
ZERO = 127


@functools.cache
def dynamic_bins() -> np.ndarray:
    """uint8 [65536]: the code of each of as many steps from −1 to 1, as the reference tabulates.

    bitsandbytes' CPU kernel does not search the map: it rounds a value to one of these steps.
    """
    bounds = np.float32(0.5) * (DYNAMIC[:-1] + DYNAMIC[1:])
    steps = np.float32(-1) + (np.float32(2) * np.arange(65536, dtype=np.float32)) / np.float32(
        65535
    )
    return np.searchsorted(bounds, steps, side="left").astype(np.uint8)


def encode_dynamic(x: jax.Array) -> jax.Array:
    """f32 in [−1, 1] → uint8 codes of `DYNAMIC`."""
    t = (jnp.clip(x, -1, 1) + 1) * 0.5
    # The kernel computes fma(t, 65535, ½). Both terms here are exact, so that one addition rounds
    # as the fused operation does.
    step = t * 65536 + (0.5 - t)
    return jnp.take(jnp.asarray(dynamic_bins()), step.astype(jnp.int32), mode="clip")


def encode_nf4(x: jax.Array) -> jax.Array:
    """f32 in [−1, 1] → uint8 codes of `NF4`."""
    return sum((x > bound).astype(jnp.uint8) for bound in NF4_BOUNDS)


def decode_nf4(codes: jax.Array) -> jax.Array:
    """Codes, of any unsigned dtype → f32."""
    return _by_platform(lambda c: select(c, NF4), lambda c: _take(c, NF4), codes)


def decode_dynamic(codes: jax.Array) -> jax.Array:
    """uint8 codes → f32."""

    def selected(codes: jax.Array) -> jax.Array:
        # The map is odd but for the 1 at its end: half the tree does.
        place = codes.astype(jnp.int32) - ZERO
        size = select(jnp.abs(place), DYNAMIC[ZERO:255])
        return jnp.where(place == 128, 1.0, jnp.where(place < 0, -size, size))

    return _by_platform(selected, lambda c: _take(c, DYNAMIC), codes)


def _by_platform(tpu, default, codes: jax.Array) -> jax.Array:
    # A gather from a small table is slow on TPU, where selects run on whole registers.
    return jax.lax.platform_dependent(codes, tpu=tpu, default=default)


def _take(codes: jax.Array, table: np.ndarray) -> jax.Array:
    return jnp.asarray(table).at[codes.astype(jnp.int32)].get(mode="promise_in_bounds")


def select(codes: jax.Array, table: np.ndarray) -> jax.Array:
    """table[codes] as a binary tree of selects; the table's size is a power of two."""
    codes = codes.astype(jnp.int32)
    values = [jnp.float32(v) for v in table]
    for bit in range(int(math.log2(len(table)))):
        odd = (codes >> bit) & 1 != 0
        values = [jnp.where(odd, b, a) for a, b in zip(values[::2], values[1::2], strict=True)]
    return values[0]
