"""Random parameters, born where they will live."""

from collections.abc import Collection
from typing import Any

import flax.linen as nn
import jax

from fmjax.core import logical, tree
from fmjax.models.registry import abstract_params
from fmjax.parallel import DEFAULT_RULES, param_shardings


def init_params(
    model: nn.Module,
    rng: jax.Array,
    *,
    mesh: jax.sharding.Mesh | None = None,
    rules: logical.Rules | None = None,
    paths: Collection[str] | None = None,
) -> dict[str, Any]:
    """Random parameters, created where they will live: no device ever holds the whole.

    Args:
      model: from `build`.
      rng: a key, `jax.random.key(seed)`.
      mesh: lays the parameters out; None keeps them on the default device.
      rules: logical axes → mesh axes; default `fmjax.parallel.DEFAULT_RULES`.
      paths: only these parameters, with the values that they have among all; None means all.

    Raises:
      ShardingError: a parameter that does not divide over the mesh; the message names it.
    """

    def chosen(params: dict[str, Any]) -> dict[str, Any]:
        flat = tree.flatten(params)
        return tree.unflatten({p: x for p, x in flat.items() if paths is None or p in paths})

    shardings = None
    if mesh is not None:
        abstract = chosen(abstract_params(model))
        shardings = param_shardings(abstract, mesh, rules or DEFAULT_RULES)
    inputs = model.dummy_inputs()
    # What is not chosen is dead code to the compiler: it is never computed.
    init = jax.jit(lambda key: chosen(model.init(key, **inputs)["params"]), out_shardings=shardings)
    return init(rng)
