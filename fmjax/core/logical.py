"""Logical axes: names for dimensions, turned into shardings by a short list of rules.

Parameters and activations name their dimensions once ("embed", "mlp", "batch"); a rule list says
onto which mesh axes each name is laid out. Neither the model nor the training step changes with
the topology.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from contextvars import ContextVar

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fmjax.core.errors import ShardingError

Axes = Sequence[str | None]
Rules = Sequence[tuple[str, str | Sequence[str] | None]]

_current: ContextVar[tuple[Mesh, Rules] | None] = ContextVar("mesh_and_rules", default=None)


def spec(
    axes: Axes,
    rules: Rules,
    mesh: Mesh,
    shape: Sequence[int] | None = None,
    name: str = "array",
) -> PartitionSpec:
    """The partition of an array whose dimensions bear the logical names `axes`.

    The first rule for a name counts. Mesh axes that the mesh does not have count as size 1, and
    one that an earlier dimension took is not used twice.

    Args:
      axes: one logical name, or None (replicated), for each dimension.
      rules: (logical axis, mesh axis | mesh axes | None) pairs.
      mesh: the devices.
      shape: when given, each dimension must divide over its mesh axes.
      name: what the error calls the array.

    Raises:
      ShardingError: a logical name without a rule, or a dimension that does not divide.
    """
    entries: list[str | tuple[str, ...] | None] = []
    taken: set[str] = set()
    for dim, axis in enumerate(axes):
        chosen = tuple(
            a for a in _mesh_axes(axis, rules, name) if mesh.shape.get(a, 1) > 1 and a not in taken
        )
        taken |= set(chosen)
        parts = math.prod(mesh.shape[a] for a in chosen)
        if shape is not None and shape[dim] % parts:
            over = " × ".join(f"{a}={mesh.shape[a]}" for a in chosen)
            raise ShardingError(
                f"{name}: axis {axis!r} of size {shape[dim]} does not divide over {over}; "
                f"change the mesh, or replicate it with the rule ({axis!r}, None)"
            )
        entries.append(chosen[0] if len(chosen) == 1 else chosen or None)
    return PartitionSpec(*entries)


def _mesh_axes(axis: str | None, rules: Rules, name: str) -> tuple[str, ...]:
    if axis is None:
        return ()
    for logical, mesh_axes in rules:
        if logical == axis:
            if mesh_axes is None:
                return ()
            return (mesh_axes,) if isinstance(mesh_axes, str) else tuple(mesh_axes)
    raise ShardingError(
        f"{name}: no sharding rule for the logical axis {axis!r}; add ({axis!r}, None) to replicate"
    )


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
