"""Exponential moving average of the trained parameters, kept by the optimizer."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fmjax.core import tree
from fmjax.core.errors import ConfigError
from fmjax.train.state import TrainState


class EmaState(NamedTuple):
    """Of `with_ema`.

    Attributes:
      count: i32 [], updates averaged.
      average: the parameters' tree, f32.
      inner: state of the optimizer.
    """

    count: jax.Array
    average: Any
    inner: Any


def with_ema(
    optimizer: optax.GradientTransformation, decay: float, *, warmup: bool = False
) -> optax.GradientTransformation:
    """The same updates, and an average of the parameters that they lead to.

    average ← d · average + (1 − d) · parameters, in float32, from the parameters at the start. It
    goes around everything that changes updates:

        with_ema(optax.chain(adamw(1e-4), lora_plus(16)), 0.999)

    The average is split over a mesh as its parameters are, and saved with the optimizer's state.

    Args:
      optimizer: whose updates are applied.
      decay: d, in [0, 1).
      warmup: d = min(decay, (1 + t) / (10 + t)) at update t = 0, 1, …, so that the start is soon
        forgotten; as TensorFlow's average with `num_updates`.

    Raises:
      ConfigError: a decay out of range.
    """
    if not 0 <= decay < 1:
        raise ConfigError(f"with_ema: decay {decay} must lie in [0, 1)")

    def init(params: Any) -> EmaState:
        average = jax.tree.map(lambda p: jnp.array(p, jnp.float32, copy=True), params)
        return EmaState(jnp.zeros([], jnp.int32), average, optimizer.init(params))

    def update(grads: Any, state: EmaState, params: Any) -> tuple[Any, EmaState]:
        updates, inner = optimizer.update(grads, state.inner, params)
        t = state.count.astype(jnp.float32)
        d = jnp.minimum(decay, (1 + t) / (10 + t)) if warmup else decay
        average = jax.tree.map(
            lambda a, p: a + (1 - d) * (p.astype(jnp.float32) - a),
            state.average,
            optax.apply_updates(params, updates),
        )
        return updates, EmaState(optax.safe_increment(state.count), average, inner)

    return optax.GradientTransformation(init, update)


def ema_params(opt_state: Any) -> Any:
    """The average in an optimizer's state: the tree of the trained variables, f32.

    Raises:
      ConfigError: the optimizer keeps none.
    """
    is_ema = lambda node: isinstance(node, EmaState)  # noqa: E731
    found = [x for x in jax.tree.leaves(opt_state, is_leaf=is_ema) if is_ema(x)]
    if not found:
        raise ConfigError("the optimizer keeps no average of the parameters; use with_ema(…)")
    return found[0].average


def averaged(state: TrainState) -> TrainState:
    """The state with the average in place of the trained variables, in their dtypes.

    To evaluate and to export, not to go on training with: float32 arrays are the average's own.

        metrics = evaluate(step, averaged(state), batches)
        fmjax.save_pretrained(directory, model, averaged(state).variables["params"])

    Raises:
      ConfigError: the optimizer keeps none.
    """
    average = tree.flatten(ema_params(state.opt_state))

    def pick(path: str, leaf: Any) -> Any:
        if path not in average:
            return leaf
        # It may lie in another memory than its parameter.
        return jax.device_put(average[path], leaf.sharding).astype(leaf.dtype)

    return state.replace(variables=tree.map_with_path(pick, state.variables))
