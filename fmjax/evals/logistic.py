"""Linear classifiers, and the regularised logistic regression that fits one on the device.

Shapes: B examples, D width of the features, N classes, G strengths of regularisation.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fmjax.core.errors import ConfigError


class LinearClassifier(NamedTuple):
    """logits = features @ kernel + bias: kernel f32[D, N], bias f32[N]."""

    kernel: np.ndarray
    bias: np.ndarray

    def logits(self, features: Any) -> np.ndarray:
        """f32[B, N] of features f[B, D]."""
        return np.asarray(features, np.float32) @ self.kernel + self.bias


class Fit(NamedTuple):
    """One classifier for each strength.

    Attributes:
      kernel: f32[G, D, N].
      bias: f32[G, N].
      loss: f32[G], mean cross-entropy plus penalty, in nats.
      steps: i32[G], steps of L-BFGS.
      slope: f32[G], largest absolute entry of the gradient at the end.
    """

    kernel: np.ndarray
    bias: np.ndarray
    loss: np.ndarray
    steps: np.ndarray
    slope: np.ndarray

    def classifier(self, g: int) -> LinearClassifier:
        """That of the setting with this number."""
        return LinearClassifier(self.kernel[g], self.bias[g])


def fit_logistic(
    features: Any,
    labels: Any,
    classes: int,
    l2: Any,
    *,
    max_steps: int = 2000,
    tolerance: float = 1e-5,
    chunk: int = 8192,
) -> Fit:
    """Minimises mean cross-entropy + l2 / 2 · |kernel|², the bias being free, for all l2 at once.

    Convex, so there is one optimum; scikit-learn's `LogisticRegression(C=1 / (l2 · B))` has the
    same. L-BFGS (Liu & Nocedal 1989) with a line search for the strong Wolfe conditions. The
    features stay on the device; the logits of `chunk` examples are held at a time.

    Args:
      features: f[B, D].
      labels: i[B], below `classes`.
      classes: N.
      l2: f[G], above 0.
      max_steps: of L-BFGS.
      tolerance: a fit ends when no entry of its gradient is larger.
      chunk: examples in one product.

    Raises:
      ConfigError: a strength or number that is not above 0.
    """
    l2 = np.atleast_1d(np.asarray(l2, np.float32))
    if not l2.size or not (l2 > 0).all():
        raise ConfigError(f"l2 {l2.tolist()} must be more than 0, or there may be no optimum")
    if min(max_steps, chunk) < 1 or not tolerance > 0:
        raise ConfigError(
            f"max_steps {max_steps}, chunk {chunk} and tolerance {tolerance} must be more than 0"
        )
    features, labels = np.asarray(features, np.float32), np.asarray(labels, np.int32)
    chunk = min(chunk, len(features))
    parts = -(-len(features) // chunk)
    spare = parts * chunk - len(features)
    rows = (
        np.pad(features, ((0, spare), (0, 0))).reshape(parts, chunk, -1),
        # One-hot encoding leaves out what is no class.
        np.pad(labels, (0, spare), constant_values=-1).reshape(parts, chunk),
    )
    fitted = _fit(rows, l2, len(features), tolerance, classes=classes, max_steps=max_steps)
    return Fit(*jax.device_get(fitted))


@functools.partial(jax.jit, static_argnames=("classes", "max_steps"))
def _fit(rows: Any, l2: jax.Array, number: Any, tolerance: Any, *, classes: int, max_steps: int):
    return jax.vmap(lambda s: _fit_one(rows, s, number, tolerance, classes, max_steps))(l2)


def _fit_one(
    rows: tuple[jax.Array, jax.Array],
    l2: jax.Array,
    number: jax.Array,
    tolerance: jax.Array,
    classes: int,
    max_steps: int,
) -> tuple[jax.Array, ...]:
    @jax.checkpoint  # the logits of a chunk are not kept for the gradient
    def add(total: jax.Array, part: tuple[jax.Array, jax.Array], params: Any) -> jax.Array:
        x_BD, labels_B = part
        logits_BN = params["bias"] + jnp.matmul(
            x_BD, params["kernel"], precision=jax.lax.Precision.HIGHEST
        )
        right_B = jnp.sum(jax.nn.one_hot(labels_B, classes) * logits_BN, -1)
        losses_B = jax.nn.logsumexp(logits_BN, -1) - right_B
        return total + jnp.sum(jnp.where(labels_B >= 0, losses_B, 0))

    def loss(params: Any) -> jax.Array:
        total, _ = jax.lax.scan(
            lambda total, part: (add(total, part, params), None), jnp.zeros(()), rows
        )
        return total / number + l2 / 2 * jnp.sum(params["kernel"] ** 2)

    optimizer = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)
    width = rows[0].shape[-1]
    params = {"kernel": jnp.zeros((width, classes)), "bias": jnp.zeros(classes)}

    def slope(grads: Any) -> jax.Array:
        return jnp.max(jnp.stack([jnp.max(jnp.abs(g)) for g in jax.tree.leaves(grads)]))

    def unfinished(carry: Any) -> jax.Array:
        _, state, step, moved = carry
        steep = slope(optax.tree.get(state, "grad")) > tolerance
        return (step == 0) | ((step < max_steps) & steep & moved)

    def advance(carry: Any) -> Any:
        params, state, step, _ = carry
        value, grads = value_and_grad(params, state=state)
        updates, state = optimizer.update(
            grads, state, params, value=value, grad=grads, value_fn=loss
        )
        # In float32 the line search finds nothing lower some way before the gradient is zero.
        moved = slope(updates) > 0
        return optax.apply_updates(params, updates), state, step + 1, moved

    start = (params, optimizer.init(params), jnp.zeros((), jnp.int32), jnp.array(True))
    params, state, steps, _ = jax.lax.while_loop(unfinished, advance, start)
    value, grads = value_and_grad(params, state=state)
    return params["kernel"], params["bias"], value, steps, slope(grads)
