"""Supervised classification of images, by hard or soft labels."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fmjax.core.errors import ConfigError, DataError
from fmjax.objectives.classes import check_options, weighted_cross_entropy
from fmjax.objectives.cross_entropy import picked
from fmjax.objectives.image_inputs import forward_images, pixels
from fmjax.objectives.inputs import (
    IGNORE,
    Batch,
    Metrics,
    OverExamples,
    example_weight,
    output_field,
)


@dataclasses.dataclass(frozen=True)
class ImageClassification(OverExamples):
    """Cross-entropy of a class for each image, in nats.

    Labels are numbers i32 [B] (−100 is ignored) or shares f32 [B, N], as mixup and CutMix make
    them. Metrics: loss, accuracy, and top5_accuracy where there are more than five classes; of soft
    labels, in training, they say how often the largest share's class is found.

    Attributes:
      label_smoothing: share of the target that all classes get alike (arXiv:1512.00567).

    Raises:
      ConfigError: a smoothing outside [0, 1].
    """

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_options(None, self.label_smoothing)

    def loss(
        self,
        apply: Callable[..., Any],
        variables: Any,
        extra: Any,
        batch: Batch,
        rng: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array, Metrics, Any]:
        """Sum of the losses and of their weights, over the batch.

        Args:
          apply: `model.apply`; its output has `logits` [B, N].
          variables: of the model.
          extra: what `init` gave; returned as it is.
          batch: pixel_values f32 [B, H, W, C]; labels as above; example_weight f32 [B] multiplies
            the weight of a row.
          rng: key for dropout; None evaluates.

        Returns:
          loss_sum f32, weight f32, metrics {name: (sum, weight)}, extra.

        Raises:
          DataError: labels of another shape or dtype.
          ConfigError: a model without this head, or with a single class.
        """
        output = forward_images(apply, variables, pixels(batch), rng)
        logits = output_field(output, "logits", 2, "image-classification")
        if logits.shape[1] < 2:
            raise ConfigError(
                "image classification needs two classes or more, as the share of a single one is "
                "always 1; name them in id2label"
            )
        labels, rows = _labels(batch, logits), example_weight(batch)
        if labels.ndim == 1:
            losses, weights = weighted_cross_entropy(logits, labels, None, self.label_smoothing)
            true, counted = labels, (labels != IGNORE) * rows
        else:
            losses, weights = soft_cross_entropy(logits, labels, self.label_smoothing)
            true, counted = jnp.argmax(labels, -1), weights * rows
        loss_sum, weight = jnp.sum(losses * rows), jnp.sum(weights * rows)
        metrics = {"loss": (loss_sum, weight)}
        ahead = ranked_above(logits, true)
        for name, k in (("accuracy", 1), ("top5_accuracy", 5)):
            if logits.shape[1] > k:
                metrics[name] = (jnp.sum((ahead < k) * counted), jnp.sum(counted))
        return loss_sum, weight, metrics, extra


def _labels(batch: Batch, logits: jax.Array) -> jax.Array:
    B, N = logits.shape
    labels = batch.get("labels")
    labels = None if labels is None else jnp.asarray(labels)
    hard = labels is not None and labels.shape == (B,) and jnp.issubdtype(labels.dtype, jnp.integer)
    soft = (
        labels is not None and labels.shape == (B, N) and jnp.issubdtype(labels.dtype, jnp.floating)
    )
    if not (hard or soft):
        got = "missing" if labels is None else f"{labels.dtype} of shape {labels.shape}"
        raise DataError(
            f"labels are {got}; they must be class numbers, integers of shape ({B},), or shares of "
            f"the model's {N} classes, floats of shape ({B}, {N})"
        )
    return labels


def soft_cross_entropy(
    logits: jax.Array, shares: jax.Array, label_smoothing: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """−Σ_c share_c · log softmax(logits)_c, and 1 for each row.

    Args:
      logits: float [B, N].
      shares: f32 [B, N], that sum to 1.
      label_smoothing: ε; shares become (1 − ε) · share + ε / N.

    Returns:
      losses f32 [B] in nats, weights f32 [B].
    """
    x, shares = logits.astype(jnp.float32), shares.astype(jnp.float32)
    if label_smoothing:
        shares = (1 - label_smoothing) * shares + label_smoothing / x.shape[-1]
    losses = -jnp.sum(shares * jax.nn.log_softmax(x, -1), -1)
    return losses, jnp.ones(x.shape[0], jnp.float32)


def ranked_above(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """How many other classes are no worse than the true one: float [B, N], i32 [B] → i32 [B].

    A tie counts against it, and so does a logit that is not a number.
    """
    score = picked(logits, labels)[..., None]
    return jnp.sum(~(logits.astype(jnp.float32) < score), -1) - 1
