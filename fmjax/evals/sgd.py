"""Linear classifiers trained by stochastic gradient descent, for many learning rates at once.

Shapes: B examples, D width of the features, N classes, R learning rates.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fmjax.core.errors import ConfigError
from fmjax.evals.logistic import LinearClassifier


class SgdFit(NamedTuple):
    """One classifier for each learning rate: kernel f32[R, D, N], bias f32[R, N]."""

    kernel: np.ndarray
    bias: np.ndarray

    def classifier(self, r: int) -> LinearClassifier:
        """That of the setting with this number."""
        return LinearClassifier(self.kernel[r], self.bias[r])


def batch_order(number: int, batch_size: int, epochs: int, seed: int) -> np.ndarray:
    """i32[steps, batch_size]: each epoch is a permutation, whose last, partial, batch is left out.

    Raises:
      ConfigError: a number that is not at least 1.
    """
    if min(batch_size, epochs) < 1:
        raise ConfigError(f"batch_size {batch_size} and epochs {epochs} must be at least 1")
    size = min(batch_size, number)
    rng = np.random.default_rng(seed)
    order = [rng.permutation(number)[: number // size * size] for _ in range(epochs)]
    return np.concatenate(order).reshape(-1, size).astype(np.int32)


def fit_sgd(
    features: Any,
    labels: Any,
    classes: int,
    rates: Any,
    *,
    epochs: int = 100,
    batch_size: int = 1024,
    momentum: float = 0.9,
    seed: int = 0,
) -> SgdFit:
    """Minimises cross-entropy as DINO's linear evaluation does (Caron et al. 2021).

    SGD with momentum and without weight decay, from zeros; rates are for a batch of 256, scale with
    the batch and fall along a cosine to 0. All features stay on the device.

    Args:
      features: f[B, D].
      labels: i[B], below `classes`.
      classes: N.
      rates: f[R], above 0.
      epochs, batch_size, seed: see `batch_order`.
      momentum: of the gradients.

    Raises:
      ConfigError: a number out of range.
    """
    rates = np.atleast_1d(np.asarray(rates, np.float32))
    if not rates.size or not (rates > 0).all() or not 0 <= momentum < 1:
        raise ConfigError(
            f"learning rates {rates.tolist()} must be more than 0, and momentum {momentum} in 0 to "
            "1"
        )
    features, labels = np.asarray(features, np.float32), np.asarray(labels, np.int32)
    order = batch_order(len(features), batch_size, epochs, seed)
    scaled = rates * order.shape[1] / 256
    fitted = _fit(features, labels, order, scaled, momentum, classes=classes)
    return SgdFit(*jax.device_get(fitted))


@functools.partial(jax.jit, static_argnames="classes")
def _fit(
    features: jax.Array,
    labels: jax.Array,
    order: jax.Array,
    rates: jax.Array,
    momentum: Any,
    *,
    classes: int,
) -> tuple[jax.Array, jax.Array]:
    steps = len(order)

    def loss(params: Any, x_BD: jax.Array, labels_B: jax.Array) -> jax.Array:
        logits_BN = params[1] + jnp.matmul(x_BD, params[0], precision=jax.lax.Precision.HIGHEST)
        return optax.softmax_cross_entropy_with_integer_labels(logits_BN, labels_B).mean()

    def train(rate: jax.Array) -> Any:
        def step(carry: Any, now: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
            params, velocity = carry
            number, rows = now
            grads = jax.grad(loss)(params, features[rows], labels[rows])
            velocity = jax.tree.map(lambda v, g: momentum * v + g, velocity, grads)
            factor = rate * (1 + jnp.cos(jnp.pi * number / steps)) / 2
            return (jax.tree.map(lambda p, v: p - factor * v, params, velocity), velocity), None

        zeros = (jnp.zeros((features.shape[1], classes)), jnp.zeros(classes))
        return jax.lax.scan(step, (zeros, zeros), (jnp.arange(steps), order))[0][0]

    return jax.vmap(train)(rates)
