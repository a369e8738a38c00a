"""From abstract trees and rules to shardings."""

import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from fmjax import quant
from fmjax.core import logical, tree
from fmjax.core.errors import DataError, ShardingError
from fmjax.parallel.rows import global_rows


def param_shardings(
    abstract: Mapping[str, Any], mesh: Mesh, rules: logical.Rules
) -> dict[str, Any]:
    """A NamedSharding for every `ParamSpec` of an abstract tree.

    A packed kernel, a node of `ParamSpec`s, gets a node of shardings: split as the kernel would be
    where that falls on the boundaries of its blocks, else whole on every device.

    Raises:
      ShardingError: an axis without a rule, or one that does not divide; names the parameter.
    """

    def place(path: str, leaf: Any) -> Any:
        if isinstance(leaf, quant.Packed):
            return quant.shardings(leaf, _kernel_axes(leaf), mesh, rules, path)
        return NamedSharding(mesh, logical.spec(leaf.axes, rules, mesh, leaf.shape, name=path))

    return tree.map_with_path(place, abstract)


def _kernel_axes(packed: quant.Packed) -> logical.Axes:
    """Logical axes of the kernel under a node of `ParamSpec`s; flat codes name only the layers'."""
    axes = packed.codes.axes
    whole = len(axes) == packed.ndim
    return axes if whole else (*axes[: len(packed.lead)], *(None,) * len(packed.matrix))


def batch_sharding(mesh: Mesh, rules: logical.Rules, sequence: bool = False) -> NamedSharding:
    """Of a batch array: its rows are split; of `sequence`s [B, T] the tokens too."""
    axes = ("batch", "seq") if sequence else ("batch",)
    return NamedSharding(mesh, logical.spec(axes, rules, mesh))


def shard_batch(
    batch: Mapping[str, Any], mesh: Mesh | None, rules: logical.Rules, parts: int = 1
) -> dict[str, Any]:
    """Puts a batch of host arrays (each process its own rows) onto the mesh.

    Arrays [B, T] as long as the batch's input_ids are split along T too, where the mesh does that.

    Args:
      batch: dict of arrays with the same leading dimension. `ShapeDtypeStruct`s of the global
        batch get the sharding.
      mesh: the devices; None leaves the arrays where they are.
      rules: say which mesh axes split the logical axes "batch" and "seq".
      parts: pieces that each device's rows must further divide into.

    Raises:
      DataError: no array, or arrays with different numbers of rows.
      ShardingError: rows that do not divide over the devices and parts, or tokens over the devices.
    """
    counts = {name: x.shape[0] for name, x in batch.items()}
    if len(set(counts.values())) != 1:
        raise DataError(f"the arrays of a batch must have one number of rows, got {counts}")
    axes = () if mesh is None else _axes(batch_sharding(mesh, rules))
    needed = parts * math.prod(mesh.shape[a] for a in axes)
    name, first = next(iter(batch.items()))
    global_ = mesh is None or isinstance(first, jax.Array | jax.ShapeDtypeStruct)
    rows = first.shape[0] * (1 if global_ else jax.process_count())
    if rows % needed:
        over = [f"{a}={mesh.shape[a]}" for a in axes] + [f"accumulate={parts}"] * (parts > 1)
        raise ShardingError(
            f"{name}: a batch of {rows} rows does not divide over {' × '.join(over)}; "
            f"use a multiple of {needed}"
        )
    if mesh is None:
        return dict(batch)
    sequences = _sequences(batch, mesh, rules)

    def put(name: str, x: Any) -> Any:
        sharding = batch_sharding(mesh, rules, name in sequences)
        if isinstance(x, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
        if isinstance(x, jax.Array):
            return jax.device_put(x, sharding)
        if name not in sequences or jax.process_count() == 1:
            return global_rows(x, sharding)
        # A process has whole rows, of which its devices may need a part.
        return jax.device_put(global_rows(x, batch_sharding(mesh, rules)), sharding)

    return {name: put(name, x) for name, x in batch.items()}


def _axes(sharding: NamedSharding) -> tuple[str, ...]:
    """The mesh axes of a sharding, in order."""
    return tuple(jax.tree.leaves(tuple(sharding.spec)))


def _sequences(batch: Mapping[str, Any], mesh: Mesh, rules: logical.Rules) -> set[str]:
    """Names of the arrays [B, T] whose tokens the mesh splits."""
    ruled = any(axis == "seq" for axis, _ in rules)
    axes = _axes(NamedSharding(mesh, logical.spec(("seq",), rules, mesh))) if ruled else ()
    if not axes:
        return set()
    lengths = {x.shape[1] for name, x in batch.items() if name.endswith("input_ids")}
    found = {name for name, x in batch.items() if x.ndim == 2 and x.shape[1] in lengths}
    n = math.prod(mesh.shape[a] for a in axes)
    for name in sorted(found):
        if batch[name].shape[1] % n:
            over = " × ".join(f"{a}={mesh.shape[a]}" for a in axes)
            raise ShardingError(
                f"{name}: rows of {batch[name].shape[1]} tokens do not divide over {over}; use a "
                f"multiple of {2 * n}, which also balances causal attention"
            )
    return found
