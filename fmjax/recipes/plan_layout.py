"""The mesh and the rules of a planned step."""

from typing import Any

import jax

from fmjax.core.errors import ShardingError
from fmjax.core.logical import Rules
from fmjax.models.config import ModelConfig
from fmjax.parallel import AXES, RULES, make_mesh, parse_rules
from fmjax.parallel.choose import choose
from fmjax.recipes.layout import needs_of
from fmjax.recipes.options import Hardware


def layout_of(
    case: Any, config: ModelConfig, devices: list[Any], memory: int
) -> tuple[jax.sharding.Mesh, Rules]:
    """What `--mesh` and `--rules` say; without both, what a run on these devices would choose.

    Args:
      case: see `fmjax.recipes.plan.Case`.
      config: of its model.
      devices: of its topology.
      memory: bytes of each.

    Raises:
      ShardingError: an axis, a list or sizes that cannot be used.
    """
    if case.mesh or case.rules or case.decode or len(devices) == 1:
        return mesh_of(case.mesh, devices), parse_rules(case.rules)
    rows = case.batch // max(case.optimization.accumulate, 1)
    needs = needs_of(Hardware(dtype="bfloat16"), config, case.adaptation, rows)
    chosen = choose(needs, devices, memory)
    return make_mesh(**chosen.sizes, devices=devices), RULES[chosen.rules]


def mesh_of(text: str, devices: list[Any]) -> jax.sharding.Mesh:
    """ "fsdp=8,tensor=2" → a mesh of the devices; "" lays all of them on `fsdp`.

    Raises:
      ShardingError: an unknown axis, a size that is no number, or sizes that do not divide.
    """
    sizes: dict[str, int] = {}
    for item in filter(None, text.split(",")):
        axis, _, size = (part.strip() for part in item.partition("="))
        if axis not in AXES:
            raise ShardingError(f"--mesh {text}: no axis {axis!r}; there are {', '.join(AXES)}")
        if not size.removeprefix("-").isdecimal():
            raise ShardingError(f"--mesh {text}: write axis=number, as in fsdp=8,tensor=2")
        sizes[axis] = int(size)
    if -1 not in sizes.values() and not {"data", "fsdp"} & set(sizes):
        sizes["fsdp"] = -1
    return make_mesh(**{"data": 1, **sizes}, devices=devices)
