"""The rows of a batch, from the processes that read them to the devices that need them.

Process i of P always reads rows i·B/P … (i + 1)·B/P of a global batch, whatever the mesh: nobody
reads a row twice. Where the mesh wants each process's rows on its own devices, they go there
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
      sharding: of the result [B, …], the same in all processes; splits the rows only.

    Returns:
      [B, …]. Rows stand in the order of the processes, except where a mesh gives the devices of a
      process rows that are not next to each other: there they stand in the order of the devices.
    """
    shape = (local.shape[0] * jax.process_count(), *local.shape[1:])
    if jax.process_count() == 1 or own_rows(sharding, shape[0]):
        return jax.make_array_from_process_local_data(sharding, local, shape)
    by_process = NamedSharding(_process_mesh(sharding.mesh), PartitionSpec("process"))
    return jax.device_put(
        jax.make_array_from_process_local_data(by_process, local, shape), sharding
    )


@functools.lru_cache(maxsize=64)
def own_rows(sharding: NamedSharding, rows: int) -> bool:
    """Whether every process's devices want an equal share of the rows that no other's want."""
    wanted: dict[int, set[tuple[int, int]]] = {}
    for device, (index,) in sharding.devices_indices_map((rows,)).items():
        wanted.setdefault(device.process_index, set()).add(index.indices(rows)[:2])
    sizes = [sum(stop - start for start, stop in parts) for parts in wanted.values()]
    return set(sizes) == {rows // len(wanted)} and len(set().union(*wanted.values())) == sum(
        map(len, wanted.values())
    )


@functools.lru_cache(maxsize=8)
def _process_mesh(mesh: Mesh) -> Mesh:
    devices = sorted(mesh.devices.flat, key=lambda d: (d.process_index, d.id))
    grid = np.asarray(devices).reshape(jax.process_count(), -1)
    return Mesh(grid, ("process", "device"), axis_types=(AxisType.Auto,) * 2)
