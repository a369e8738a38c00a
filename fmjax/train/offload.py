"""Optimizer state in the host's memory, from where a step fetches it."""

from typing import Any

import jax
from jax.sharding import Mesh, SingleDeviceSharding

from fmjax.core.errors import ConfigError

HOST = "pinned_host"
CHOICES = (None, "optimizer")


def check(offload: str | None, mesh: Mesh | None) -> None:
    """Raises ConfigError for an unknown choice, or devices without pinned host memory."""
    if offload not in CHOICES:
        raise ConfigError(f"offload {offload!r} is unknown; give 'optimizer', or None")
    if offload is None:
        return
    device = jax.local_devices()[0] if mesh is None else mesh.devices.flat[0]
    kinds = [memory.kind for memory in device.addressable_memories()]
    if HOST not in kinds:
        raise ConfigError(
            f"offload='optimizer' needs {HOST} memory, but {device} has {', '.join(kinds)}; "
            "use another backend, or leave offload away"
        )


def on_host(state: Any, like: Any) -> Any:
    """`ShapeDtypeStruct`s with shardings in pinned host memory; scalars stay on the device.

    Args:
      state: of `ShapeDtypeStruct`s, whose shardings may be None.
      like: what lies on the device that such arrays belong to.
    """
    known = [getattr(x, "sharding", None) for x in jax.tree.leaves(like)]
    device = SingleDeviceSharding(jax.local_devices()[0])
    default = next((sharding for sharding in known if sharding is not None), device)

    def place(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        sharding = x.sharding or default
        if x.ndim:
            sharding = sharding.with_memory_kind(HOST)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(place, state)


def fetch(state: Any, shardings: Any) -> Any:
    """Copies what lies in host memory to the device; to be traced.

    Args:
      state: arrays of an optimizer.
      shardings: of these arrays, where they lie.
    """

    def one(x: jax.Array, sharding: Any) -> jax.Array:
        if sharding.memory_kind != HOST:
            return x
        return jax.device_put(x, sharding.with_memory_kind("device"))

    return jax.tree.map(one, state, shardings)
