"""Where a vision transformer looks: attention probabilities, which kernels never hold.

They are computed from the queries and keys of one layer, seen as the model runs with its layers
one by one; families need offer nothing for it, and adapters count as ever.

Shapes: B batch, T tokens of which the last P = h · w are patches, D hidden size, H heads.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.core.errors import ConfigError
from fmjax.nn.ports import COLLECTION
from fmjax.nn.prefix_port import KEY as _PREFIX

_QUERY, _KEY = "q_proj", "k_proj"


def attention_maps(
    model: nn.Module,
    variables: Mapping[str, Any],
    pixel_values: jax.Array,
    *,
    layer: int = -1,
    query: int | None = 0,
    stack: str = "layers",
) -> jax.Array:
    """f32 [B, H, h, w]: how much of its attention each head gives to each patch.

    Args:
      model: a vision transformer whose layers project queries and keys by q_proj and k_proj.
      variables: its collections, layers stacked or not.
      pixel_values: f[B, height, width, C].
      layer: counted from 0, or from the last with −1.
      query: the token that looks; 0 is the class token where there is one. None: the mean of all.
      stack: name of the layers among the parameters.

    Returns:
      Probabilities; what goes to tokens before the patches is left out, so that sums may be below
      1. jit with the model and the names static.

    Raises:
      ConfigError: no such layer or query, or a model that is none of this kind.
    """
    seen: dict[int, dict[str, Any]] = {}

    def watch(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        out = call(*args, **kwargs)
        number, name = _number(context.module.path, stack), context.module.name
        if number is not None and name in (_QUERY, _KEY) and context.method_name == "__call__":
            seen.setdefault(number, {})[name] = out
            attention = context.module.parent
            if attention.has_variable(COLLECTION, _PREFIX):
                seen[number][_PREFIX] = attention.get_variable(COLLECTION, _PREFIX)
        return out

    if not hasattr(model, "execution"):
        raise ConfigError(
            f"attention maps: {type(model).__name__} is no vision transformer itself; give its "
            "backbone, with the parameters of that"
        )
    plain = dataclasses.replace(model.execution, scan_layers=False, remat="none")
    unstacked = {name: _unstacked(tree, stack) for name, tree in variables.items()}
    with nn.intercept_methods(watch):
        model.clone(execution=plain).apply(unstacked, pixel_values=pixel_values)
    whole = [n for n, found in seen.items() if {_QUERY, _KEY} <= found.keys()]
    if not whole:
        raise ConfigError(
            f"attention maps: {type(model).__name__} has no {stack} with {_QUERY} and {_KEY}; give "
            "a vision transformer"
        )
    chosen = layer + len(whole) if layer < 0 else layer
    if chosen not in whole:
        raise ConfigError(f"attention maps: there is no layer {layer} among {len(whole)}")
    config = getattr(model.config, "vision_config", model.config)
    q_BTHK, k_BTHK = (
        _heads(seen[chosen][name], config.num_attention_heads) for name in (_QUERY, _KEY)
    )
    if _PREFIX in seen[chosen]:
        prefix_PHK = seen[chosen][_PREFIX]
        prefix_BPHK = jnp.broadcast_to(prefix_PHK, (len(k_BTHK), *prefix_PHK.shape))
        k_BTHK = jnp.concatenate([prefix_BPHK.astype(k_BTHK.dtype), k_BTHK], 1)
    if query is not None:
        if not 0 <= query < q_BTHK.shape[1]:
            raise ConfigError(f"attention maps: no token {query} among {q_BTHK.shape[1]}")
        q_BTHK = q_BTHK[:, query : query + 1]
    probabilities_BHT = _probabilities(q_BTHK, k_BTHK)
    rows, columns = _grid(config, pixel_values.shape)
    patches_BHP = probabilities_BHT[..., -rows * columns :]
    return patches_BHP.reshape(*patches_BHP.shape[:2], rows, columns)


def _probabilities(q_BTHK: jax.Array, k_BTHK: jax.Array) -> jax.Array:
    """f32 [B, H, T] over the keys, the mean of the queries."""
    q_BTHK = q_BTHK.astype(jnp.float32) * q_BTHK.shape[-1] ** -0.5
    scores_BHTS = jnp.einsum(
        "bthk,bshk->bhts", q_BTHK, k_BTHK.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST
    )
    return jax.nn.softmax(scores_BHTS, -1).mean(-2)


def _heads(x: jax.Array, heads: int) -> jax.Array:
    return x.reshape(*x.shape[:2], heads, -1)


def _grid(config: Any, shape: tuple[int, ...]) -> tuple[int, int]:
    size = config.patch_size
    p, q = (size, size) if isinstance(size, int) else size
    return shape[1] // p, shape[2] // q


def _number(path: tuple[str, ...], stack: str) -> int | None:
    """The layer that a module is in."""
    for part in path:
        name, _, number = part.rpartition("_")
        if name == stack and number.isdecimal():
            return int(number)
    return None


def _unstacked(tree: Any, stack: str) -> Any:
    """The same collection with one subtree a layer, wherever the stack lies in it."""
    if not isinstance(tree, Mapping):
        return tree
    out: dict[str, Any] = {}
    for name, below in tree.items():
        if name != stack:
            out[name] = _unstacked(below, stack)
            continue
        for i in range(jax.tree.leaves(below)[0].shape[0]):
            out[f"{stack}_{i}"] = jax.tree.map(lambda a, i=i: a[i], below)
    return out
