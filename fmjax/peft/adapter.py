"""Adapters as pytrees: described, counted and created where their base lives."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from fmjax.core import logical, tree
from fmjax.core.adapter import TRAINABLE
from fmjax.core.errors import ConfigError
from fmjax.core.params import ParamSpec
from fmjax.parallel import DEFAULT_RULES, param_shardings
from fmjax.peft import saved
from fmjax.peft.base import Base, Weight
from fmjax.peft.methods import Spec, method_of
from fmjax.quant import Packed


def init(
    rng: jax.Array,
    spec: Spec,
    model: nn.Module,
    params: tree.Tree | None = None,
    *,
    mesh: jax.sharding.Mesh | None = None,
    rules: logical.Rules | None = None,
    dtype: Any = "float32",
) -> dict[str, Any]:
    """A fresh adapter for `model`; with it the model still computes what it did.

    Args:
      rng: a key, `jax.random.key(seed)`.
      spec: what to add where, for example `LoRA(rank=8)`.
      model: from `fmjax.build` or `from_pretrained`.
      params: of the base. What `spec` trains whole starts as it is in it, and DoRA from its norms.
        Plain LoRA reads no value of it: only, without `mesh`, how its kernels are sharded, so that
        the adapter is laid out like them.
      mesh: lays the adapter out by `rules`.
      rules: logical axes → mesh axes; default `fmjax.parallel.DEFAULT_RULES`.
      dtype: of the trained leaves, drawn in float32 and then rounded. Constants stay float32.

    Returns:
      The "adapter" collection: nested dicts that mirror the module paths that it touches.

    Raises:
      ConfigError: a spec that matches no layer, or has a part that matches none; one that trains
        modules whole, or DoRA, without `params` that hold them; a `dtype` that is no float.
      ShardingError: an adapter that does not divide over the mesh.
    """
    base = Base.of(model)
    method = method_of(spec)
    method.check(spec, base)
    saved.check(spec, base)

    described = _typed(abstract_on(spec, base), dtype)

    def make(rng: jax.Array, params: Any) -> dict[str, Any]:
        copies = tree.unflatten(saved.init(spec, base, params))
        made = tree.combine(method.init(rng, spec, base, params), copies)
        return tree.map_with_path(lambda _, x, d: jnp.asarray(x, d.dtype), made, described)

    where = shardings(described, base, params, mesh, rules)
    # An argument that is not read is dropped from the program: LoRA's holds no base weight.
    return jax.jit(make, out_shardings=where)(rng, params)


def abstract(spec: Spec, model: nn.Module, dtype: Any = "float32") -> dict[str, Any]:
    """The adapter as nested dicts of `ParamSpec`: shapes, dtypes and logical axes.

    Raises:
      ConfigError: as `init`.
    """
    return _typed(abstract_on(spec, Base.of(model)), dtype)


def _typed(specs: tree.Tree, dtype: Any) -> dict[str, Any]:
    """With the trained leaves in `dtype`."""
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = None
    if found is None or not jnp.issubdtype(found, jnp.floating):
        raise ConfigError(f"adapter dtype {dtype!r} is no float; give 'float32' or 'bfloat16'")
    trained = tree.match_rules(TRAINABLE, specs)
    return tree.map_with_path(
        lambda _, spec, own: dataclasses.replace(spec, dtype=found) if own else spec, specs, trained
    )


def count(spec: Spec, model: nn.Module) -> int:
    """Number of parameters that training this adapter changes; nothing is allocated."""
    base = Base.of(model)
    return method_of(spec).count(spec, base) + saved.count(spec, base)


def abstract_on(spec: Spec, base: Base) -> dict[str, Any]:
    """As `abstract`, of a model that is surveyed already."""
    copies = tree.unflatten(saved.abstract(spec, base))
    return tree.combine(method_of(spec).abstract(spec, base), copies)


def shardings(
    specs: tree.Tree,
    base: Base,
    params: tree.Tree | None,
    mesh: jax.sharding.Mesh | None,
    rules: logical.Rules | None,
) -> dict[str, Any] | None:
    """By the rules on a mesh, or else after the shardings of `params`, or else None."""
    if mesh is not None:
        return param_shardings(specs, mesh, rules or DEFAULT_RULES)
    flat = tree.flatten(params or {})
    matrices = {w.path: w for w in base.adaptable}
    own = {w.target.path: w for w in base.params}
    placed = [getattr(x, "sharding", None) for x in flat.values()]
    meshes = {sharding.mesh for sharding in placed if isinstance(sharding, NamedSharding)}
    if len(meshes) != 1:
        return None
    everywhere = NamedSharding(*meshes, PartitionSpec())

    def of(path: str, spec: ParamSpec) -> NamedSharding | None:
        # A copy lies like its original, a factor like the matrix of its module; what is neither is
        # small and whole on every device.
        weight = own.get(path) or matrices.get(path.rpartition("/")[0])
        if weight is None:
            return everywhere
        leaf = flat.get(weight.target.path)
        sharding = getattr(leaf, "sharding", None)
        if sharding is None and isinstance(leaf, Packed):
            return everywhere  # as its blocks are, which run over the ends of rows
        if not isinstance(sharding, NamedSharding):
            return None
        return _like(weight, sharding, spec.axes)

    found = tree.map_with_path(of, specs)
    return found if all(tree.flatten(found).values()) else None


def _like(weight: Weight, sharding: NamedSharding, axes: logical.Axes) -> NamedSharding:
    """Of a leaf whose axes are some of the weight's; others ("lora") are not split."""
    entries = (*sharding.spec, *(None,) * (len(weight.spec.axes) - len(sharding.spec)))
    # The first dimension of a name has its mesh axes, and has them once: as `logical.spec` does.
    free = list(zip(weight.spec.axes, entries, strict=True))
    chosen = []
    for axis in axes:
        i = next((i for i, (name, _) in enumerate(free) if name == axis), None)
        chosen.append(None if i is None else free.pop(i)[1])
    return NamedSharding(sharding.mesh, PartitionSpec(*chosen))
