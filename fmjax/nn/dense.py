"""Linear layers."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.core.errors import ConfigError
from fmjax.core.execution import Execution
from fmjax.nn import ia3_port, ports
from fmjax.nn.at_use import at_use
from fmjax.nn.backward import together
from fmjax.nn.int8_dot import int8_dot
from fmjax.nn.param import param
from fmjax.nn.product import product
from fmjax.quant import Packed, matmul


class Dense(nn.Module):
    """y = x W + b over the last axis, with W [in, *features], which may be packed.

    Attributes:
      features: size of the output, or several sizes for a fused projection such as (3, D).
      axes: logical names of W's dimensions, input first.
      use_bias: adds b [*features].
      kernel_init: initialiser of W; b starts at zero.
      execution: precision. W is cast to `execution.dtype` for the product, which is one of int8
        operands where `execution.matmul` says so and the result is no logits.
      out_dtype: of the accumulator and the result; default `execution.dtype`.
      wide: the result is larger than the input: its gradient is made use of, for W, before that of
        x is handed on, and is not held any longer (see `fmjax.nn.backward.together`).
    """

    features: int | tuple[int, ...]
    axes: tuple[str | None, ...]
    use_bias: bool = False
    kernel_init: Callable[..., jax.Array] = nn.initializers.normal(0.02)
    execution: Execution = Execution()
    out_dtype: jnp.dtype | None = None
    wide: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        ex = self.execution
        x = ia3_port.scale_inputs(self, x)
        features = (self.features,) if isinstance(self.features, int) else tuple(self.features)
        shape = (x.shape[-1], *features)
        kernel = param(
            self, "kernel", self._init, shape, self.axes, ex.param_dtype, between=0, packed=True
        )
        out_dtype = self.out_dtype or ex.dtype
        # One kernel for each row of the batch, in a bank of adapters with copies of it.
        by_row = kernel.ndim > len(shape)

        if self.wide and not isinstance(kernel, Packed):
            x, kernel = together(x, kernel)

        def multiply(x: jax.Array) -> jax.Array:
            x = x.astype(ex.dtype)
            if ex.matmul == "int8" and self.out_dtype is None:
                if isinstance(kernel, Packed) or by_row:
                    raise ConfigError(
                        f"matmul='int8' rounds plain weights, but {'/'.join(self.path)} is packed, "
                        "or in a bank of adapters; use matmul='default'"
                    )
                return int8_dot(x, at_use(kernel, ex.dtype), out_dtype)
            if isinstance(kernel, Packed):
                return matmul(x, kernel, out_dtype)
            weight = at_use(kernel, ex.dtype)
            if by_row:
                contract = (((x.ndim - 1,), (1,)), ((0,), (0,)))
                return jax.lax.dot_general(x, weight, contract, preferred_element_type=out_dtype)
            return product(x, weight, out_dtype)

        y = ports.low_rank(self, x, kernel, multiply)
        if self.use_bias:
            bias = param(
                self,
                "bias",
                nn.initializers.zeros,
                features,
                self.axes[1:],
                ex.param_dtype,
                between=x.ndim - 2,
            )
            y = y + bias.astype(y.dtype)
        return ia3_port.scale_outputs(self, y)

    def _init(self, key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        # Fan-based initialisers must see the matrix, not the dimensions of a fused projection.
        return self.kernel_init(key, (shape[0], math.prod(shape[1:])), dtype).reshape(shape)
