"""Optimizer state in the host's memory, from where a step fetches it."""

from collections.abc import Callable
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
            "use another backend, or leave offload (--offload) away"
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


def from_host(update: Callable[..., Any], shardings: Any) -> Callable[..., Any]:
    """An optimizer's update whose state comes from host memory and goes back there.

    Within a branch, as the step has it, so that the copies cannot start before the gradient is
    known: ahead of it they would lie beside the activations.
    """

    def wrapped(grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        updates, state = update(grads, move(state, shardings, "device"), params)
        return updates, move(state, shardings, HOST)

    return wrapped


def move(state: Any, shardings: Any, memory: str) -> Any:
    """Copies an optimizer's arrays to the device, or back; to be traced.

    Args:
      state: arrays of an optimizer.
      shardings: where they lie between steps.
      memory: "device" or `HOST`.
    """

    def one(x: jax.Array, sharding: Any) -> jax.Array:
        if sharding.memory_kind != HOST:
            return x
        return jax.device_put(x, sharding.with_memory_kind(memory))

    return jax.tree.map(one, state, shardings)
