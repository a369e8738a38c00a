"""Convolutions over images."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax

from fmjax.core.execution import Execution
from fmjax.nn import ports
from fmjax.nn.param import param
from fmjax.nn.product import product

Padding = str | int | Sequence[tuple[int, int]]


class Conv(nn.Module):
    """A two-dimensional convolution with bias: x [B, H, W, in] → [B, H', W', out].

    Attributes:
      features: out.
      kernel_size: (height, width) of the kernel [height, width, in / groups, out].
      axes: logical names of in and out.
      stride: steps down and across.
      padding: a number of zeros on all sides; "VALID" for none; "SAME", with which a stride of s
        gives H / s rows, rounded up; or ((top, bottom), (left, right)).
      groups: of channels that do not mix.
      use_bias: adds b [out].
      kernel_init: initialiser of the kernel; b starts at zero.
      execution: precision.
    """

    features: int
    kernel_size: tuple[int, int]
    axes: tuple[str | None, str | None]
    stride: tuple[int, int] = (1, 1)
    padding: Padding = 0
    groups: int = 1
    use_bias: bool = True
    kernel_init: Callable[..., jax.Array] = nn.initializers.lecun_normal()
    execution: Execution = Execution()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        ex = self.execution
        shape = (*self.kernel_size, x.shape[-1] // self.groups, self.features)
        axes = (None, None, *self.axes)
        kernel = param(self, "kernel", self.kernel_init, shape, axes, ex.param_dtype)
        pad = self.padding
        padding = ((pad, pad), (pad, pad)) if isinstance(pad, int) else pad

        apart = tuple(self.stride) == tuple(self.kernel_size) and pad in (0, "VALID")

        def convolve(x: jax.Array, kernel: jax.Array, groups: int) -> jax.Array:
            x, kernel = x.astype(ex.dtype), kernel.astype(ex.dtype)
            if apart and groups == 1:
                return _by_patches(x, kernel)
            return jax.lax.conv_general_dilated(
                x,
                kernel,
                self.stride,
                padding,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=groups,
            )

        y = ports.low_rank_conv(self, x, kernel, convolve, self.groups)
        if self.use_bias:
            axes = (self.axes[1],)
            zeros = nn.initializers.zeros
            bias = param(self, "bias", zeros, (self.features,), axes, ex.param_dtype)
            y = y + bias.astype(y.dtype)
        return y


def _by_patches(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A convolution whose windows tile the image is one product of matrices.

    Compilers do not see it: with patches of 16 × 16, forward and gradient take half the time of the
    convolution (XLA on a CPU, jax 0.10).
    """
    p, q, C, out = kernel.shape
    B, rows, columns = x.shape[0], x.shape[1] // p, x.shape[2] // q
    x = x[:, : rows * p, : columns * q].reshape(B, rows, p, columns, q, C)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(B, rows, columns, p * q * C)
    return product(x, kernel.reshape(p * q * C, out))
