"""Folding an adapter into its base for export, and taking it out again."""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fmjax.core import tree
from fmjax.core.errors import ConfigError
from fmjax.peft.base import Base

_NEEDED = {"lora_a", "lora_b", "lora_scale"}


def merge(model: nn.Module, params: tree.Tree, adapter: tree.Tree) -> dict[str, Any]:
    """W + s · A B for every adapted matrix, in place of W; the adapter's copies in place of theirs.

    The sum is taken in float32, one layer at a time, and cast back to W's dtype; layout and
    sharding stay. Parameters without an adapter are passed on, not copied, and `params` stays
    valid. Training with the adapter applied inside the layers takes far less memory; merging is
    for export.

    Args:
      model: whose parameters these are.
      params: of the base.
      adapter: from `init`, `load` or training.

    Raises:
      ConfigError: an adapter that does not fit `params`, or that sits on a tied embedding, where
        merging would change the output head as well.
    """
    return _fold(model, params, adapter, 1.0)


def unmerge(model: nn.Module, params: tree.Tree, adapter: tree.Tree) -> dict[str, Any]:
    """Undoes `merge` up to the rounding of W's dtype. Arguments as there.

    Raises:
      ConfigError: as `merge`; and an adapter with copies: what they replaced is gone.
    """
    return _fold(model, params, adapter, -1.0)


def _fold(model: nn.Module, params: tree.Tree, adapter: tree.Tree, sign: float) -> dict[str, Any]:
    flat = tree.flatten(params)
    tied = {path: name for name, path in Base.of(model).tied.items()}
    for module, leaves in _modules(adapter).items():
        if not leaves.keys() & {"lora_a", "lora_b"}:
            flat |= {
                f"{module}/{k}": _copy(f"{module}/{k}", flat, x, sign) for k, x in leaves.items()
            }
            continue
        if leaves.keys() - {"lora_dropout"} != _NEEDED:
            raise ConfigError(
                f"the adapter at {module!r} has {', '.join(sorted(leaves))} and cannot be merged; "
                f"a low-rank one has {', '.join(sorted(_NEEDED))}"
            )
        path = next((p for p in (f"{module}/kernel", f"{module}/embedding") if p in flat), None)
        if path is None:
            raise _unknown(module)
        if module in tied:
            raise ConfigError(
                f"the adapter on {module!r} cannot be merged: {tied[module]!r} shares the table "
                "and would change too; untie the model, or export base and adapter apart"
            )
        flat[path] = _sum(path, flat[path], leaves, sign)
    return tree.unflatten(flat)


def _unknown(name: str) -> ConfigError:
    return ConfigError(
        f"the adapter touches {name!r}, which these params do not have; use the params of the "
        "model that it was made for (scan_layers and head included)"
    )


def _copy(path: str, flat: Mapping[str, Any], copy: Any, sign: float) -> jax.Array:
    own = flat.get(path)
    if own is None:
        raise _unknown(path)
    if sign < 0:
        raise ConfigError(
            f"the adapter replaced {path!r} and cannot be taken out; keep the base's params"
        )
    if np.shape(own) != copy.shape:
        raise ConfigError(
            f"the adapter's {path!r} {copy.shape} does not fit {np.shape(own)}; use the params of "
            "the model that it was made for"
        )
    # Not the adapter's own buffer, which a training step may consume.
    return jax.device_put(jnp.array(copy, own.dtype), getattr(own, "sharding", None))


def _modules(adapter: tree.Tree) -> dict[str, dict[str, Any]]:
    modules: dict[str, dict[str, Any]] = {}
    for path, leaf in tree.flatten(adapter).items():
        module, _, name = path.rpartition("/")
        modules.setdefault(module, {})[name] = leaf
    return modules


def _sum(path: str, w: Any, leaves: Mapping[str, Any], sign: float) -> jax.Array:
    if not isinstance(w, jax.Array | np.ndarray):
        raise ConfigError(
            f"{path!r} is packed ({type(w).__name__}) and cannot take a sum; dequantise it first"
        )
    a, b, scale = leaves["lora_a"], leaves["lora_b"], leaves["lora_scale"]
    stack = np.ndim(scale)  # 1 if there is a leading layers axis, else 0
    if (*a.shape[:-1], *b.shape[stack + 1 :]) != w.shape or a.shape[-1] != b.shape[stack]:
        raise ConfigError(
            f"the adapter at {path!r} with A {a.shape} and B {b.shape} does not fit {w.shape}; "
            "use the params of the model that it was made for"
        )
    return _adder(getattr(w, "sharding", None))(w, a, b, scale, sign)


@functools.lru_cache
def _adder(sharding: Any) -> Any:
    def add(w: jax.Array, a: jax.Array, b: jax.Array, scale: jax.Array, sign: float) -> jax.Array:
        def one(layer: tuple[jax.Array, ...]) -> jax.Array:
            w, a, b, scale = layer
            # TPUs would multiply in bfloat16 by default, which is no float32 sum.
            delta = jnp.tensordot(
                a.astype(jnp.float32), b.astype(jnp.float32), 1, precision=jax.lax.Precision.HIGHEST
            )
            return (w.astype(jnp.float32) + sign * scale * delta).astype(w.dtype)

        # Layer by layer, so that no float32 copy of a whole stack exists.
        return jax.lax.map(one, (w, a, b, scale)) if scale.ndim else one((w, a, b, scale))

    return jax.jit(add, out_shardings=sharding)
