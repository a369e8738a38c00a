"""LARS: SGD whose step follows the size of each layer's weights (arXiv:1708.03888)."""

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fmjax.core import tree
from fmjax.core.errors import ConfigError
from fmjax.train.layerwise import STACK
from fmjax.train.optimizers import DECAY


def lars(
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: float = 0.9,
    weight_decay: float = 1e-6,
    trust_coefficient: float = 1e-3,
    decay: Sequence[tuple[str, bool]] = DECAY,
    stack: str = STACK,
) -> optax.GradientTransformation:
    """LARS as SimCLR trains with it (arXiv:2002.05709), for batches of thousands of images.

    A matrix w with gradient g takes the direction u = g + weight_decay · w at the rate
    learning_rate · trust_coefficient · ‖w‖ / ‖u‖ (or learning_rate, where one of them is 0); what
    is not decayed (biases, norms) takes g at learning_rate. The rate is inside the momentum:
    v ← momentum · v + rate · u, w ← w − v. Rates are large: SimCLR's is 0.3 · batch / 256.

    Args:
      learning_rate: a float or a schedule.
      momentum, weight_decay, trust_coefficient: see above.
      decay: ordered (regex, bool) over paths, as of `adamw`: what is decayed and scaled.
      stack: regex of the names of scanned stacks, in whose leaves [L, …] each layer has a norm of
        its own.

    Raises:
      ConfigError: a number out of range; at `init`, a path without a rule.
    """
    if not callable(learning_rate) and learning_rate < 0:
        raise ConfigError(f"learning_rate {learning_rate} is negative")
    if not 0 <= momentum < 1:
        raise ConfigError(f"lars: momentum {momentum} must lie in [0, 1)")
    if weight_decay < 0 or trust_coefficient <= 0:
        raise ConfigError(
            f"lars: weight_decay {weight_decay} must not be negative and trust_coefficient "
            f"{trust_coefficient} must be positive"
        )
    scanned = re.compile(rf"(^|/)({stack})/")

    def direction(path: str, g: jax.Array, w: jax.Array, chosen: bool) -> jax.Array:
        if not chosen:
            return g
        u = g.astype(jnp.float32) + weight_decay * w.astype(jnp.float32)
        axes = tuple(range(1 if scanned.search(path) else 0, w.ndim))
        sizes = [jnp.sqrt(jnp.sum(jnp.square(x.astype(jnp.float32)), axes)) for x in (w, u)]
        usual = (sizes[0] > 0) & (sizes[1] > 0)
        trust = trust_coefficient * sizes[0] / jnp.where(usual, sizes[1], 1)
        trust = jnp.where(usual, trust, 1)
        return (u * trust.reshape(trust.shape + (1,) * len(axes))).astype(g.dtype)

    def init(params: Any) -> optax.EmptyState:
        tree.match_rules(decay, params, "decay rule")
        return optax.EmptyState()

    def update(grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        chosen = tree.match_rules(decay, params, "decay rule")
        return tree.map_with_path(direction, grads, params, chosen), state

    return optax.chain(
        optax.GradientTransformation(init, update),
        optax.scale_by_learning_rate(learning_rate),
        optax.trace(momentum),
    )
