"""Extractive question answering: the first and the last token of the answer."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fmjax.objectives.classes import class_sums
from fmjax.objectives.cross_entropy import is_top
from fmjax.objectives.inputs import (
    IGNORE,
    Batch,
    Metrics,
    OverExamples,
    example_weight,
    forward,
    output_field,
    target,
)

HEAD = "question-answering"


@dataclasses.dataclass(frozen=True)
class QuestionAnswering(OverExamples):
    """Cross-entropy over the row's tokens of where the answer starts, and of where it ends.

    The loss is the mean over all starts and ends that lie inside the row; those at T or beyond are
    ignored, and negative ones count as 0, as in transformers. transformers averages the starts and
    the ends each by their own number; that is the same unless a batch has more of the ones inside
    than of the others, and would not add up over microbatches.

    Metrics: loss, accuracy (both ends right).
    """

    def loss(
        self,
        apply: Callable[..., Any],
        variables: Any,
        extra: Any,
        batch: Batch,
        rng: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array, Metrics, Any]:
        """Sum over the rows of the mean of both losses, and the number of rows.

        Args:
          apply: `model.apply`; its output has `start_logits` and `end_logits` [B, T].
          variables: of the model.
          extra: what `init` gave; returned as it is.
          batch: input_ids, attention_mask, token_type_ids i32[B, T]; start_positions and
            end_positions i32[B], the answer's first and last token (both the first token of the
            row where it holds no answer); example_weight f32[B] multiplies the weight of a row.
          rng: key for dropout; None evaluates.

        Returns:
          loss_sum f32, weight f32, metrics {name: (sum, weight)}, extra.

        Raises:
          DataError: positions of another shape or dtype.
          ConfigError: a model with another head.
        """
        output = forward(apply, variables, batch, rng)
        starts, ends = (output_field(output, f"{e}_logits", 2, HEAD) for e in ("start", "end"))
        B, T = starts.shape
        first, last = (
            target(batch, f"{end}_positions", jnp.integer, [(B,)], f"the answer's {what} token")
            for end, what in (("start", "first"), ("end", "last"))
        )
        logits, labels = jnp.stack([starts, ends], 1), jnp.stack([first, last], 1)  # [B, 2, T]
        labels = jnp.where(labels < T, jnp.maximum(labels, 0), IGNORE)
        rows = example_weight(batch)
        both_sum, both_weight, _ = class_sums(logits, labels, rows[:, None])
        loss_sum, weight = both_sum / 2, both_weight / 2
        inside = jnp.all(labels != IGNORE, 1) * rows
        right = jnp.sum(jnp.all(is_top(logits, labels), 1) * inside)
        metrics = {"loss": (loss_sum, weight), "accuracy": (right, jnp.sum(inside))}
        return loss_sum, weight, metrics, extra
