"""From abstract trees and rules to shardings."""

from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from fmjax.core import logical, tree
from fmjax.core.errors import ShardingError


def param_shardings(
    abstract: Mapping[str, Any], mesh: Mesh, rules: logical.Rules
) -> dict[str, Any]:
    """A NamedSharding for every `ParamSpec` of an abstract tree.

    Raises:
      ShardingError: an axis without a rule, or one that does not divide; names the parameter.
    """
    return tree.map_with_path(
        lambda path, spec: NamedSharding(
            mesh, logical.spec(spec.axes, rules, mesh, spec.shape, name=path)
        ),
        abstract,
    )


def batch_sharding(mesh: Mesh, rules: logical.Rules) -> NamedSharding:
    """Of a batch array: its leading dimension is split, the others are whole."""
    return NamedSharding(mesh, logical.spec(("batch",), rules, mesh))


def shard_batch(batch: Any, mesh: Mesh, rules: logical.Rules) -> Any:
    """Puts a batch of host arrays onto the mesh.

    Each process passes its own rows; together they are the global batch.

    Raises:
      ShardingError: a number of rows that does not divide over the devices.
    """
    sharding = batch_sharding(mesh, rules)
    parts = sharding.num_devices // _replicas(sharding)
    processes = jax.process_count()

    def put(x: Any) -> jax.Array:
        rows = x.shape[0] * processes
        if rows % parts:
            raise ShardingError(
                f"a batch of {rows} does not divide over the {parts} devices that split it; "
                f"use a multiple of {parts}"
            )
        return jax.make_array_from_process_local_data(sharding, x)

    return jax.tree.map(put, batch)


def _replicas(sharding: NamedSharding) -> int:
    shards = {str(s) for s in sharding.devices_indices_map((sharding.num_devices,)).values()}
    return sharding.num_devices // len(shards)
