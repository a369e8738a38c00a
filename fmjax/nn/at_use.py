"""Master weights in the precision that they are computed in, one layer at a time."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from fmjax.nn.layouts import row_major


def at_use(weight: jax.Array, dtype: Any) -> jax.Array:
    """The weight in `dtype`, cast where it is used; the gradient is cast back.

    XLA lowers the precision of a float32 array that is only ever read in bfloat16: of a stack of
    layers it would make a copy before the scan over them, and hold it beside the master weights, at
    two bytes for each parameter.
    """
    return weight if weight.dtype == dtype else _cast(weight, dtype)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _cast(weight: jax.Array, dtype: Any) -> jax.Array:
    weight = row_major(weight)
    if weight.dtype == jnp.float32:
        # Bits have no precision to lower; the barrier keeps XLA from taking them for the number.
        bits = jax.lax.bitcast_convert_type(weight, jnp.uint32)
        weight = jax.lax.bitcast_convert_type(jax.lax.optimization_barrier(bits), jnp.float32)
    return weight.astype(dtype)


@_cast.defjvp
def _cast_jvp(dtype: Any, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    return _cast(primals[0], dtype), tangents[0].astype(dtype)
