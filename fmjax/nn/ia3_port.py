"""Where IA³ (arXiv:2205.05638) plugs into dense layers: a learned factor on each feature."""

import flax.linen as nn
import jax

from fmjax.core.adapter import COLLECTION
from fmjax.nn import bank_port


def scale_inputs(module: nn.Module, x: jax.Array) -> jax.Array:
    """x · ia3_in over the last axis, for a layer whose adapter has `ia3_in` [in]."""
    return _scaled(module, "ia3_in", x)


def scale_outputs(module: nn.Module, y: jax.Array) -> jax.Array:
    """y · ia3_out, bias included, for a layer whose adapter has `ia3_out` [*out]."""
    return _scaled(module, "ia3_out", y)


def _scaled(module: nn.Module, name: str, x: jax.Array) -> jax.Array:
    if not module.has_variable(COLLECTION, name):
        return x
    factor, bank = module.get_variable(COLLECTION, name), bank_port.of(module, name)
    if bank is not None:
        factor = bank_port.elementwise(bank, name, 1.0, x.ndim - factor.ndim)
    # In the factors' precision, rounded once.
    return (x * factor).astype(x.dtype)
