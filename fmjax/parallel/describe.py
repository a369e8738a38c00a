"""How a pytree lies on the devices, for people to read."""

import math
from typing import Any

import jax
from jax.sharding import NamedSharding


def describe(tree: Any, *, least: int = 0) -> str:
    """A table of the arrays of a pytree: dtype and shape, how they are split, bytes on a device.

    Args:
      tree: arrays or `ShapeDtypeStruct`s, such as parameters, a training state or a batch.
      least: arrays of fewer bytes are counted, but not listed.

    Returns:
      Lines such as `params/embed/embedding  float32[32000, 4096]  (tensor, fsdp)  64.0 MB`: the
      mesh axes that split each dimension, `-` where none does; `whole` where nothing is split, and
      the memory where it is not the device's own. The last line has the totals.
    """
    rows, total, local = [], 0, 0
    leaves = [
        (path, x)
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
        if hasattr(x, "shape") and hasattr(x, "dtype")
    ]
    for path, x in leaves:
        sharding = getattr(x, "sharding", None)
        nbytes = math.prod(x.shape) * _itemsize(x.dtype)
        part = x.shape if sharding is None else sharding.shard_shape(tuple(x.shape))
        own = math.prod(part) * _itemsize(x.dtype)
        total, local = total + nbytes, local + own
        if nbytes >= least:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            kind = f"{x.dtype.name}{list(x.shape)}"
            rows.append((name, kind, _split(sharding, x.shape), _bytes(own)))
    ending = f"{len(leaves)} arrays, {_bytes(total)} in all, {_bytes(local)} on a device"
    if not rows:
        return ending
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        f"{name:{widths[0]}}  {kind:{widths[1]}}  {split:{widths[2]}}  {own:>{widths[3]}}"
        for name, kind, split, own in rows
    ]
    return "\n".join([*lines, ending])


def _itemsize(dtype: Any) -> int:
    if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
        return 8
    return dtype.itemsize


def _split(sharding: Any, shape: tuple[int, ...]) -> str:
    if not isinstance(sharding, NamedSharding):
        return "one device" if sharding is not None else "nowhere yet"
    spec = (*sharding.spec, *[None] * (len(shape) - len(sharding.spec)))
    axes = [() if a is None else (a,) if isinstance(a, str) else tuple(a) for a in spec]
    split = [
        "·".join(a for a in names if sharding.mesh.shape[a] > 1) or "-" for names in axes
    ]  # fmt: skip
    text = "whole" if set(split) <= {"-"} else f"({', '.join(split)})"
    kind = sharding.memory_kind
    return text if kind in (None, "device", "unpinned_host") else f"{text} in {kind}"


def _bytes(n: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000 or unit == "GB":
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    raise AssertionError("unreachable")
