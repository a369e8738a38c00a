"""Weights from files straight into the layout in which the devices want them."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding, SingleDeviceSharding

from fmjax.convert.checkpoint import Match, match, open_directory
from fmjax.convert.packed import place_packed
from fmjax.convert.rows import Row
from fmjax.convert.safetensors import Tensor, cast
from fmjax.core.tree import flatten, unflatten
from fmjax.quant import Packed

Index = tuple[slice, ...]


def load_params(
    source: str | Path | Mapping[str, Tensor],
    rows: Sequence[Row],
    abstract: Mapping[str, Any],
    sharding: Mapping[str, Any] | None = None,
    dtype: Any = None,
    head_tensors: re.Pattern[str] | None = None,
    new_head: bool = False,
) -> dict[str, Any]:
    """Reads a checkpoint into parameters.

    All names, shapes and dtypes are checked before the first weight is read. Then each distinct
    shard of each parameter is read, cast and sent to its devices in turn, so the host holds one
    shard at a time, reads only what its own devices keep, and reads it once.

    Args:
      source: a directory that holds `model.safetensors`, or an index and its shards; or what
        `open_directory`, `gather` and `survey` made of one.
      rows: the family's weights map.
      abstract: nested dict of `ParamSpec` (or anything with shape and dtype). A parameter that is
        `Packed` here is quantised on the way, unless the files hold it packed.
      sharding: nested dict of `jax.sharding.Sharding` with the same paths. None: the default
        device.
      dtype: of floating parameters; None takes each from `abstract`.
      head_tensors, new_head: what files may hold and lack, see `match`.

    Returns:
      Nested dict of arrays with the paths and shapes of `abstract`, less what a new head lacks.

    Raises:
      CheckpointError: see `open_directory` and `match`.
    """
    flat = flatten(abstract)
    shardings = flatten(sharding) if sharding is not None else {}
    params: dict[str, Any] = {}
    tensors = source if isinstance(source, Mapping) else open_directory(source)
    for found in match(tensors, rows, flat, head_tensors, new_head):
        path = found.target.path
        if isinstance(flat[path], Packed):
            params[path] = place_packed(found, flat[path], shardings.get(path))
            continue
        want = np.dtype(flat[path].dtype)
        if dtype is not None and jnp.issubdtype(want, jnp.floating):
            want = jnp.dtype(dtype)
        params[path] = _place(found, want, shardings.get(path))
    return unflatten({path: params[path] for path in flat if path in params})


def _place(found: Match, dtype: np.dtype, sharding: Sharding | None) -> jax.Array:
    shape = found.target.shape
    if sharding is None:
        return jnp.asarray(read_slice(found, (slice(None),) * len(shape), dtype))
    # make_array_from_callback would hold every local shard at once and read replicas again.
    devices: dict[tuple[tuple[int, int], ...], list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        bounds = tuple(s.indices(n)[:2] for s, n in zip(index, shape, strict=True))
        devices.setdefault(bounds, []).append(device)
    shards = []
    for bounds, group in devices.items():
        host = read_slice(found, tuple(slice(*b) for b in bounds), dtype)
        placed = [
            jax.device_put(host, SingleDeviceSharding(d, memory_kind=sharding.memory_kind))
            for d in group
        ]
        shards += jax.block_until_ready(placed)  # lets go of the host copy before the next one
    return jax.make_array_from_single_device_arrays(shape, sharding, shards)


def read_slice(found: Match, index: Index, dtype: np.dtype) -> np.ndarray:
    """Part of a parameter, cast; the one place where weights leave the files.

    Args:
      found: a parameter and its tensors.
      index: a slice for each dimension of the parameter, the layers axis included.
      dtype: of the result.
    """
    extent = [range(n)[s] for s, n in zip(index, found.target.shape, strict=True)]
    out = np.empty([len(r) for r in extent], dtype)
    forward = found.target.row.transform.forward
    lead = len(found.target.lead)
    for place in np.ndindex(*out.shape[:lead]):
        where = tuple(rows[i] for rows, i in zip(extent, place, strict=False))
        tensor = found.tensors[np.ravel_multi_index(where, found.target.lead) if lead else 0]
        array = forward(tensor.view())[index[lead:]]
        if found.target.row.integer:
            array = array.astype(dtype)
        cast(array, dtype, tensor.name, out[(*place, ...)])
    return out
