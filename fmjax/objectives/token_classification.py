"""One class for each token: named entities, parts of speech."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fmjax.objectives.classes import ClassWeights, check_options, class_sums
from fmjax.objectives.inputs import (
    Batch,
    Metrics,
    OverExamples,
    example_weight,
    forward,
    output_field,
    target,
)


@dataclasses.dataclass(frozen=True)
class TokenClassification(OverExamples):
    """Cross-entropy of the tokens' classes, the mean over all labelled tokens of the batch.

    Attributes:
      class_weights: one for each class; the mean divides by the sum of those of the true classes.
      label_smoothing: share of the target that all classes get alike.

    Raises:
      ConfigError: options out of range.
    """

    class_weights: ClassWeights = None
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_options(self.class_weights, self.label_smoothing)

    def loss(
        self,
        apply: Callable[..., Any],
        variables: Any,
        extra: Any,
        batch: Batch,
        rng: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array, Metrics, Any]:
        """Sum of the losses and of their weights, over the labelled tokens.

        Args:
          apply: `model.apply`; its output has `logits` [B, T, N].
          variables: of the model.
          extra: what `init` gave; returned as it is.
          batch: input_ids, attention_mask, token_type_ids and labels i32[B, T], -100 where there
            is nothing to predict (special tokens, later pieces of a word, padding);
            example_weight f32[B] multiplies the weights of a row.
          rng: key for dropout; None evaluates.

        Returns:
          loss_sum f32, weight f32, metrics {name: (sum, weight)}, extra.

        Raises:
          DataError: labels of another shape or dtype.
          ConfigError: a model with another head, or class_weights of another length than N.
        """
        output = forward(apply, variables, batch, rng)
        logits = output_field(output, "logits", 3, "token-classification")
        what = "the number of each token's class, or -100"
        labels = target(batch, "labels", jnp.integer, [logits.shape[:2]], what)
        rows = example_weight(batch)[:, None]
        return *class_sums(logits, labels, rows, self.class_weights, self.label_smoothing), extra
