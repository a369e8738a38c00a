"""BERT's pretraining: hidden tokens, and whether the second sentence follows the first."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fmjax.objectives.classes import class_sums
from fmjax.objectives.inputs import (
    Batch,
    Metrics,
    Stateless,
    example_weight,
    output_field,
    target,
)
from fmjax.objectives.masked_lm import MaskedLM


@dataclasses.dataclass(frozen=True)
class Pretraining(Stateless):
    """The masked language model's loss plus that of the next sentence (arXiv:1810.04805).

    Each is a mean of its own, over hidden tokens and over rows. Accumulation weighs the rows of a
    microbatch by its number of hidden tokens; metrics are exact over any batches.

    Metrics: loss (the sum of both), masked_lm_loss, next_sentence_loss, next_sentence_accuracy,
    and the masked language model's accuracy.

    Attributes:
      masked_lm: chooses and predicts the tokens.
    """

    masked_lm: MaskedLM

    def loss(
        self,
        apply: Callable[..., Any],
        variables: Any,
        extra: Any,
        batch: Batch,
        rng: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array, Metrics, Any]:
        """Sum of the losses over the hidden tokens, and their number.

        Args:
          apply: `model.apply`; its output has `logits` [B, T, V], `seq_relationship_logits` [B, 2].
          variables: of the model.
          extra: what `init` gave; returned as it is.
          batch: see `MaskedLM.loss`; next_sentence_label i32[B], 0 where the second sentence
            follows the first, 1 where it does not, -100 ignored.
          rng: key for the choice of tokens and for dropout; None evaluates.

        Returns:
          loss_sum f32, weight f32, metrics {name: (sum, weight)}, extra.

        Raises:
          DataError: next_sentence_label of another shape or dtype.
          ConfigError: a model with another head.
        """
        output, labels = self.masked_lm.forward(apply, variables, batch, rng)
        follows = output_field(output, "seq_relationship_logits", 2, "pretraining")
        what = "0 where the second sentence follows the first and 1 where not"
        answer = target(batch, "next_sentence_label", jnp.integer, [follows.shape[:1]], what)
        masked_sum, weight, metrics = self.masked_lm.sums(output.logits, labels, batch, rng)
        next_sum, rows, of_next = class_sums(follows, answer, example_weight(batch))
        loss_sum = masked_sum + weight * next_sum / jnp.where(rows > 0, rows, 1)
        metrics |= {
            "loss": (loss_sum, weight),
            "masked_lm_loss": metrics["loss"],
            **{f"next_sentence_{name}": sums for name, sums in of_next.items()},
        }
        return loss_sum, weight, metrics, extra

    def summarize(self, means: Mapping[str, float]) -> dict[str, float]:
        """The loss as the sum of both means over all batches, and a hidden token's perplexity."""
        masked = means["masked_lm_loss"]
        summary = self.masked_lm.summarize({**means, "loss": masked})
        return {**summary, "loss": masked + means["next_sentence_loss"]}
