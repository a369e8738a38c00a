"""What IA³ does to the weights of a linear layer, as pure arithmetic."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

IA3_LEAVES = ("ia3_in", "ia3_out")


def merged(
    kernel: jax.Array,
    leaves: Mapping[str, jax.Array],
    bias: jax.Array | None = None,
    *,
    stacked: bool = False,
) -> tuple[jax.Array, jax.Array | None]:
    """The layer that computes what the base computes with the adapter.

    (s ∘ x) W + b = x (diag(s) W) + b for factors on the inputs, and
    s ∘ (x W + b) = x (W diag(s)) + s ∘ b for factors on the outputs.
    Products are taken in float32 and rounded to the dtype of the weights, as PEFT does.

    Args:
      kernel: [in, *out]; every array has a leading layers axis if `stacked`.
      leaves: of the layer's adapter: `ia3_in` [in] or `ia3_out` [*out].
      bias: [*out], if the layer has one.
      stacked: whether there is a leading layers axis.

    Returns:
      (kernel, bias).
    """
    lead = int(stacked)

    def scaled(weight: jax.Array, factor: jax.Array) -> jax.Array:
        return (weight.astype(jnp.float32) * factor.astype(jnp.float32)).astype(weight.dtype)

    if "ia3_in" in leaves:
        factor = leaves["ia3_in"]
        outputs = range(factor.ndim, kernel.ndim)
        kernel = scaled(kernel, jnp.expand_dims(factor, tuple(outputs)))
    if "ia3_out" in leaves:
        factor = leaves["ia3_out"]
        kernel = scaled(kernel, jnp.expand_dims(factor, lead))
        bias = None if bias is None else scaled(bias, factor)
    return kernel, bias
