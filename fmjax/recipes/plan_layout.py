"""The mesh of a planned step."""

from typing import Any

import jax

from fmjax.core.errors import ShardingError
from fmjax.parallel import AXES, make_mesh


def mesh_of(text: str, devices: list[Any]) -> jax.sharding.Mesh:
    """ "fsdp=8,tensor=2" → a mesh of the devices; "" lays all of them on `fsdp`.

    Raises:
      ShardingError: an unknown axis, a size that is no number, or sizes that do not divide.
    """
    sizes: dict[str, int] = {}
    for item in filter(None, text.split(",")):
        axis, _, size = (part.strip() for part in item.partition("="))
        if axis not in AXES:
            raise ShardingError(f"--mesh {text}: no axis {axis!r}; there are {', '.join(AXES)}")
        if not size.removeprefix("-").isdecimal():
            raise ShardingError(f"--mesh {text}: write axis=number, as in fsdp=8,tensor=2")
        sizes[axis] = int(size)
    if -1 not in sizes.values() and not {"data", "fsdp"} & set(sizes):
        sizes["fsdp"] = -1
    return make_mesh(**{"data": 1, **sizes}, devices=devices)
