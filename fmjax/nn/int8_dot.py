"""Products of activations and weights in 8-bit integers, for training.

Accelerators multiply int8 at up to twice the speed of bfloat16. Rounding is qwix's; which of the
three products of a layer are rounded, and along which axes, is decided here.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from fmjax.core.errors import ConfigError

# By itself qwix puts the largest magnitude at 127.5: between two codes, where an error of the last
# bit decides and a recomputed layer is rounded unlike the first time.
_CALIBRATION = f"absmax,{127.5 / 127}"

_INSTALL = "int8 products need qwix; install it with: pip install 'fmjax[int8]'"


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def int8_dot(x: jax.Array, kernel: jax.Array, out_dtype: Any) -> jax.Array:
    """x W from int8 operands, summed in int32.

    Each row of x and each output of W has a scale of its own, its largest magnitude over 127
    (arXiv:2208.07339 without outliers). Backward, the product for the activations is int8 too, with
    a scale for each row of the gradient and each input of W. The gradient of W is not rounded: its
    sum over tokens is what training is most sensitive to. Rounding has the gradient of the
    identity.

    Args:
      x: [..., in], float.
      kernel: W [in, *out], in x's dtype.
      out_dtype: of the result.

    Returns:
      [..., *out].

    Raises:
      ConfigError: qwix is not installed.
    """
    rows = tuple(range(x.ndim - 1))
    outputs = tuple(range(1, kernel.ndim))
    dims = (((x.ndim - 1,), (0,)), ((), ()))
    return _dot(x, rows, kernel, outputs, dims).astype(out_dtype)


def _dot(a: jax.Array, a_axes: Any, b: jax.Array, b_axes: Any, dims: Any) -> jax.Array:
    """The product of two arrays with a scale for each place on `a_axes` and on `b_axes`; f32."""
    try:
        import qwix
    except ImportError as e:
        raise ConfigError(_INSTALL) from e
    a, b = (
        qwix.quantize(
            v.astype(jnp.float32),
            jnp.int8,
            channelwise_axes=axes,
            calibration_method=_CALIBRATION,
        )
        for v, axes in ((a, a_axes), (b, b_axes))
    )
    return qwix.dot_general(a, b, dims)


def _forward(x: jax.Array, kernel: jax.Array, out_dtype: Any) -> tuple[jax.Array, Any]:
    return int8_dot(x, kernel, out_dtype), (x, kernel)


def _backward(out_dtype: Any, residuals: Any, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    del out_dtype
    x, kernel = residuals
    rows, outputs = tuple(range(x.ndim - 1)), tuple(range(x.ndim - 1, dy.ndim))
    to_inputs = ((outputs, tuple(range(1, kernel.ndim))), ((), ()))
    dx = _dot(dy, rows, kernel, (0,), to_inputs)
    dy = dy.astype(x.dtype)
    dw = jax.lax.dot_general(x, dy, ((rows, rows), ((), ())), preferred_element_type=jnp.float32)
    return dx.astype(x.dtype), dw.astype(kernel.dtype)


int8_dot.defvjp(_forward, _backward)
