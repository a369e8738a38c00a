"""The rows of a batch, from the processes that read them to the devices that need them.

Process i of P always reads rows i·B/P … (i + 1)·B/P of a global batch, whatever the mesh: nobody
reads a row twice. Where the mesh wants just these on the process's own devices, they go there
directly. Where it does not (a tensor axis that spans processes wants all rows on all of them), the
devices exchange them.
"""

import functools

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def global_rows(local: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """The global array whose rows the processes hold between them.

    Args:
      local: [B / processes, …], this process's rows.
      sharding: of the result [B, …], the same in all processes.

    Returns:
      [B, …], rows in the order of the processes.
    """
    shape = (local.shape[0] * jax.process_count(), *local.shape[1:])
    if jax.process_count() == 1 or own_rows(sharding, shape):
        return jax.make_array_from_process_local_data(sharding, local, shape)
    by_process = NamedSharding(_process_mesh(sharding.mesh), PartitionSpec("process"))
    return jax.device_put(
        jax.make_array_from_process_local_data(by_process, local, shape), sharding
    )


@functools.lru_cache(maxsize=64)
def own_rows(sharding: NamedSharding, shape: tuple[int, ...]) -> bool:
    """Whether the devices of process i of P want rows i·B/P … (i + 1)·B/P of [B, …], for all i."""
    wanted: dict[int, set[int]] = {}
    rows = shape[0]
    for device, index in sharding.devices_indices_map(shape).items():
        wanted.setdefault(device.process_index, set()).update(range(rows)[index[0]])
    share = rows // len(wanted)
    return all(
        found == set(range(i * share, (i + 1) * share))
        for i, (_, found) in enumerate(sorted(wanted.items()))
    )


@functools.lru_cache(maxsize=8)
def _process_mesh(mesh: Mesh) -> Mesh:
    devices = sorted(mesh.devices.flat, key=lambda d: (d.process_index, d.id))
    grid = np.asarray(devices).reshape(jax.process_count(), -1)
    return Mesh(grid, ("process", "device"), axis_types=(AxisType.Auto,) * 2)
