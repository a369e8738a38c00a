"""How far a merged model is from base and adapter, in what it says."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.core import tree
from fmjax.core.adapter import COLLECTION
from fmjax.core.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class MergeReport:
    """Differences between the logits of two models on the same tokens.

    Attributes:
      max_difference: the largest, in absolute value.
      mean_difference: of the absolute values.
      agreement: share of the positions where both have the same highest logit.
      size: the largest logit in absolute value, to measure the differences by.
      positions: how many there were.
    """

    max_difference: float
    mean_difference: float
    agreement: float
    size: float
    positions: int

    def __str__(self) -> str:
        return (
            f"logits differ by at most {self.max_difference:.2g} (mean {self.mean_difference:.2g}; "
            f"the largest is {self.size:.3g}), and {self.agreement:.2%} of {self.positions} "
            "positions have the same first choice"
        )


def merge_report(
    model: nn.Module,
    params: tree.Tree,
    adapter: tree.Tree,
    merged: tree.Tree,
    input_ids: Any,
    **inputs: Any,
) -> MergeReport:
    """Compares base and adapter with the merged model.

    Against packed params it shows what merging into other weights than those costs.

    Args:
      model: with a head that gives logits.
      params: of the base, packed or not.
      adapter: on them.
      merged: from `merge`.
      input_ids: i32 [B, T].
      **inputs: of the model, such as attention_mask, whose padding counts too.

    Raises:
      ConfigError: a model whose output has no logits.
    """
    inputs = {"input_ids": jnp.asarray(input_ids, jnp.int32), **inputs}
    *numbers, positions = _compare(model, params, adapter, merged, inputs)
    return MergeReport(*map(float, numbers), int(positions))


@functools.partial(jax.jit, static_argnums=0)
def _compare(model: nn.Module, params: Any, adapter: Any, merged: Any, inputs: Any) -> Any:
    own = _logits(model, {"params": params, COLLECTION: adapter}, inputs)
    other = _logits(model, {"params": merged}, inputs)
    difference = jnp.abs(own - other)
    same = jnp.argmax(own, -1) == jnp.argmax(other, -1)
    largest = jnp.max(jnp.abs(own))
    return jnp.max(difference), jnp.mean(difference), jnp.mean(same), largest, same.size


def _logits(model: nn.Module, variables: Any, inputs: Any) -> jax.Array:
    output = model.apply(variables, **inputs)
    if not hasattr(output, "logits"):
        raise ConfigError(
            f"{type(output).__name__} has no logits to compare; load the model with a head"
        )
    return output.logits.astype(jnp.float32)
