"""Sentence embeddings: texts that belong together lie close (arXiv:1908.10084)."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fmjax.core.errors import ConfigError, DataError
from fmjax.core.logical import constrain
from fmjax.nn.pooling import sentence_embeddings
from fmjax.objectives.classification import squared_error_sums
from fmjax.objectives.cross_entropy import is_top, nll_and_logsumexp
from fmjax.objectives.inputs import (
    INPUTS,
    Batch,
    Metrics,
    OverExamples,
    example_weight,
    forward,
    target,
)


@dataclasses.dataclass(frozen=True)
class SentenceEmbedding(OverExamples):
    """Contrasts B anchors with the positives of all (and with hard negatives), or fits cosines.

    Contrastive (arXiv:1705.00652, sentence-transformers' MultipleNegativesRankingLoss): the
    cross-entropy of picking an anchor's own positive among the (K − 1)·B candidates of the global
    batch, by cosine / temperature. The loss depends on the batch as a whole, so it cannot be
    accumulated, and losses of different batch sizes do not compare. Metrics: loss, accuracy (the
    share of anchors whose positive is the nearest).

    Regression (sentence-transformers' CosineSimilarityLoss): squared error of the cosine of two
    texts. Metrics: loss, mean_absolute_error.

    Attributes:
      temperature: divides the cosines; 0.05 is a scale of 20.
      pooling: of the tokens' vectors, see `fmjax.nn.pooling.sentence_embeddings`.
      symmetric: average with the cross-entropy of picking a positive's own anchor among all
        anchors. Hard negatives take part in the first direction only.
      mask_duplicates: do not push apart what belongs together: a candidate with the same tokens as
        the anchor or its positive, or the positive of an anchor with the same tokens, is none of
        its negatives.
      regression: fit the cosine to labels instead.

    Raises:
      ConfigError: a temperature that is not positive.
    """

    temperature: float = 0.05
    pooling: str = "mean"
    symmetric: bool = True
    mask_duplicates: bool = True
    regression: bool = False

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ConfigError(f"temperature={self.temperature} must be positive")

    @property
    def decomposes(self) -> bool:
        """Whether a batch may be cut into microbatches."""
        return self.regression

    def loss(
        self,
        apply: Callable[..., Any],
        variables: Any,
        extra: Any,
        batch: Batch,
        rng: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array, Metrics, Any]:
        """Sum of the anchors' losses, and the sum of their weights.

        Args:
          apply: `model.apply`; its output has `last_hidden_state` [B·K, T, D].
          variables: of the model.
          extra: what `init` gave; returned as it is.
          batch: input_ids, attention_mask, token_type_ids i32[B, K, T]: an anchor, its positive,
            and K − 2 hard negatives; example_weight f32[B] multiplies the weight of a row, and
            where it is 0 the row's texts are no candidates either. Regression: K = 2, and labels
            f32[B], the cosines.
          rng: key for dropout; None evaluates.

        Returns:
          loss_sum f32, weight f32, metrics {name: (sum, weight)}, extra.

        Raises:
          DataError: inputs that are not [B, K, T], or labels that do not fit the form.
        """
        shape = batch["input_ids"].shape
        if len(shape) != 3 or shape[1] < 2 or (self.regression and shape[1] != 2):
            texts = "2 texts" if self.regression else "2 or more texts"
            raise DataError(f"input_ids {shape} must be [rows, texts, tokens] with {texts} a row")
        B, K, T = shape
        texts = {k: batch[k].reshape(B * K, T) for k in ("input_ids", *INPUTS) if k in batch}
        hidden = forward(apply, variables, texts, rng).last_hidden_state
        vectors = sentence_embeddings(hidden, texts.get("attention_mask"), self.pooling)
        vectors_BKD = vectors.reshape(B, K, -1)
        rows = example_weight(batch)
        if self.regression:
            what = "the cosine of each row's two texts"
            labels = target(batch, "labels", jnp.floating, [(B,)], what)
            cosine = jnp.sum(vectors_BKD[:, 0] * vectors_BKD[:, 1], -1)
            return *squared_error_sums(cosine[:, None], labels[:, None], rows), extra
        if "labels" in batch:
            raise DataError(
                "the batch has labels, which a contrastive loss does not read; "
                "use SentenceEmbedding(regression=True), or leave them out"
            )
        return *self._contrast(vectors_BKD, batch, rows), extra

    def _contrast(
        self, vectors_BKD: jax.Array, batch: Batch, rows: jax.Array
    ) -> tuple[jax.Array, jax.Array, Metrics]:
        B, K, D = vectors_BKD.shape
        # All positives, then all first negatives, …; every device needs them all.
        candidates = jnp.swapaxes(vectors_BKD[:, 1:], 0, 1).reshape((K - 1) * B, D)
        candidates = constrain(candidates, (None, None))
        # In full f32, also on TPUs: the temperature amplifies rounding.
        scores = jnp.matmul(vectors_BKD[:, 0], candidates.T, precision="highest")
        scores = constrain(scores / self.temperature, ("batch", None))  # [B, (K-1)·B]
        same = jnp.zeros(scores.shape, bool)
        if self.mask_duplicates:
            same = duplicates(batch["input_ids"], batch.get("attention_mask"))
        own, real = jnp.arange(B), rows != 0
        choice = _among_negatives(scores, same, jnp.tile(real, K - 1))
        losses, _ = nll_and_logsumexp(choice, own)
        if self.symmetric:
            back = _among_negatives(scores[:, :B].T, same[:, :B].T, real)
            losses = (losses + nll_and_logsumexp(back, own)[0]) / 2
        loss_sum, weight = jnp.sum(losses * rows), jnp.sum(rows)
        right = jnp.sum(is_top(choice, own) * rows)
        return loss_sum, weight, {"loss": (loss_sum, weight), "accuracy": (right, weight)}


def _among_negatives(scores: jax.Array, same: jax.Array, real: jax.Array) -> jax.Array:
    """Scores [M, N], −∞ where column j is neither row i's own (i = j) nor a negative of it."""
    own = jnp.eye(*scores.shape, dtype=bool)
    return jnp.where(own | (real & ~same), scores, -jnp.inf)


def duplicates(input_ids: jax.Array, attention_mask: jax.Array | None) -> jax.Array:
    """Which candidates are no negatives of which anchors, see `mask_duplicates`.

    Args:
      input_ids, attention_mask: i32[B, K, T], the anchor, its positive, hard negatives.

    Returns:
      bool [B, (K-1)·B], candidates in the order of the scores: all positives, all first negatives,
      …. An anchor and a positive that are no negatives of each other are so in both directions.
    """
    B, K, T = input_ids.shape
    tokens = input_ids if attention_mask is None else jnp.where(attention_mask != 0, input_ids, -1)
    anchors, positives = tokens[:, 0], tokens[:, 1]
    candidates = jnp.swapaxes(tokens[:, 1:], 0, 1).reshape((K - 1) * B, T)
    same_anchor = jnp.pad(_equal(anchors, anchors), ((0, 0), (0, (K - 2) * B)))
    return _equal(anchors, candidates) | _equal(positives, candidates) | same_anchor


def _equal(a: jax.Array, b: jax.Array) -> jax.Array:
    """[M, T], [N, T] → bool [M, N]: rows that are the same."""
    return jnp.all(a[:, None] == b[None], -1)
