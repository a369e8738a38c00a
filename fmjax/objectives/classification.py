"""One answer for a text: a class, several labels, or numbers."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from fmjax.core.errors import ConfigError
from fmjax.objectives.classes import ClassWeights, check_options, class_sums, weights_array
from fmjax.objectives.inputs import (
    Batch,
    Metrics,
    OverExamples,
    example_weight,
    forward,
    output_field,
    target,
)

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]


@dataclasses.dataclass(frozen=True)
class SequenceClassification(OverExamples):
    """The losses of transformers' `…ForSequenceClassification`, for logits [B, N].

    - single_label_classification: cross-entropy; labels i32[B] in [0, N), -100 is ignored.
    - multi_label_classification: binary cross-entropy of each label; labels f32[B, N] of 0 and 1.
    - regression: squared error; labels f32[B, N], or f32[B] for N = 1.

    Losses are means over the examples (and the N outputs), as torch takes them. Metrics: loss, and
    accuracy (several labels: of a row as a whole, as scikit-learn's; in evaluation also micro_f1)
    or mean_absolute_error.

    Attributes:
      problem_type: which of the three.
      class_weights: one for each class; the mean divides by the sum of those of the true classes
        (torch's `CrossEntropyLoss(weight=…)`). Several labels: weights of the ones, which the mean
        does not divide by (torch's `BCEWithLogitsLoss(pos_weight=…)`).
      label_smoothing: share of the target that all classes get alike; single label only.

    Raises:
      ConfigError: an unknown problem type, or an option that it does not have.
    """

    problem_type: ProblemType = "single_label_classification"
    class_weights: ClassWeights = None
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        kind = self.problem_type
        if kind not in get_args(ProblemType):
            raise ConfigError(
                f"problem_type {kind!r} is unknown; choose {', '.join(get_args(ProblemType))}"
            )
        check_options(self.class_weights, self.label_smoothing)
        if self.class_weights is not None and kind == "regression":
            raise ConfigError("a regression has no classes; leave class_weights out")
        if self.label_smoothing and kind != "single_label_classification":
            raise ConfigError(
                f"label_smoothing is for single_label_classification, not {kind}; set it to 0"
            )

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
          batch: input_ids, attention_mask, token_type_ids i32[B, T]; labels as above;
            example_weight f32[B] multiplies the weight of a row.
          rng: key for dropout; None evaluates.

        Returns:
          loss_sum f32, weight f32, metrics {name: (sum, weight)}, extra.

        Raises:
          DataError: labels of another shape or dtype than the problem's.
          ConfigError: a model with another head, or class_weights of another length than N.
        """
        output = forward(apply, variables, batch, rng)
        logits = output_field(output, "logits", 2, "sequence-classification")
        (B, N), rows = logits.shape, example_weight(batch)
        if self.problem_type == "single_label_classification":
            what = f"the number of each row's class ({self.problem_type})"
            labels = target(batch, "labels", jnp.integer, [(B,)], what)
            sums = class_sums(logits, labels, rows, self.class_weights, self.label_smoothing)
        elif self.problem_type == "multi_label_classification":
            what = f"1 for the labels that a row has and 0 for others ({self.problem_type})"
            labels = target(batch, "labels", jnp.floating, [(B, N)], what)
            sums = self._several(logits, labels, rows, evaluate=rng is None)
        else:
            shapes = [(B, N)] if N > 1 else [(B,), (B, 1)]
            what = "the numbers to predict (regression)"
            labels = target(batch, "labels", jnp.floating, shapes, what)
            sums = squared_error_sums(logits, labels.reshape(B, N), rows)
        return *sums, extra

    def _several(
        self, logits: jax.Array, labels: jax.Array, rows: jax.Array, evaluate: bool
    ) -> tuple[jax.Array, jax.Array, Metrics]:
        """Of N yes-or-no answers a row: logits, labels [B, N], rows [B]."""
        ones = weights_array(self.class_weights, logits.shape[1])
        x, y = logits.astype(jnp.float32), labels.astype(jnp.float32)
        losses = ones * y * jax.nn.softplus(-x) + (1 - y) * jax.nn.softplus(x)
        loss_sum = jnp.sum(losses * rows[:, None])
        weight = jnp.sum(rows) * x.shape[1]
        said, true = x > 0, y > 0.5
        right = jnp.sum(jnp.all(said == true, 1) * rows)
        metrics = {"loss": (loss_sum, weight), "accuracy": (right, jnp.sum(rows))}
        if evaluate:
            # 2·TP / (2·TP + FP + FN) is a quotient of sums, so it adds up over batches.
            hits = 2 * jnp.sum((said & true) * rows[:, None])
            marks = jnp.sum((said.astype(jnp.float32) + true) * rows[:, None])
            metrics["micro_f1"] = (hits, marks)
        return loss_sum, weight, metrics


def squared_error_sums(
    predictions: jax.Array, labels: jax.Array, rows: jax.Array
) -> tuple[jax.Array, jax.Array, Metrics]:
    """Of predictions and labels [B, N], with weights of rows [B]."""
    error = predictions.astype(jnp.float32) - labels.astype(jnp.float32)
    weight = jnp.sum(rows) * error.shape[1]
    loss_sum = jnp.sum(jnp.square(error) * rows[:, None])
    absolute = jnp.sum(jnp.abs(error) * rows[:, None])
    return (
        loss_sum,
        weight,
        {"loss": (loss_sum, weight), "mean_absolute_error": (absolute, weight)},
    )
