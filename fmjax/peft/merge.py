"""Folding an adapter into its base for export, and taking it out again."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fmjax.core import tree
from fmjax.core.adapter import ENCODER, PRESENT
from fmjax.core.errors import ConfigError
from fmjax.peft import ia3_math, lora_math
from fmjax.peft.base import Base
from fmjax.quant import Packed

_LOW_RANK = ("lora_a", "lora_b", "lora_scale", "lora_dropout", "lora_bias", "magnitude")
_NEEDED = {"lora_a", "lora_b", "lora_scale"}
_VIRTUAL = {
    "prefix_key": "a prefix",
    "prefix_value": "a prefix",
    "prompt": "a prompt",
}

Leaves = dict[str, Any]


def merge(
    model: nn.Module,
    params: tree.Tree,
    adapter: tree.Tree,
    *,
    base: Literal["dequantized"] | None = None,
) -> dict[str, Any]:
    """The parameters that compute alone what base and adapter compute together.

    LoRA: W + s · A B in place of W. DoRA: m · (W + s · A B) / ‖W + s · A B‖. IA³: the rows or
    columns of W times their factors. Copies (biases, `modules_to_save`) take the place of the
    base's, and a bias of the factors is added to the layer's.

    Sums are taken in float32, one layer at a time, and cast back to W's dtype; layout and sharding
    stay. Parameters without an adapter are passed on, not copied, and `params` stays valid.
    Training with the adapter applied inside the layers takes far less memory; merging is for
    export.

    Args:
      model: whose parameters these are.
      params: of the base. For an adapter that was trained on packed weights these may be the
        original ones, of full precision, or the packed ones with `base`: the two results differ.
        An adapter has learned to make up for the rounding of the packed ones.
      adapter: from `init`, `load` or training.
      base: "dequantized" unpacks all packed weights, to the dtype that they stand for, and merges
        into that; it must be said.

    Raises:
      ConfigError: an adapter that does not fit `params`, that is no change of weights (a prefix, a
        prompt), or that sits on a tied embedding, where merging would change the output head as
        well; packed params without `base`, or `base` without packed params.
    """
    packed = [path for path, w in tree.flatten(params).items() if isinstance(w, Packed)]
    if base not in (None, "dequantized"):
        raise ConfigError(f"base={base!r} is unknown; it is 'dequantized' or left out")
    if packed and base is None:
        raise ConfigError(
            f"{packed[0]!r} is packed and an adapter changes it in full precision; pass "
            "base='dequantized' to merge into what these weights stand for, or the original params"
        )
    if base is not None and not packed:
        raise ConfigError(
            f"base={base!r} is for packed params, and none of these are; leave it out"
        )
    flat = {
        path: w.dequantize() if isinstance(w, Packed) else w
        for path, w in tree.flatten(params).items()
    }
    return _fold(model, flat, adapter, into=True)


def unmerge(model: nn.Module, params: tree.Tree, adapter: tree.Tree) -> dict[str, Any]:
    """Undoes `merge` up to the rounding of W's dtype. Arguments as there.

    Raises:
      ConfigError: as `merge`; and an adapter of which merging kept too little: with copies or
        magnitudes, or a factor of zero; packed params.
    """
    flat = tree.flatten(params)
    for path, w in flat.items():
        if isinstance(w, Packed):
            raise ConfigError(f"{path!r} is packed: nothing was merged into these params")
    return _fold(model, flat, adapter, into=False)


def _fold(model: nn.Module, flat: Leaves, adapter: tree.Tree, *, into: bool) -> dict[str, Any]:
    survey = Base.of(model)
    stacked = {w.target.path: w.stacked for w in survey.params}
    tied = {path: name for name, path in survey.tied.items()}
    tied |= {head.path: head.names[0] for head in survey.heads}
    for module, leaves in _modules(adapter):
        _check_kind(module, leaves)
        low = {k: leaves.pop(k) for k in _LOW_RANK if k in leaves}
        factors = {k: leaves.pop(k) for k in ia3_math.IA3_LEAVES if k in leaves}
        for name, copy in leaves.items():
            path = f"{module}/{name}"
            flat[path] = _copy(path, flat, copy, into)
        if (low or factors) and module in tied:
            raise ConfigError(
                f"the adapter on {module!r} cannot be merged: {tied[module]!r} shares the table "
                "and would change too; untie the model, or export base and adapter apart"
            )
        for path, own in _matrices(survey, module, flat, low) if low else ():
            _low_rank(module, path, flat, own, stacked.get(path, False), into)
        if factors:
            path = _weight(module, flat)
            _scale(module, path, flat, factors, stacked.get(path, False), into)
    return tree.unflatten(flat)


def _modules(adapter: tree.Tree) -> Iterator[tuple[str, Leaves]]:
    modules: dict[str, Leaves] = {}
    for path, leaf in tree.flatten(adapter).items():
        module, _, name = path.rpartition("/")
        modules.setdefault(module, {})[name] = leaf
    return iter(modules.items())


def _check_kind(module: str, leaves: Leaves) -> None:
    for name in leaves:
        if name in _VIRTUAL or module.partition("/")[0] == ENCODER:
            raise ConfigError(
                f"the adapter at {module!r} is {_VIRTUAL.get(name, 'a prefix or prompt')}, which "
                "is no change of weights and cannot be merged; export base and adapter apart"
            )
        if name == "rows" or name.endswith(PRESENT):
            raise ConfigError(
                f"the adapter at {module!r} is a bank of several; merge one of them: "
                "fmjax.peft.take(bank, number)"
            )
    if leaves.keys() & set(_LOW_RANK) and not _NEEDED <= leaves.keys():
        raise ConfigError(
            f"the adapter at {module!r} has {', '.join(sorted(leaves))} and cannot be merged; "
            f"a low-rank one has {', '.join(sorted(_NEEDED))}"
        )


def _weight(module: str, flat: Leaves) -> str:
    """Path of the matrix that a module's adapter changes."""
    for name in ("kernel", "embedding", "weight"):
        if f"{module}/{name}" in flat:
            return f"{module}/{name}"
    raise _unknown(module)


def _matrices(survey: Base, module: str, flat: Leaves, low: Leaves) -> list[tuple[str, Leaves]]:
    """(path of a matrix, low-rank leaves that change it) of a module's adapter."""
    fused = next((w for w in survey.fused if w.path == module and w.parts > 1), None)
    if fused is None:
        return [(_weight(module, flat), low)]
    # Parts of what is one matrix to PEFT have the same A and lie side by side in B.
    below, whole = module.rpartition("/")[0], fused.target.row.fused.hf
    return [
        (w.target.path, low | {"lora_b": low["lora_b"][..., w.target.row.fused.part, :]})
        for w in survey.params
        if (own := w.target.row.fused) and own.hf == whole and w.path.startswith(f"{below}/")
    ]


def _unknown(name: str) -> ConfigError:
    return ConfigError(
        f"the adapter touches {name!r}, which these params do not have; use the params of the "
        "model that it was made for (scan_layers and head included)"
    )


def _misfit(path: str, w: Any, leaves: Leaves) -> ConfigError:
    shapes = ", ".join(f"{name} {x.shape}" for name, x in leaves.items())
    return ConfigError(
        f"the adapter's {shapes} does not fit {path!r} {w.shape}; use the params of the model that "
        "it was made for"
    )


def _copy(path: str, flat: Leaves, copy: Any, into: bool) -> jax.Array:
    own = flat.get(path)
    if own is None:
        raise _unknown(path)
    if not into:
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


def _low_rank(
    module: str, path: str, flat: Leaves, leaves: Leaves, stacked: bool, into: bool
) -> None:
    """Puts a low-rank adapter into `flat`, or takes it out."""
    w, lead = flat[path], int(stacked)
    leaves = {k: x for k, x in leaves.items() if k != "lora_dropout"}
    if "magnitude" in leaves and not into:
        raise ConfigError(
            f"the adapter at {module!r} is DoRA's, and the norms that it divided by are not in the "
            "merged weights, so it cannot be taken out; keep the base's params"
        )
    outputs = leaves["lora_b"].shape[1 + lead :]
    for name in ("magnitude", "lora_bias"):
        if name in leaves and leaves[name].shape[lead:] != outputs:
            raise _misfit(path, w, {name: leaves[name]})
    fold = _folded(getattr(w, "sharding", None), stacked, into)
    try:
        shape = jax.eval_shape(fold, w, leaves).shape
    except (TypeError, ValueError, IndexError):  # factors that do not go with each other
        shape = None
    if shape != w.shape:
        raise _misfit(path, w, {k: leaves[k] for k in ("lora_a", "lora_b")})
    flat[path] = fold(w, leaves)
    if "lora_bias" in leaves:
        bias = flat.get(f"{module}/bias")
        if bias is None:
            raise ConfigError(
                f"the adapter's bias at {module!r} cannot be merged: the layer has none of its "
                "own; export base and adapter apart"
            )
        change = jax.vmap(lora_math.bias_change) if stacked else lora_math.bias_change
        total = bias.astype(jnp.float32) + (1 if into else -1) * change(leaves)
        flat[f"{module}/bias"] = total.astype(bias.dtype)


@functools.lru_cache
def _folded(sharding: Any, stacked: bool, into: bool) -> Any:
    def one(layer: tuple[jax.Array, Mapping[str, jax.Array]]) -> jax.Array:
        w, leaves = layer
        change = lora_math.merged if into else lora_math.unmerged
        return change(w, leaves).astype(w.dtype)

    def fold(w: jax.Array, leaves: Mapping[str, jax.Array]) -> jax.Array:
        # Layer by layer, so that no float32 copy of a whole stack exists.
        return jax.lax.map(one, (w, leaves)) if stacked else one((w, leaves))

    return jax.jit(fold, out_shardings=sharding)


def _scale(
    module: str, path: str, flat: Leaves, factors: Leaves, stacked: bool, into: bool
) -> None:
    """Puts IA³'s factors into `flat`, or takes them out."""
    w, bias, lead = flat[path], flat.get(f"{module}/bias"), int(stacked)
    for name, factor in factors.items():
        own = w.shape[: lead + 1] if name == "ia3_in" else (*w.shape[:lead], *w.shape[lead + 1 :])
        if factor.shape != own:
            raise _misfit(path, w, {name: factor})
        if not into:
            if not bool(jnp.all(factor)):
                raise ConfigError(
                    f"the adapter's {module}/{name} has a factor of zero, and what it multiplied "
                    "is gone; keep the base's params"
                )
            factors = factors | {name: 1 / factor.astype(jnp.float32)}
    w, bias = _scaled(getattr(w, "sharding", None), stacked)(w, factors, bias)
    flat[path] = w
    if bias is not None:
        flat[f"{module}/bias"] = bias


@functools.lru_cache
def _scaled(sharding: Any, stacked: bool) -> Any:
    def scale(w: jax.Array, factors: Leaves, bias: jax.Array | None) -> Any:
        return ia3_math.merged(w, factors, bias, stacked=stacked)

    return jax.jit(scale, out_shardings=(sharding, None))
