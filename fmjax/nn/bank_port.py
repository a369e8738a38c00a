"""Where a bank of adapters plugs in: each row of a batch has an adapter of its own, or none.

A module's leaves have a leading axis of N adapters then, and `rows` i32 [B] says which of them a
row of the batch uses; 0 means none. The rows' leaves are gathered where they are used, so that
one layer's are in memory at a time; the base's parameters are never copied.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.core.adapter import COLLECTION, PRESENT
from fmjax.core.errors import ConfigError
from fmjax.nn.dropout import dropout
from fmjax.nn.low_rank import dora_factor

Leaves = Mapping[str, jax.Array]
NAMES = ("rows", f"lora_bias{PRESENT}", f"magnitude{PRESENT}")
"""What a bank has beside the leaves of a single low-rank adapter."""


def gather(leaf: jax.Array, rows: jax.Array, between: int = 0) -> jax.Array:
    """Each row's own part of a leaf: [N, *shape] → [B, 1 × between, *shape].

    A row number that is out of range gives NaN, never another's adapter.
    """
    rows = jnp.where(rows < 0, len(leaf), rows)  # or they would count from the end
    own = jnp.take(leaf, rows, axis=0, mode="fill")
    return own.reshape(rows.size, *(1,) * between, *leaf.shape[1:])


def elementwise(
    leaves: Leaves, name: str, neutral: jax.Array | float, between: int = 0
) -> jax.Array:
    """As `gather`, with `neutral` for the rows whose adapter has no such leaf.

    Gradients reach only the adapters that have it.
    """
    leaf, rows = leaves[name], leaves["rows"]
    present = gather(leaves[name + PRESENT], rows, between + leaf.ndim - 1)
    return jnp.where(present, gather(leaf, rows, between), neutral)


def of(module: nn.Module, name: str) -> Leaves | None:
    """What `elementwise` needs of a module's bank; None where its adapter is a single one."""
    if not module.has_variable(COLLECTION, "rows"):
        return None
    return {n: module.get_variable(COLLECTION, n) for n in ("rows", name, name + PRESENT)}


def copy(
    module: nn.Module, name: str, leaves: Leaves, original: Any, between: int | None
) -> jax.Array:
    """Each row's own copy of a parameter, the original where it has none.

    Args:
      module: that owns the parameter.
      name: of the parameter.
      leaves: `of` them.
      original: the base's, [*shape].
      between: axes that the module's input has between its batch and those of the parameter.

    Returns:
      [B, 1 × between, *shape].

    Raises:
      ConfigError: `between` is None, as the module cannot take a parameter that differs by row;
        copies of another shape.
    """
    path = "/".join((*module.path, name))
    if between is None:
        raise ConfigError(
            f"a bank cannot hold copies of {path!r}, which is the same for all rows; "
            "use that adapter by itself, or merge it"
        )
    if leaves[name].shape[1:] != original.shape:
        raise ConfigError(
            f"the bank's {path!r} has shape {leaves[name].shape[1:]} where the model has "
            f"{original.shape}; use the model that it was made for"
        )
    return elementwise(leaves, name, original, between)


def low_rank(
    module: nn.Module,
    x: jax.Array,
    kernel: Any,
    product: Callable[[jax.Array], jax.Array],
    own: Leaves,
) -> jax.Array:
    """`fmjax.nn.ports.low_rank` with the factors of each row's adapter.

    Args:
      module: the linear layer, whose "dropout" key is used.
      x: its input [B, …, in].
      kernel: W [in, *out], or [B, in, *out] where rows have copies of it.
      product: x → x W [B, …, *out].
      own: lora_a [N, in, r], lora_b [N, r, *out], lora_scale [N], rows [B], and optionally
        lora_dropout [N], and lora_bias and magnitude [N, *out] with what of them is present.
    """
    _check_batch(module, x, own["rows"])
    between, rows = x.ndim - 2, own["rows"]
    y = product(x)
    a, b, scale = (gather(own[name], rows) for name in ("lora_a", "lora_b", "lora_scale"))
    scales = scale.reshape(-1, *(1,) * (x.ndim - 1))
    rate = gather(own["lora_dropout"], rows, x.ndim - 1) if "lora_dropout" in own else 0
    dropped = dropout(module, x, rate)
    low = jax.vmap(_matmul)(dropped.astype(y.dtype), a.astype(y.dtype)) * scales.astype(y.dtype)
    change = jax.vmap(_matmul)(low, b.astype(y.dtype))
    if "lora_bias" in own:
        bias = elementwise(own, "lora_bias", 0.0, between)
        change = change + (scale.reshape(-1, *(1,) * (bias.ndim - 1)) * bias).astype(y.dtype)
    if "magnitude" not in own:
        return y + change
    factor = _dora_factor(kernel, a, b, scale, own)
    factor = factor.reshape(rows.size, *(1,) * between, *factor.shape[1:])
    if dropped is x:
        return _times(factor, y + change)
    base = product(dropped)
    return y + (_times(factor, base + change) - base)


def low_rank_embedding(
    module: nn.Module, ids: jax.Array, y: jax.Array, table: jax.Array, own: Leaves
) -> jax.Array:
    """`fmjax.nn.ports.low_rank_embedding` with the factors of each row's adapter.

    Args:
      module: the embedding, for messages.
      ids: i32 [B, …].
      y: their rows of the table [B, …, D].
      table: [V, D].
      own: lora_a [N, V, r], lora_b [N, r, D], and the others as for `low_rank`.
    """
    rows = own["rows"]
    _check_batch(module, ids, rows)
    at = rows.reshape(-1, *(1,) * (ids.ndim - 1))
    # Of the tables only the rows that are read.
    a = own["lora_a"][at, ids]
    a = jnp.where(((at < 0) | (at >= len(own["lora_a"])))[..., None], jnp.nan, a)
    b, scale = gather(own["lora_b"], rows), gather(own["lora_scale"], rows)
    low = a.astype(y.dtype) * scale.reshape(-1, *(1,) * ids.ndim).astype(y.dtype)
    y = y + jax.vmap(_matmul)(low, b.astype(y.dtype))
    if "magnitude" not in own:
        return y
    factor = _dora_factor(table, gather(own["lora_a"], rows), b, scale, own)
    return _times(factor.reshape(rows.size, *(1,) * (ids.ndim - 1), -1), y)


def _dora_factor(
    kernel: Any, a: jax.Array, b: jax.Array, scale: jax.Array, own: Leaves
) -> jax.Array:
    """DoRA's factor for each row, f32 [B, *out]; 1 for those without."""
    rows = own["rows"]
    present = gather(own[f"magnitude{PRESENT}"], rows)
    magnitude = gather(own["magnitude"], rows)
    each = 0 if kernel.ndim == b.ndim else None
    norms = jax.vmap(dora_factor, (each, 0, 0, 0, 0))
    return norms(kernel, a, b, jnp.where(present, scale, 0), magnitude)


def _matmul(x: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.tensordot(x, w, 1)


def _times(factor: jax.Array, y: jax.Array) -> jax.Array:
    return (factor * y.astype(jnp.float32)).astype(y.dtype)


def _check_batch(module: nn.Module, x: jax.Array, rows: jax.Array) -> None:
    if len(x) != rows.size:
        raise ConfigError(
            f"a batch of {len(x)} rows meets a choice of {rows.size} adapters at "
            f"{'/'.join(module.path)!r}; give fmjax.peft.select one number for each row"
        )
