"""Where a bank of adapters plugs in: each row of a batch has an adapter of its own, or none.

A module's leaves have a leading axis of N adapters then, and `rows` i32 [B] says which of them a
row of the batch uses; 0 means none. The rows' leaves are gathered where they are used, so that
one layer's are in memory at a time; the base's parameters are never copied.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.core.adapter import COLLECTION, PRESENT
from fmjax.core.errors import ConfigError
from fmjax.nn.dropout import dropout


def rows(module: nn.Module) -> jax.Array | None:
    """i32 [B], the adapter of each row; None where the module's adapter is a single one."""
    if not module.has_variable(COLLECTION, "rows"):
        return None
    return module.get_variable(COLLECTION, "rows")


def gather(module: nn.Module, name: str, between: int = 0) -> jax.Array:
    """Each row's own leaf: [N, *shape] → [B, 1 × between, *shape].

    A row number that is out of range gives NaN, never another's adapter.
    """
    leaf, ids = module.get_variable(COLLECTION, name), rows(module)
    ids = jnp.where(ids < 0, len(leaf), ids)  # or they would count from the end
    own = jnp.take(leaf, ids, axis=0, mode="fill")
    return own.reshape(ids.size, *(1,) * between, *leaf.shape[1:])


def elementwise(
    module: nn.Module, name: str, neutral: jax.Array | float, between: int
) -> jax.Array:
    """Each row's own leaf, and `neutral` for rows whose adapter has none: [B, 1 × between, *shape].

    Gradients reach only the adapters that have the leaf.
    """
    present = gather(module, name + PRESENT, between)
    own = gather(module, name, between)
    return jnp.where(
        present.reshape(present.shape + (1,) * (own.ndim - present.ndim)), own, neutral
    )


def copy(module: nn.Module, name: str, original: jax.Array, between: int | None) -> jax.Array:
    """Each row's own copy of a parameter, the original where it has none.

    Args:
      module: that owns the parameter.
      name: of the parameter.
      original: the base's, [*shape].
      between: axes that the module's input has between its batch and those of the parameter.

    Returns:
      [B, 1 × between, *shape].

    Raises:
      ConfigError: `between` is None: the module cannot take a parameter that differs by row.
    """
    path = "/".join((*module.path, name))
    if between is None:
        raise ConfigError(
            f"a bank cannot hold copies of {path!r}, which is the same for all rows; "
            "use that adapter by itself, or merge it"
        )
    shape = module.get_variable(COLLECTION, name).shape[1:]
    if shape != original.shape:
        raise ConfigError(
            f"the bank's {path!r} has shape {shape} where the model has {original.shape}; use the "
            "model that it was made for"
        )
    return elementwise(module, name, original, between)


def low_rank(module: nn.Module, x: jax.Array, y: jax.Array) -> jax.Array:
    """y[i] + s[i] · (dropout(x[i]) A[i]) B[i], with the factors of row i's adapter.

    Args:
      module: a dense layer; its bank holds lora_a [N, in, r], lora_b [N, r, *out], lora_scale [N]
        and optionally lora_dropout [N] (rates).
      x: the layer's input [B, ..., in].
      y: the layer's output [B, ..., *out].
    """
    _check_batch(module, x)
    if module.has_variable(COLLECTION, "lora_dropout"):
        x = dropout(module, x, gather(module, "lora_dropout", x.ndim - 1))
    a, b = gather(module, "lora_a"), gather(module, "lora_b")
    scale = gather(module, "lora_scale", x.ndim - 1)
    low = jax.vmap(_matmul)(x.astype(y.dtype), a.astype(y.dtype)) * scale.astype(y.dtype)
    return y + jax.vmap(_matmul)(low, b.astype(y.dtype))


def low_rank_embedding(module: nn.Module, ids: jax.Array, y: jax.Array) -> jax.Array:
    """y[i] + s[i] · A[i][ids[i]] B[i]: A [N, V, r], B [N, r, D], ids i32 [B, ...]."""
    _check_batch(module, ids)
    leaf, own = module.get_variable(COLLECTION, "lora_a"), rows(module)
    # Of the tables only the rows that are read.
    own = own.reshape(own.shape + (1,) * (ids.ndim - 1))
    outside = (own < 0) | (own >= len(leaf))
    a = jnp.where(outside[..., None], jnp.nan, leaf[own, ids])
    scale = gather(module, "lora_scale", ids.ndim)
    low = a.astype(y.dtype) * scale.astype(y.dtype)
    return y + jax.vmap(_matmul)(low, gather(module, "lora_b").astype(y.dtype))


def _matmul(x: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.tensordot(x, w, 1)


def _check_batch(module: nn.Module, x: jax.Array) -> None:
    own = rows(module)
    if len(x) != own.size:
        raise ConfigError(
            f"a batch of {len(x)} rows meets a choice of {own.size} adapters at "
            f"{'/'.join(module.path)!r}; give fmjax.peft.select one number for each row"
        )
