"""Bringing the processes of a run together before they compile at their own pace."""

import itertools

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def meet(mesh: Mesh | None) -> None:
    """Returns once all processes have come here; a process that is alone goes on at once.

    On CPUs the devices of every group that a mesh axis, or several together, make up also connect
    here. They would at the first collective of the group, where one gives up on another that comes
    more than 30 s later, and a training step takes the processes of a busy machine that much longer
    or shorter to compile.

    Args:
      mesh: of the collectives to come.
    """
    if jax.process_count() == 1:
        return
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices("fmjax.parallel.meet")
    if mesh is None or mesh.devices.flat[0].platform != "cpu":
        return
    axes = [axis for axis, size in mesh.shape.items() if size > 1]
    groups = [g for n in range(1, len(axes) + 1) for g in itertools.combinations(axes, n)]
    whole = PartitionSpec(tuple(mesh.axis_names))
    ones = jax.make_array_from_callback(
        (mesh.size,), NamedSharding(mesh, whole), lambda index: np.ones(mesh.size)[index]
    )
    sums = jax.shard_map(
        lambda x: sum(jax.lax.psum(x, group) for group in groups),
        mesh=mesh, in_specs=whole, out_specs=whole, check_vma=False,
    )  # fmt: skip
    jax.jit(sums)(ones).block_until_ready()
