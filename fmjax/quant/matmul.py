"""Products with packed kernels that keep nothing but the packed form for the backward pass."""

from functools import partial
from typing import Any

import jax

from fmjax.quant.packed import Packed


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul(x: jax.Array, packed: Packed, out_dtype: Any = None) -> jax.Array:
    """x W, with W dequantised for this product alone.

    The backward pass dequantises again, so that no full-precision copy of W is held between the
    two. W itself is frozen: it has no gradient.

    Args:
      x: [..., in], in the dtype to compute in.
      packed: the kernel (in, *out), without leading axes.
      out_dtype: of the accumulator and the result; default that of x.

    Returns:
      [..., *out].
    """
    return packed.product(x, out_dtype or x.dtype)


def _forward(x: jax.Array, packed: Packed, out_dtype: Any) -> tuple[jax.Array, Any]:
    return matmul(x, packed, out_dtype), (packed, jax.numpy.zeros((), x.dtype))


def _backward(out_dtype: Any, residuals: Any, dy: jax.Array) -> tuple[jax.Array, None]:
    del out_dtype
    packed, like = residuals
    # Without the barrier XLA may share one dequantised copy between both passes, and hold it.
    packed, dy = jax.lax.optimization_barrier((packed, dy.astype(like.dtype)))
    return packed.transposed_product(dy), None


matmul.defvjp(_forward, _backward)


def full(kernel: jax.Array | Packed, dtype: Any) -> jax.Array:
    """A layer's kernel as a plain array [in, *out], for what needs W itself and not only x W.

    A packed kernel is frozen: it is dequantised here and no gradient flows into it. Under a
    rematerialised layer stack the copy lives no longer than its layer.
    """
    if isinstance(kernel, Packed):
        return jax.lax.stop_gradient(kernel.dequantize(dtype))
    return kernel.astype(dtype)
