"""Adapters as pytrees: described, counted and created where their base lives."""

from typing import Any

import flax.linen as nn
import jax
from jax.sharding import NamedSharding, PartitionSpec

from fmjax.core import logical, tree
from fmjax.parallel import DEFAULT_RULES, param_shardings
from fmjax.peft.base import Base, Weight
from fmjax.peft.methods import Spec, method_of

# Which leaves of an adapter are trained, as ordered rules (regex on the path, trained or not).
TRAINABLE: tuple[tuple[str, bool], ...] = ((r"(^|/)(scale|dropout)$", False), (r".", True))


def init(
    rng: jax.Array,
    spec: Spec,
    model: nn.Module,
    params: tree.Tree | None = None,
    *,
    mesh: jax.sharding.Mesh | None = None,
    rules: logical.Rules | None = None,
) -> dict[str, Any]:
    """A fresh float32 adapter for `model`; with it the model still computes what it did.

    Args:
      rng: a key, `jax.random.key(seed)`.
      spec: what to add where, for example `LoRA(rank=8)`.
      model: from `fmjax.build` or `from_pretrained`.
      params: of the base. LoRA reads no value of it: only, without `mesh`, how its kernels are
        sharded, so that the adapter is laid out like them.
      mesh: lays the adapter out by `rules`.
      rules: logical axes → mesh axes; default `fmjax.parallel.DEFAULT_RULES`.

    Returns:
      The "adapter" collection: nested dicts that mirror the module paths that it touches.

    Raises:
      ConfigError: a spec that matches no layer, or has a part that matches none.
      ShardingError: an adapter that does not divide over the mesh.
    """
    base = Base.of(model)
    method = method_of(spec)
    method.check(spec, base)
    where = shardings(method.abstract(spec, base), base, params, mesh, rules)
    # An argument that is not read is dropped from the program: LoRA's holds no base weight.
    make = jax.jit(lambda key, params: method.init(key, spec, base, params), out_shardings=where)
    return make(rng, params)


def abstract(spec: Spec, model: nn.Module) -> dict[str, Any]:
    """The adapter as nested dicts of `ParamSpec`: shapes, dtypes and logical axes."""
    return method_of(spec).abstract(spec, Base.of(model))


def count(spec: Spec, model: nn.Module) -> int:
    """Number of parameters that training this adapter changes; nothing is allocated."""
    return method_of(spec).count(spec, Base.of(model))


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
    laid_out = {
        w.path: (w, flat[w.target.path].sharding)
        for w in base.weights
        if isinstance(getattr(flat.get(w.target.path), "sharding", None), NamedSharding)
    }
    modules = {path.rpartition("/")[0] for path in tree.flatten(specs)}
    if not modules <= laid_out.keys():
        return None
    return tree.map_with_path(
        lambda path, spec: _like(*laid_out[path.rpartition("/")[0]], spec.axes), specs
    )


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
