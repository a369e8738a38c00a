"""Activation functions under the names that Hugging Face configs use."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fmjax.core.errors import ConfigError


def _gelu(x: jax.Array) -> jax.Array:
    """x Φ(x), from erf and in float32 at least, as in torch: erfc costs XLA's CPU twice as much."""
    wide = _wide(x)
    return (0.5 * wide * (1 + jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


def _gelu_tanh(x: jax.Array) -> jax.Array:
    """The same by tanh, which in bfloat16 would cancel where x is negative."""
    return jax.nn.gelu(_wide(x), approximate=True).astype(x.dtype)


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": _gelu,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
}


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """The function called `name`; its backward pass keeps the input and computes the rest again.

    Left alone, XLA keeps every intermediate of a GELU: six arrays of the MLP's width a layer.

    Raises:
      ConfigError: an unknown name.
    """
    if name not in ACTIVATIONS:
        known = ", ".join(sorted(ACTIVATIONS))
        raise ConfigError(f"activation {name!r} is not supported; choose one of {known}")
    return jax.checkpoint(ACTIVATIONS[name], prevent_cse=False)
