"""Device meshes with the axes that the rule lists speak of."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from fmjax.core.errors import ShardingError

AXES = ("stage", "data", "fsdp", "tensor", "context", "expert")


def make_mesh(
    data: int | None = None,
    fsdp: int = 1,
    tensor: int = 1,
    context: int = 1,
    expert: int = 1,
    stage: int = 1,
    devices: Sequence[jax.Device] | None = None,
    dcn: Mapping[str, int] | None = None,
) -> Mesh:
    """A mesh over all devices.

    Args:
      data: replicas that split the batch; default what the other axes leave. One axis may be −1:
        it takes what the others leave, and without `data` there is one replica.
      fsdp: shards of parameters and optimizer state that also split the batch.
      tensor: shards of heads, MLP and vocabulary within a layer.
      context: shards of the sequence.
      expert: shards of the experts.
      stage: shards of the layers, which the batch passes through in turn. The outermost axis: it
        sends least.
      devices: default `jax.devices()`.
      dcn: how many parts of which axes lie in different slices (or, where devices know no slices,
        different processes), between which the network is slow: {"data": 2} for two slices. A part
        of the axis' size above, not a factor beside it. Default: all slices on `data` or, where
        that does not divide by their number, on `fsdp`.

    Raises:
      ShardingError: sizes whose product is not the number of devices, or that do not fit slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = dict(zip(AXES, (stage, data, fsdp, tensor, context, expert), strict=True))
    asked = " × ".join(f"{axis}={n}" for axis, n in sizes.items() if n not in (1, None)) or "1"
    if data is None:
        sizes["data"] = 1 if -1 in sizes.values() else -1
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
    return Mesh(_arranged(devices, sizes, dcn), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def slice_count(devices: Sequence[Any]) -> int:
    """Slices (of a TPU pod, or domains of NVLink) that the devices belong to; 1 where unknown."""
    return len({getattr(device, "slice_index", 0) for device in devices})


def _arranged(
    devices: list[Any], sizes: Mapping[str, int], dcn: Mapping[str, int] | None
) -> np.ndarray:
    """The devices in the mesh's shape, neighbours on inner axes close in the network."""
    slices = slice_count(devices)
    across = dict(dcn or {})
    if dcn is None and slices > 1:
        fitting = [axis for axis in ("data", "fsdp") if sizes[axis] % slices == 0]
        if not fitting:
            raise ShardingError(
                f"the devices are {slices} slices, and neither data={sizes['data']} nor "
                f"fsdp={sizes['fsdp']} divides by that; say which axes cross slices, as in "
                f"dcn={{'tensor': {slices}}}"
            )
        across = {fitting[0]: slices}
    parts = math.prod(across.values())
    for axis, n in across.items():
        if axis not in sizes:
            raise ShardingError(f"dcn={across}: no axis {axis!r}; there are {', '.join(sizes)}")
        if n < 1 or sizes[axis] % n:
            raise ShardingError(f"dcn={across}: {axis}={sizes[axis]} does not divide by {n}")
    shape = tuple(sizes.values())
    if parts == 1 and slices == 1:
        try:
            return mesh_utils.create_device_mesh(
                shape, devices, allow_split_physical_axes=devices[0].platform != "cpu"
            )
        except AssertionError:  # some of a TPU's chips, which are no box: no torus to follow
            return np.asarray(devices, object).reshape(shape)
    by_process = slices == 1
    groups = len({d.process_index for d in devices}) if by_process else slices
    if parts != groups:
        raise ShardingError(
            f"dcn={across} makes {parts} parts, but the devices are {groups} "
            f"{'processes' if by_process else 'slices'}; use sizes whose product is {groups}"
        )
    return mesh_utils.create_hybrid_device_mesh(
        tuple(n // across.get(axis, 1) for axis, n in sizes.items()),
        tuple(across.get(axis, 1) for axis in sizes),
        devices,
        process_is_granule=by_process,
        allow_split_physical_axes=devices[0].platform != "cpu",
    )
