"""A short name for the values of a base model, to tell which one an adapter was made for."""

import functools
import hashlib
from collections.abc import Container, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmjax.convert import targets
from fmjax.core import tree
from fmjax.core.checksum import checksum
from fmjax.peft.base import Base
from fmjax.quant import Packed


def fingerprint(base: Base, params: Mapping[str, Any], replaced: Container[str] = ()) -> str:
    """A digest (32 hex digits) of all weights but those at `replaced` paths, rounded to bfloat16.

    The same for float32 and bfloat16 copies of a checkpoint, for stacked and unstacked layers and
    for every sharding: integer sums do not depend on the order in which they are taken. It tells
    models apart that differ by mistake; it is no protection against forgery.

    Packed kernels count with the values that they stand for, unpacked one layer at a time. Those
    are other values than the ones that were packed, so a base in 4 or 8 bits has another
    fingerprint than its source; dequantised to bfloat16 it keeps its own.

    Raises:
      CheckpointError: params that do not belong to the model.
    """
    flat = tree.flatten(params)
    sums: dict[str, int] = {}
    for target in targets(base.rows, flat):
        if not target.row.copy and target.path not in replaced:
            found = np.asarray(_sums(flat[target.path], len(target.lead)))
            sums |= dict(zip(target.keys, found.tolist(), strict=True))
    text = "".join(f"{name} {value:08x}\n" for name, value in sorted(sums.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _sum(x: jax.Array | Packed) -> jax.Array:
    return checksum((x.dequantize() if isinstance(x, Packed) else x).astype(jnp.bfloat16))


@functools.partial(jax.jit, static_argnums=1)
def _sums(x: jax.Array | Packed, lead: int) -> jax.Array:
    """One sum for each index of the leading axes."""
    if isinstance(x, Packed):
        return jax.lax.map(_sum, x) if lead else _sum(x)[None]
    return jax.vmap(_sum)(x.reshape(-1, *x.shape[lead:]))
