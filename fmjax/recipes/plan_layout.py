"""How a planned step is laid out: devices on mesh axes, logical axes on those."""

from typing import Any

import jax

from fmjax.core.errors import ShardingError
from fmjax.core.logical import Rules
from fmjax.parallel import AXES, DEFAULT_RULES, REPLICATED_RULES, make_mesh

READY: dict[str, Rules] = {"fsdp_tensor": DEFAULT_RULES, "ddp": REPLICATED_RULES}


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


def rules_of(text: str) -> Rules:
    """ "fsdp_tensor,embed=none,mlp=tensor" → the ready list with these pairs in front.

    Raises:
      ShardingError: an unknown list, logical axis or mesh axis.
    """
    name, pairs = "fsdp_tensor", []
    known = {logical for logical, _ in DEFAULT_RULES}
    for item in filter(None, text.split(",")):
        logical, equals, axes = (part.strip() for part in item.partition("="))
        if not equals:
            name = logical
            continue
        chosen = () if axes == "none" else tuple(axes.split("+"))
        if logical not in known or not set(chosen) <= set(AXES):
            raise ShardingError(
                f"--rules {text}: {item!r} is no rule; write logical=mesh axis, as in mlp=tensor "
                f"or embed=none (logical: {', '.join(sorted(known))}; mesh: {', '.join(AXES)})"
            )
        pairs.append((logical, chosen or None))
    if name not in READY:
        raise ShardingError(f"--rules {text}: no list {name!r}; there are {', '.join(READY)}")
    return (*pairs, *READY[name])
