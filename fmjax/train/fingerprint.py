"""A short name for the contents of a tree of weights."""

import hashlib
import math
from typing import Any

import jax
import jax.numpy as jnp


def fingerprint(arrays: Any) -> str:
    """16 hex digits that change when a path, shape, dtype or value of the tree changes.

    Computed on the devices in one pass, without a copy. Integer sums do not depend on their order,
    so the same weights have the same fingerprint on every mesh. Guards against mix-ups, not
    against an adversary.
    """
    leaves = jax.tree_util.tree_leaves_with_path(arrays)
    sums = jax.device_get(_checksums([leaf for _, leaf in leaves]))
    digest = hashlib.sha256()
    for (path, leaf), total in zip(leaves, sums, strict=True):
        name = jax.tree_util.keystr(path)
        digest.update(f"{name} {leaf.shape} {leaf.dtype} {int(total)}\n".encode())
    return digest.hexdigest()[:16]


@jax.jit
def _checksums(leaves: list[jax.Array]) -> list[jax.Array]:
    return [_checksum(x) for x in leaves]


def _checksum(x: jax.Array) -> jax.Array:
    """Σ bits · (odd number that depends on the position), modulo 2³²."""
    if x.dtype.itemsize == 8 and not jnp.issubdtype(x.dtype, jnp.complexfloating):
        x = jax.lax.bitcast_convert_type(x, jnp.uint32)
    elif jnp.issubdtype(x.dtype, jnp.floating):
        bits = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
        x = jax.lax.bitcast_convert_type(x, bits)
    x = x.astype(jnp.uint32)
    index = jnp.zeros((), jnp.uint32)
    for axis, size in enumerate(x.shape):
        iota = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        index = index * jnp.uint32(size % 2**32) + iota
    # Murmur3's finaliser: neighbours, rows and exchanged halves get unrelated factors.
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        index = (index ^ (index >> shift)) * jnp.uint32(factor)
    factor = (index ^ (index >> 16)) | 1
    return jnp.sum(x * factor, dtype=jnp.uint32) + jnp.uint32(math.prod(x.shape) % 2**32)
