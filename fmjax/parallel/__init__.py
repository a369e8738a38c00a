"""Meshes, rule lists and placement: sharding is data."""

from fmjax.parallel.describe import describe
from fmjax.parallel.distributed import start
from fmjax.parallel.group import Group
from fmjax.parallel.meet import meet
from fmjax.parallel.mesh import AXES, make_mesh
from fmjax.parallel.placement import batch_sharding, param_shardings, shard_batch
from fmjax.parallel.rules import (
    DEFAULT_RULES,
    REPLICATED_RULES,
    RULES,
    parse_rules,
    table,
    unused_axes,
)

__all__ = [
    "AXES",
    "DEFAULT_RULES",
    "Group",
    "REPLICATED_RULES",
    "RULES",
    "batch_sharding",
    "describe",
    "make_mesh",
    "meet",
    "param_shardings",
    "parse_rules",
    "shard_batch",
    "table",
    "unused_axes",
    "start",
]
