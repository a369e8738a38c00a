"""What lies where: the shardings of a pytree as text."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding


def describe(tree: Any, depth: int | None = None) -> str:
    """A table with a line for each array: path, shape, dtype, partition, bytes on each device.

        params/layers/mlp/up_proj/kernel   2×4096×11008   float32   –, fsdp, tensor   45.1 MB

    The last line sums up; what no device needs twice would take total ÷ devices on each.

    Args:
      tree: arrays or `ShapeDtypeStruct`s in any pytree (parameters, a `TrainState`, a batch). Those
        without a sharding, as numpy arrays have none, lie on the host.
      depth: joins arrays whose paths agree in this many parts to one line with their number and
        their bytes; None shows each.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    rows: list[tuple[str, ...]] = [("array", "shape", "dtype", "partition", "bytes a device")]
    groups: dict[str, list[Any]] = {}
    for path, leaf in leaves:
        keys = [jax.tree_util.keystr((key,), simple=True) for key in path]
        groups.setdefault("/".join(keys[:depth]), []).append(leaf)
    for name, group in groups.items():
        size = _bytes(sum(_held(leaf) for leaf in group))
        if len(group) == 1:
            (x,) = group
            shape = "×".join(map(str, x.shape)) or "scalar"
            rows.append((name, shape, str(x.dtype), _partition(x), size))
        else:
            kinds = {str(x.dtype) for x in group}
            rows.append((name, f"{len(group)} arrays", ", ".join(sorted(kinds)), "", size))
    held = sum(_held(leaf) for _, leaf in leaves)
    whole = sum(_whole(leaf) for _, leaf in leaves)
    meshes = {x.sharding.mesh for _, x in leaves if _named(x)}
    sizes = [_axes(mesh.shape) for mesh in meshes] or ["no mesh"]
    rows.append(("total", _bytes(whole), "", ", ".join(sorted(sizes)), _bytes(held)))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join(
        "  ".join([*(f"{cell:<{w}}" for cell, w in zip(row[:4], widths, strict=True)), row[4]])
        for row in rows
    )


def _named(x: Any) -> bool:
    return isinstance(getattr(x, "sharding", None), NamedSharding)


def _partition(x: Any) -> str:
    if not _named(x):
        sharding = getattr(x, "sharding", None)
        return "host" if sharding is None else f"{len(sharding.device_set)} device(s)"
    spec = (*x.sharding.spec, *[None] * (len(x.shape) - len(x.sharding.spec)))
    parts = ["+".join((e,) if isinstance(e, str) else e) if e else "–" for e in spec]
    memory = x.sharding.memory_kind
    where = "" if memory in (None, "device", "unpinned_host") else f" ({memory})"
    return ("whole" if set(parts) <= {"–"} else ", ".join(parts)) + where


def _axes(shape: Mapping[str, int]) -> str:
    return " × ".join(f"{axis} {n}" for axis, n in shape.items() if n > 1) or "one device"


def _itemsize(x: Any) -> float:
    """Bytes of one entry; of a key, of its data."""
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.eval_shape(jax.random.key_data, x).size * 4 / max(np.prod(x.shape), 1)
    return jax.dtypes.itemsize_bits(x.dtype) / 8


def _whole(x: Any) -> float:
    return float(np.prod(x.shape)) * _itemsize(x)


def _held(x: Any) -> float:
    """Bytes on one device."""
    sharding = getattr(x, "sharding", None)
    shape = x.shape if sharding is None else sharding.shard_shape(x.shape)
    return float(np.prod(shape)) * _itemsize(x)


def _bytes(size: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
