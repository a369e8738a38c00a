"""Parameters that belong to no layer: tokens that stand for no input, scales of scores."""

from collections.abc import Callable

import flax.linen as nn
import jax

from fmjax.core.execution import Execution
from fmjax.nn.param import param


def learned(
    module: nn.Module,
    name: str,
    init: Callable[..., jax.Array],
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    execution: Execution,
) -> jax.Array:
    """An array that is learned as it stands: a class token [D], the scale of logits [].

    Args:
      module: that owns it.
      name: in the module.
      init: initialiser.
      shape, axes: of the array, and the logical names of its dimensions.
      execution: precision of what is stored, which is what is returned.
    """
    return param(module, name, init, shape, axes, execution.param_dtype)
