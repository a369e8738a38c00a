"""A short name for the contents of a tree of weights."""

import hashlib
from typing import Any

import jax

from fmjax.core.checksum import checksum


def fingerprint(arrays: Any) -> str:
    """16 hex digits that change when a path, shape, dtype or value of the tree changes.

    The same weights have the same fingerprint on every mesh.
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
    return [checksum(x) for x in leaves]
