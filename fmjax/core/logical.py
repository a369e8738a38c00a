"""Logical axes: names for dimensions, turned into shardings by a short list of rules.

Parameters and activations name their dimensions once ("embed", "mlp", "batch"); a rule list says
onto which mesh axes each name is laid out. Neither the model nor the training step changes with
the topology.
"""

import contextlib
import logging
import math
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fmjax.core.errors import ShardingError

Axes = Sequence[str | None]
Rules = Sequence[tuple[str, str | Sequence[str] | None]]

REPLICABLE = frozenset(
    ("vocab", "act_vocab", "heads", "kv_heads", "act_heads", "act_kv_heads"),
)
"""Logical axes whose sizes a published model dictates and which need not divide: GPT-2 has 50257
words and Falcon-7B 71 heads. The other axes of a model, its width and its feed-forward width,
divide by any sensible mesh, and replicating what they hold would undo the mesh: those are errors,
and so are the batch and the sequence."""

_log = logging.getLogger("fmjax.sharding")
_told: set[Any] = set()
_current: ContextVar[tuple[Mesh, Rules] | None] = ContextVar("mesh_and_rules", default=None)


def spec(
    axes: Axes,
    rules: Rules,
    mesh: Mesh,
    shape: Sequence[int] | None = None,
    name: str = "array",
) -> PartitionSpec:
    """The partition of an array whose dimensions bear the logical names `axes`.

    The first rule for a name counts. Mesh axes that the mesh does not have count as size 1. No mesh
    axis is used twice in an array: the dimension whose rule comes first in the list has it.

    A dimension that does not divide is an error, with two exceptions. One of size 1 is whole. Those
    of `REPLICABLE` leave the last of their mesh axes out until they divide, which is logged once.

    Args:
      axes: one logical name, or None (replicated), for each dimension.
      rules: (logical axis, mesh axis | mesh axes | None) pairs.
      mesh: the devices.
      shape: when given, each dimension must divide over its mesh axes.
      name: what messages call the array.

    Raises:
      ShardingError: a logical name without a rule, or a dimension that does not divide.
    """
    places = [(0, ()) if axis is None else _rule(axis, rules, name) for axis in axes]
    entries: list[str | tuple[str, ...] | None] = [None] * len(places)
    taken: set[str] = set()
    for dim in sorted(range(len(places)), key=lambda dim: (places[dim][0], dim)):
        wanted = places[dim][1]
        chosen = tuple(a for a in wanted if mesh.shape.get(a, 1) > 1 and a not in taken)
        if shape is not None:
            chosen = _dividing(chosen, shape[dim], axes[dim], mesh, name)
        taken |= set(chosen)
        entries[dim] = chosen[0] if len(chosen) == 1 else chosen or None
    return PartitionSpec(*entries)


def _dividing(
    chosen: tuple[str, ...], size: int, axis: str | None, mesh: Mesh, name: str
) -> tuple[str, ...]:
    """The mesh axes, of those chosen, over which a dimension is split."""
    if size == 1:
        return ()
    kept = chosen
    while size % math.prod(mesh.shape[a] for a in kept):
        kept = kept[:-1]
    if kept == chosen:
        return chosen
    over = " × ".join(f"{a}={mesh.shape[a]}" for a in chosen)
    what = f"{name}: axis {axis!r} of size {size} does not divide over {over}"
    if axis not in REPLICABLE:
        raise ShardingError(
            f"{what}; change the mesh, or replicate it with the rule ({axis!r}, None)"
        )
    # Of activations one message for a size is enough, whoever lays them out.
    key = what if "/" in name else (axis, size, over)
    if key not in _told:
        _told.add(key)
        rest = " × ".join(a for a in chosen if a not in kept)
        _log.warning("%s; every device along %s has all of it", what, rest)
    return kept


def _rule(axis: str, rules: Rules, name: str) -> tuple[int, tuple[str, ...]]:
    """(place in the list, mesh axes) of the first rule for a logical axis."""
    for place, (logical, entry) in enumerate(rules):
        if logical == axis:
            return place, mesh_axes(entry)
    raise ShardingError(
        f"{name}: no sharding rule for the logical axis {axis!r}; add ({axis!r}, None) to replicate"
    )


def mesh_axes(entry: str | Sequence[str] | None) -> tuple[str, ...]:
    """The mesh axes of one dimension, as a rule or a `PartitionSpec` states them."""
    return (entry,) if isinstance(entry, str) else tuple(entry or ())


@contextlib.contextmanager
def use(mesh: Mesh | None, rules: Rules | None) -> Iterator[None]:
    """While tracing inside, `constrain` lays activations out on this mesh. None: no constraints."""
    token = _current.set(None if mesh is None or rules is None else (mesh, rules))
    try:
        yield
    finally:
        _current.reset(token)


def current() -> tuple[Mesh, Rules] | None:
    """The mesh and rules of the enclosing `use`, for code that lays itself out; else None."""
    return _current.get()


def device() -> jax.Device:
    """One of the devices that the program being traced is compiled for.

    The mesh of `use` has them, which may be a topology that is not here; else JAX's default.
    """
    current = _current.get()
    if current is not None:
        return current[0].devices.flat[0]
    default = jax.config.jax_default_device
    return default if isinstance(default, jax.Device) else jax.devices(default)[0]


def platform() -> str:
    """The kind of `device`: "cpu", "gpu" or "tpu"."""
    name = device().platform
    return {"cuda": "gpu", "rocm": "gpu"}.get(name, name)


def constrain(x: jax.Array, axes: Axes) -> jax.Array:
    """Fixes the layout of an activation inside `use`; elsewhere returns it as it is."""
    current = _current.get()
    if current is None:
        return x
    mesh, rules = current
    partition = spec(axes, rules, mesh, x.shape, name="activation")
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, partition))


def shards(axis: str) -> int:
    """Over how many devices the enclosing `use` splits a logical axis; 1 outside."""
    current = _current.get()
    if current is None:
        return 1
    mesh, rules = current
    return math.prod(mesh.shape.get(a, 1) for a in _rule(axis, rules, "activation")[1])
