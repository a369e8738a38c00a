"""The mesh and the rules of a planned step."""

from typing import Any

import jax

from fmjax.core.logical import Rules
from fmjax.models.config import ModelConfig
from fmjax.parallel import RULES, make_mesh, parse_rules
from fmjax.parallel.choose import choose
from fmjax.recipes.layout import named, needs_of
from fmjax.recipes.options import Hardware


def layout_of(
    case: Any, config: ModelConfig, devices: list[Any], memory: int
) -> tuple[jax.sharding.Mesh, Rules]:
    """What `--mesh` and `--rules` say, as a run reads them; without both, what it would choose.

    Rules alone, and decoding without a mesh, have all devices on `fsdp`.

    Args:
      case: see `fmjax.recipes.plan.Case`.
      config: of its model.
      devices: of its topology.
      memory: bytes of each.

    Raises:
      ShardingError: an axis, a list or sizes that cannot be used.
    """
    if case.mesh or len(devices) == 1:
        return named(case.mesh, case.rules, devices)
    if case.rules or case.decode:
        return make_mesh(fsdp=-1, devices=devices), parse_rules(case.rules)
    rows = case.batch // max(case.optimization.accumulate, 1)
    hardware = Hardware(dtype="bfloat16", offload=case.offload)
    needs = needs_of(hardware, config, case.adaptation, rows)
    chosen = choose(needs, devices, memory)
    return make_mesh(**chosen.sizes, devices=devices), RULES[chosen.rules]


def name_of(rules: Rules) -> str:
    """Of a ready list; "" for any other."""
    return next((name for name, ready in RULES.items() if ready == rules), "")
