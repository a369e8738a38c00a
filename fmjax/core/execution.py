"""How the maths is executed, as opposed to what it is.

A config says what a model computes; an `Execution` says in which precision and with how much
recomputation. Two runs that differ only here agree up to rounding.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from fmjax.core.errors import ConfigError

MATMULS = ("default", "int8")
DTYPES = ("float32", "bfloat16", "float16", "float64")


def as_dtype(dtype: Any) -> np.dtype:
    """A floating dtype from its name or object: "bfloat16", jnp.bfloat16, np.float32.

    Raises:
      ConfigError: a name that is not one of `DTYPES`.
    """
    name = dtype if isinstance(dtype, str) else jnp.dtype(dtype).name
    if name not in DTYPES:
        raise ConfigError(f"dtype {dtype!r} is not supported; choose one of {', '.join(DTYPES)}")
    return jnp.dtype(name)


@dataclasses.dataclass(frozen=True)
class Execution:
    """Precision, recomputation and kernels of a model.

    Attributes:
      dtype: of activations and matmuls. Softmax, norms, RoPE tables and logits stay in float32.
      param_dtype: of the stored parameters. float32 here and bfloat16 in `dtype` is mixed
        precision with float32 master weights.
      scan_layers: one compiled layer body over parameters stacked on a leading `layers` axis.
        False keeps one subtree a layer ("layers_0", …), which decodes faster.
      remat: what the backward pass recomputes, see `fmjax.nn.stack.REMAT`. Without scan_layers it
        saves nothing on a CPU, where XLA drops the barriers that keep both passes apart.
      attention: the kernel, see `fmjax.nn.attention_choice`.
      matmul: "default", or "int8" for products of 8-bit integers in dense layers (not in logits,
        routers and experts), see `fmjax.nn.int8_dot`: an approximation, unlike all else here.
      microbatches: parts of a batch that pass through the stages of a pipeline one after the other,
        a multiple of the mesh axis `stage`; None means as many as stages. Without stages, unused.

    Raises:
      ConfigError: a dtype or matmul that is not supported, or less than one microbatch.
    """

    dtype: Any = jnp.dtype("float32")
    param_dtype: Any = jnp.dtype("float32")
    scan_layers: bool = True
    remat: str = "none"
    attention: str = "auto"
    matmul: str = "default"
    microbatches: int | None = None

    def __post_init__(self) -> None:
        if self.matmul not in MATMULS:
            raise ConfigError(
                f"matmul {self.matmul!r} is unknown; choose one of {', '.join(MATMULS)}"
            )
        if self.microbatches is not None and self.microbatches < 1:
            raise ConfigError(f"microbatches is {self.microbatches}; it must be at least 1")
        object.__setattr__(self, "dtype", as_dtype(self.dtype))
        object.__setattr__(self, "param_dtype", as_dtype(self.param_dtype))
