"""Choosing one of N classes: cross-entropy with weights for classes and smoothed labels."""

import math

import jax
import jax.numpy as jnp

from fmjax.core.errors import ConfigError
from fmjax.objectives.cross_entropy import is_top, nll_and_logsumexp
from fmjax.objectives.inputs import IGNORE, Metrics

ClassWeights = tuple[float, ...] | None


def check_options(class_weights: ClassWeights, label_smoothing: float) -> None:
    """Raises ConfigError for weights that are not finite and ≥ 0, or a smoothing outside [0, 1]."""
    if class_weights is not None and not all(w >= 0 and math.isfinite(w) for w in class_weights):
        raise ConfigError(f"class_weights {class_weights} must be finite and not negative")
    if not 0 <= label_smoothing <= 1:
        raise ConfigError(f"label_smoothing={label_smoothing} must be in [0, 1]")


def weights_array(class_weights: ClassWeights, classes: int) -> jax.Array:
    """f32[N]; ones for None.

    Raises:
      ConfigError: not one weight for each of the model's N outputs.
    """
    if class_weights is None:
        return jnp.ones(classes, jnp.float32)
    if len(class_weights) != classes:
        raise ConfigError(
            f"class_weights has {len(class_weights)} entries and the model {classes} outputs; "
            "give one weight for each"
        )
    return jnp.asarray(class_weights, jnp.float32)


def weighted_cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    class_weights: ClassWeights = None,
    label_smoothing: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Losses and weights, whose sums' quotient is the mean of torch's `CrossEntropyLoss`.

    With weights w and smoothing ε the loss of label y is (1 − ε)·w_y·nll_y + ε/N·Σ_c w_c·nll_c, and
    its weight w_y (arXiv:1512.00567, section 7, for the smoothing).

    Args:
      logits: float[..., N].
      labels: int[...] in [0, N), or `IGNORE`. Any other number makes its loss NaN, so that the
        step is skipped and counted, not learnt from.
      class_weights: one for each class.
      label_smoothing: ε.

    Returns:
      losses f32[...] in nats, weights f32[...]; both 0 where the label is `IGNORE`.
    """
    N = logits.shape[-1]
    weights_N = weights_array(class_weights, N)
    ignored = labels == IGNORE
    known = (labels >= 0) & (labels < N)
    chosen = jnp.where(known, labels, 0)
    nll, logsumexp = nll_and_logsumexp(logits, chosen)
    weights = jnp.where(ignored, 0, weights_N[chosen])
    losses = nll * weights_N[chosen]
    if label_smoothing:
        # Σ_c w_c·nll_c / N; all classes share the log-partition.
        mean = jnp.sum(logits.astype(jnp.float32) * weights_N, -1) / N
        even = logsumexp * jnp.mean(weights_N) - mean
        losses = (1 - label_smoothing) * losses + label_smoothing * even
    return jnp.where(ignored, 0, jnp.where(known, losses, jnp.nan)), weights


def class_sums(
    logits: jax.Array,
    labels: jax.Array,
    rows: jax.Array,
    class_weights: ClassWeights = None,
    label_smoothing: float = 0.0,
) -> tuple[jax.Array, jax.Array, Metrics]:
    """Sum of the losses, of their weights, and the metrics loss and accuracy.

    Args:
      logits: float[..., N].
      labels: int[...], see `weighted_cross_entropy`.
      rows: f32, multiplies each label's weight; broadcasts to `labels`.
      class_weights, label_smoothing: of the loss. The accuracy counts all classes alike.
    """
    losses, weights = weighted_cross_entropy(logits, labels, class_weights, label_smoothing)
    loss_sum, weight = jnp.sum(losses * rows), jnp.sum(weights * rows)
    counted = (labels != IGNORE) * rows
    right = jnp.sum(is_top(logits, labels) * counted)
    return (
        loss_sum,
        weight,
        {"loss": (loss_sum, weight), "accuracy": (right, jnp.sum(counted))},
    )
