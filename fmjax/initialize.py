"""Random parameters, born where they will live."""

from typing import Any

import flax.linen as nn
import jax

from fmjax.core import logical
from fmjax.models.registry import abstract_params
from fmjax.parallel import DEFAULT_RULES, param_shardings


def init_params(
    model: nn.Module,
    rng: jax.Array,
    *,
    mesh: jax.sharding.Mesh | None = None,
    rules: logical.Rules | None = None,
) -> dict[str, Any]:
    """Random parameters, created where they will live: no device ever holds the whole.

    Args:
      model: from `build`.
      rng: a key, `jax.random.key(seed)`.
      mesh: lays the parameters out; None keeps them on the default device.
      rules: logical axes → mesh axes; default `fmjax.parallel.DEFAULT_RULES`.

    Raises:
      ShardingError: a parameter that does not divide over the mesh; the message names it.
    """
    shardings = None
    if mesh is not None:
        shardings = param_shardings(abstract_params(model), mesh, rules or DEFAULT_RULES)
    inputs = model.dummy_inputs()
    init = jax.jit(lambda key: model.init(key, **inputs)["params"], out_shardings=shardings)
    return init(rng)
