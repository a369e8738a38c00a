"""How many tokens that never were an adapter puts before the real ones."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from fmjax.core import tree
from fmjax.core.adapter import COLLECTION
from fmjax.core.errors import ConfigError


def count(adapter: Mapping[str, Any], leaf: str, axis: int) -> int:
    """The size of `axis` of the leaves with this name, which agree in it; 0 without any."""
    found = (x for path, x in tree.flatten(adapter).items() if path.split("/")[-1] == leaf)
    return next((x.shape[axis] for x in found), 0)


def checked(
    model: nn.Module, what: str, leaf: str, axis: int, tokens: int, position_ids: jax.Array | None
) -> int:
    """As `count`, of the adapter on a bound `model` that is given `tokens` slots.

    Args:
      model: with its config.
      what: the virtual tokens, in words.
      leaf, axis: as in `count`.
      tokens: number of real slots.
      position_ids: of the real tokens; given ones are the caller's affair.

    Raises:
      ConfigError: virtual and real tokens together exceed a table of positions.
    """
    P = count(model.variables.get(COLLECTION, {}), leaf, axis)
    limit = model.config.position_limit
    if P and position_ids is None and limit is not None and P + tokens > limit:
        raise ConfigError(
            f"{what} of {P} and {tokens} tokens exceed the model's {limit} positions; shorten "
            "one of them"
        )
    return P
