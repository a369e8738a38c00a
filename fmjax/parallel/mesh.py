"""Device meshes with the axes that the rule lists speak of."""

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from fmjax.core.errors import ShardingError

AXES = ("stage", "data", "fsdp", "tensor", "context", "expert")


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    context: int = 1,
    expert: int = 1,
    stage: int = 1,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """A mesh over all devices.

    Args:
      data: replicas that split the batch. One axis may be −1: it takes what the others leave.
      fsdp: shards of parameters and optimizer state that also split the batch.
      tensor: shards of heads, MLP and vocabulary within a layer.
      context: shards of the sequence.
      expert: shards of the experts.
      stage: shards of the layers, which the batch passes through in turn. The outermost axis: it
        sends least.
      devices: default `jax.devices()`.

    Raises:
      ShardingError: sizes whose product is not the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = dict(zip(AXES, (stage, data, fsdp, tensor, context, expert), strict=True))
    asked = " × ".join(f"{axis}={n}" for axis, n in sizes.items() if n != 1) or "1"
    free = [axis for axis, n in sizes.items() if n == -1]
    if len(free) > 1 or any(n < 1 and n != -1 for n in sizes.values()):
        raise ShardingError(f"mesh {asked}: sizes are positive, and one of them may be −1")
    fixed = math.prod(n for n in sizes.values() if n != -1)
    if free and len(devices) % fixed == 0:
        sizes[free[0]] = len(devices) // fixed
    if math.prod(sizes.values()) != len(devices):
        have = "the one device" if len(devices) == 1 else f"the {len(devices)} devices"
        raise ShardingError(
            f"mesh {asked} does not divide {have}; choose sizes whose product is {len(devices)}"
        )
    shape = tuple(sizes.values())
    types = (AxisType.Auto,) * len(AXES)
    if devices == list(jax.devices()) and devices[0].platform != "cpu":
        # Orders the devices by the interconnect's topology.
        return jax.make_mesh(shape, AXES, axis_types=types)
    return Mesh(np.asarray(devices).reshape(shape), AXES, axis_types=types)
