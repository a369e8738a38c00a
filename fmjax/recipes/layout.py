"""What `--mesh` and `--rules` say, or what is chosen without them."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax

import fmjax
from fmjax.core import tree
from fmjax.core.errors import ShardingError
from fmjax.core.logical import Rules
from fmjax.models.config import ModelConfig
from fmjax.parallel import RULES, make_mesh, parse_rules, shard_batch, unused_axes
from fmjax.parallel.choose import Needs, choose, state_bytes
from fmjax.recipes.models import compute_dtype, parse_mesh
from fmjax.recipes.options import Adaptation, Hardware
from fmjax.train import offload

ADAPTER_SHARE = 0.02
"""Trained weights of an adapter as a share of the model's: on the safe side."""

MOMENT_BITS = {"float32": 32, "bfloat16": 16, "int8": 9}
FROZEN_BITS = {"nf4": 4.5, "int8": 8.5, "bfloat16": 16, "float16": 16, "float32": 32}


@dataclasses.dataclass(frozen=True)
class Layout:
    """Devices, and what lies where on them.

    Attributes:
      mesh: the devices by axis.
      rules: logical axes → mesh axes.
    """

    mesh: jax.sharding.Mesh
    rules: Rules


def lay_out(
    hardware: Hardware,
    config: ModelConfig,
    adaptation: Adaptation,
    batch_size: int,
    accumulate: int = 1,
) -> Layout:
    """The layout of a run; one that is chosen says so in a line on stdout.

    Args:
      hardware: its mesh and rules.
      config: of the model.
      adaptation: what is trained.
      batch_size: rows of the global batch.
      accumulate: parts that it is cut into.

    Raises:
      ShardingError: a mesh or rules that cannot be used, or rows that do not divide.
      ConfigError: state to offload, and devices without pinned host memory.
    """
    offload.check(hardware.offloaded, None)
    if hardware.mesh or jax.device_count() == 1:
        mesh, rules = named(hardware.mesh, hardware.rules)
    elif hardware.rules:
        raise ShardingError(
            f"--rules {hardware.rules} need a mesh that they lie on; add one such as --mesh fsdp=-1"
        )
    else:
        needs = needs_of(hardware, config, adaptation, batch_size // max(accumulate, 1))
        chosen = choose(needs, jax.devices())
        mesh, rules = make_mesh(**chosen.sizes), RULES[chosen.rules]
        if jax.process_index() == 0:
            print(chosen)
    row = jax.ShapeDtypeStruct((batch_size,), "int32")
    shard_batch({"--batch-size": row}, mesh, rules, max(accumulate, 1))
    return Layout(mesh, rules)


def named(
    mesh: str, rules: str, devices: Sequence[Any] | None = None
) -> tuple[jax.sharding.Mesh, Rules]:
    """What `--mesh` and `--rules` say.

    Args:
      mesh, rules: see `parse_mesh` and `parse_rules`.
      devices: default `jax.devices()`.

    Raises:
      ShardingError: an axis or a list that is none, sizes that do not divide, or devices that the
        rules leave without use.
    """
    found, pairs = parse_mesh(mesh, devices), parse_rules(rules)
    if idle := unused_axes(found, pairs):
        raise ShardingError(
            f"--rules {rules} leave {', '.join(idle)} of --mesh {mesh} without use, so that its "
            "devices would repeat each other; take that axis out, or rules that use it"
        )
    return found, pairs


def needs_of(hardware: Hardware, config: ModelConfig, adaptation: Adaptation, rows: int) -> Needs:
    """What the choice of a layout follows from; nothing is allocated."""
    specs = tree.flatten(fmjax.abstract_params(fmjax.build(config)))
    count = tree.count(specs)

    def size(axis: str) -> int:
        """The greatest common divisor of all dimensions of that name; 0 without one."""
        dims = [zip(spec.axes, spec.shape, strict=True) for spec in specs.values()]
        return math.gcd(*(n for dim in dims for name, n in dim if name == axis))

    moments = MOMENT_BITS[adaptation.moments] + (16 if adaptation.ema else 0)
    if hardware.offloaded:
        moments = 0
    if adaptation.method == "full":
        state = state_bytes(count, moments_bits=moments)
    else:
        kind = adaptation.precision
        kind = compute_dtype(hardware.dtype) if kind == "none" else kind
        trained = round(ADAPTER_SHARE * count)
        state = state_bytes(trained, count, FROZEN_BITS[kind], moments)
    return Needs(state, rows, size("embed"), _heads(config), size("mlp"), size("expert"))


def _heads(config: ModelConfig) -> int:
    """Attention heads, which the mesh may split: what divides those of all encoders; 1 without."""
    parts = (config, getattr(config, "text_config", None), getattr(config, "vision_config", None))
    return math.gcd(*(getattr(part, "num_attention_heads", 0) for part in parts)) or 1
