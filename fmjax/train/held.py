"""Parameters that start to learn later than the others, as if their optimizer were new then."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fmjax.core import tree
from fmjax.core.errors import ConfigError


class HeldState(NamedTuple):
    """Of `held`.

    Attributes:
      count: i32 [], updates applied.
      rest: state of the optimizer of all other parameters.
      held: state of the optimizer of the parameters that are held at the start.
    """

    count: jax.Array
    rest: Any
    held: Any


def held(
    build: Callable[[int], optax.GradientTransformation], pattern: str, steps: int
) -> optax.GradientTransformation:
    """Leaves the matching parameters alone for the first `steps` updates.

    Weight decay does not shrink them meanwhile, and the optimizer's moments and their count start
    at the release, as of torch's parameters whose gradient is None until then. Zero gradients would
    leave a second moment of 0 that passes for an average over many updates, and Adam's first
    update after them would be several times too large.

    Schedules count the updates of a run, but an optimizer those that it made itself. So there are
    two, and each is told where it starts:

        held(lambda start: adamw(schedules.later(rate, start)), LAST_LAYER, 1000)

    It goes inside `with_ema`. The gradients of held parameters count in the norm that the step
    clips by, unless the objective stops them.

    Args:
      build: start → an optimizer whose schedules begin at update `start`; called with 0 for all
        other parameters and with `steps` for these.
      pattern: regex searched in paths such as "params/head/last_layer/kernel".
      steps: updates in which they stand still; 0 holds nothing.

    Raises:
      ConfigError: steps below zero; at `init`, a pattern that no trained parameter matches.
    """
    if steps < 0:
        raise ConfigError(f"held: {steps} steps must not be negative")
    if steps == 0:
        return build(0)
    of_rest, of_held = build(0), build(steps)

    def divide(params: Any) -> tuple[Any, Any]:
        mask = tree.map_with_path(lambda path, _: bool(re.search(pattern, path)), params)
        return tree.partition(params, mask)

    def init(params: Any) -> HeldState:
        late, rest = divide(params)
        if not late:
            raise ConfigError(f"held: no trained parameter matches {pattern!r}")
        return HeldState(jnp.zeros([], jnp.int32), of_rest.init(rest), of_held.init(late))

    def update(grads: Any, state: HeldState, params: Any) -> tuple[Any, HeldState]:
        (late, rest), (late_params, rest_params) = divide(grads), divide(params)
        rest, of_others = of_rest.update(rest, state.rest, rest_params)
        late, own = of_held.update(late, state.held, late_params)
        released = state.count >= steps
        late = jax.tree.map(lambda u: jnp.where(released, u, jnp.zeros_like(u)), late)
        own = jax.tree.map(lambda new, old: jnp.where(released, new, old), own, state.held)
        count = optax.safe_increment(state.count)
        return tree.combine(rest, late), HeldState(count, of_others, own)

    return optax.GradientTransformation(init, update)
