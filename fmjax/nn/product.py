"""The product of activations with a weight, whose gradient is one product of two matrices."""

import jax
from jax.typing import DTypeLike

from fmjax.core.logical import current, platform


def product(
    x: jax.Array, weight: jax.Array, dtype: DTypeLike | None = None, *, last: bool = False
) -> jax.Array:
    """x [..., K] · weight [K, *features] → [..., *features].

    On a CPU alone both are taken as matrices. The weight's gradient, a sum over all of the leading
    dimensions, is then xᵀ dy of two matrices, which XLA's CPU takes as they lie; with more
    dimensions it writes dy turned round first, into a product that can take half as long again
    (about a tenth of a training step, `benchmarks/README.md`). On a mesh the dimensions may be
    split, each over devices of its own, and stay apart; other compilers do not need it.

    Args:
      x: activations.
      weight: of the same dtype.
      dtype: of the sums and of the result; None means that of the operands.
      last: K is the weight's last dimension: [*features, K].
    """
    K = x.shape[-1]
    features = weight.shape[:-1] if last else weight.shape[1:]

    def dot(x: jax.Array, weight: jax.Array) -> jax.Array:
        contract = (((x.ndim - 1,), (weight.ndim - 1 if last else 0,)), ((), ()))
        return jax.lax.dot_general(x, weight, contract, preferred_element_type=dtype)

    mesh = current()
    if platform() != "cpu" or (mesh is not None and mesh[0].size > 1):
        return dot(x, weight)
    y = dot(x.reshape(-1, K), weight.reshape((-1, K) if last else (K, -1)))
    return y.reshape(*x.shape[:-1], *features)
