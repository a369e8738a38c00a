"""Meshes, rule lists and placement: sharding is data."""

from fmjax.parallel.distributed import Group, start
from fmjax.parallel.mesh import AXES, make_mesh
from fmjax.parallel.placement import batch_sharding, param_shardings, shard_batch
from fmjax.parallel.rules import DEFAULT_RULES, REPLICATED_RULES

__all__ = [
    "AXES",
    "DEFAULT_RULES",
    "Group",
    "REPLICATED_RULES",
    "batch_sharding",
    "make_mesh",
    "param_shardings",
    "shard_batch",
    "start",
]
