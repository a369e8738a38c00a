"""Where prefixes plug into attention: keys and values of tokens that never were (arXiv:2101.00190).

An attention module with an adapter has P virtual tokens before the first real one: `prefix_key`
and `prefix_value` [P, G, K], the same for every row. They are not rotated. Real tokens stand at
positions from P on, which the entry of the model sees to.

Shapes: B batch, P virtual tokens, H query heads, G key–value heads, T tokens, K head size.
"""

import functools
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.core.adapter import COLLECTION
from fmjax.core.errors import ConfigError
from fmjax.nn import virtual_tokens

KEY, VALUE = "prefix_key", "prefix_value"


class Site(NamedTuple):
    """Heads of an attention module: H of queries, G of keys and values, and their size K."""

    heads: int
    kv_heads: int
    head_dim: int


_record: ContextVar[dict[str, Site] | None] = ContextVar("sites", default=None)


def length(adapter: Mapping[str, Any]) -> int:
    """P of an adapter, stacked or not; 0 without a prefix."""
    return virtual_tokens.count(adapter, KEY, -3)


def offset(model: nn.Module, tokens: int, position_ids: jax.Array | None) -> int:
    """P of the adapter on `model`: how far its real tokens are moved.

    Raises:
      ConfigError: prefix and tokens together exceed a table of positions.
    """
    return virtual_tokens.checked(model, "a prefix", KEY, -3, tokens, position_ids)


def read(
    module: nn.Module, virtual: int, k_BGTK: jax.Array, heads: int
) -> tuple[jax.Array, jax.Array] | None:
    """Key and value of the module's prefix, two [G', P, K] in the dtype of k, or None.

    G' is G, or H for a reference that repeats its keys before it caches them: then the prefix
    has a key for every query head.

    Args:
      module: the attention module.
      virtual: P, as the entry of the model found it.
      k_BGTK: the keys that the prefix comes before.
      heads: H.

    Raises:
      ConfigError: a prefix of another length or for other heads.
    """
    names = [name for name in (KEY, VALUE) if module.has_variable(COLLECTION, name)]
    if not names and not virtual:
        return None
    _, G, _, K = k_BGTK.shape
    found = [module.get_variable(COLLECTION, name) for name in names]
    fits = ((virtual, G, K), (virtual, heads, K))
    if len({x.shape for x in found}) != 1 or len(found) != 2 or found[0].shape not in fits:
        shapes = " and ".join(str(x.shape) for x in found) or "none"
        raise ConfigError(
            f"the prefix at {'/'.join(module.path)!r} is {shapes} where a key and a value of "
            f"{fits[0]} are needed; use the model that it was made for"
        )
    key, value = (jnp.swapaxes(x, 0, 1).astype(k_BGTK.dtype) for x in found)
    return key, value


def join(prefix_GPK: jax.Array, x_BGTK: jax.Array) -> jax.Array:
    """[B, G, P + T, K]: the prefix before the keys (or values) of every row."""
    B, G, _, K = x_BGTK.shape
    prefix = jnp.broadcast_to(prefix_GPK, (B, G, prefix_GPK.shape[1], K))
    return jnp.concatenate([prefix, x_BGTK], axis=2)


def note(module: nn.Module, site: Site) -> None:
    """Every attention module says where it is and what heads it has; see `sites`."""
    record = _record.get()
    if record is not None:
        record["/".join(module.path)] = site


@functools.lru_cache
def sites(model: nn.Module) -> dict[str, Site]:
    """{path: heads} of the attention modules, first layer first; a stack of them is one module."""
    record: dict[str, Site] = {}
    token = _record.set(record)
    try:
        jax.eval_shape(lambda: model.init(jax.random.key(0), **model.dummy_inputs()))
    finally:
        _record.reset(token)
    return record
