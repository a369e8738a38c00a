"""Masked language modelling: fill the gaps (arXiv:1810.04805, section 3.1)."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fmjax.core.errors import ConfigError, DataError
from fmjax.objectives.cross_entropy import is_top, nll_and_logsumexp
from fmjax.objectives.inputs import (
    IGNORE,
    INPUTS,
    Batch,
    Metrics,
    Stateless,
    example_weight,
    forward,
)


@dataclasses.dataclass(frozen=True)
class MaskedLM(Stateless):
    """Cross-entropy of the tokens that are hidden from the model, in nats a hidden token.

    Tokens are chosen anew in every step, on the device, from the step's key: no epoch hides the
    same ones, and a resumed run hides those that the unbroken run would have. An evaluation
    chooses by the batch's own tokens, the same ones every time.

    Attributes:
      mask_token_id: what stands in the place of a hidden token.
      vocab_size: V, the ids that a random replacement is drawn from.
      special_ids: never chosen ([CLS], [SEP], [PAD], …).
      probability: of a token (or word) to be chosen.
      masked, random: shares of the chosen tokens that become `mask_token_id` and a random id. The
        rest stays as it is, and is predicted all the same.
      whole_words: choose words, by `word_ids` in the batch, and then all of their tokens.
      accuracy: also report the share of hidden tokens with the highest logit. None: in evaluation
        only, as it reads all logits once more.

    Raises:
      ConfigError: shares that are no probabilities, a mask token outside the vocabulary.
    """

    mask_token_id: int
    vocab_size: int
    special_ids: tuple[int, ...] = ()
    probability: float = 0.15
    masked: float = 0.8
    random: float = 0.1
    whole_words: bool = False
    accuracy: bool | None = None

    def __post_init__(self) -> None:
        if not 0 < self.probability <= 1:
            raise ConfigError(f"probability={self.probability} of masking must be in (0, 1]")
        if min(self.masked, self.random) < 0 or self.masked + self.random > 1:
            raise ConfigError(
                f"masked={self.masked} and random={self.random} are shares of the chosen tokens; "
                "their sum must be at most 1"
            )
        if not 0 <= self.mask_token_id < self.vocab_size:
            raise ConfigError(
                f"mask_token_id={self.mask_token_id} is outside the vocabulary of "
                f"{self.vocab_size}; take it from the tokenizer"
            )

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
          apply: `model.apply`; its output has `logits` [B, T, V].
          variables: of the model.
          extra: what `init` gave; returned as it is.
          batch: see `hide`, and token_type_ids i32[B, T]. The masks and these are passed on; with
            labels i32[B, T] (-100 is not predicted) input_ids are taken as they are.
            example_weight f32[B] multiplies the weights of a row's tokens.
          rng: key for the choice of tokens and for dropout; None evaluates.

        Returns:
          loss_sum f32, weight f32, metrics {name: (sum, weight)}, extra.
        """
        output, labels = self.forward(apply, variables, batch, rng)
        return *self.sums(output.logits, labels, batch, rng), extra

    def forward(
        self, apply: Callable[..., Any], variables: Any, batch: Batch, rng: jax.Array | None
    ) -> tuple[Any, jax.Array]:
        """The model's output for the hidden batch, and labels i32[B, T]; arguments as of `loss`."""
        if "labels" in batch:
            ids, labels = batch["input_ids"], batch["labels"]
        else:
            key = _key_of(batch["input_ids"]) if rng is None else jax.random.fold_in(rng, 0)
            ids, labels = self.hide(batch, key)
        hidden = {**batch, "input_ids": ids}
        dropout = None if rng is None else jax.random.fold_in(rng, 1)
        return forward(apply, variables, hidden, dropout, (*INPUTS, "segment_ids")), labels

    def sums(
        self, logits: jax.Array, labels: jax.Array, batch: Batch, rng: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, Metrics]:
        """Loss, weight and metrics of `loss`, from logits [B, T, V] and labels i32[B, T]."""
        weights = (labels != IGNORE) * example_weight(batch)[:, None]
        nll, _ = nll_and_logsumexp(logits, labels)
        weight, loss_sum = jnp.sum(weights), jnp.sum(nll * weights)
        metrics = {"loss": (loss_sum, weight)}
        if self.accuracy or (self.accuracy is None and rng is None):
            metrics["accuracy"] = (jnp.sum(is_top(logits, labels) * weights), weight)
        return loss_sum, weight, metrics

    def hide(self, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Chooses tokens and hides them.

        Args:
          batch: input_ids i32[B, T] and optionally, all [B, T]: attention_mask and segment_ids (0
            is padding, never chosen), word_ids (the number of the word that a token belongs to,
            neighbours of one word having the same; negative: none, never chosen).
          key: of the choice.

        Returns:
          input_ids with the gaps, and labels: the hidden ids, -100 elsewhere; i32[B, T] both.

        Raises:
          DataError: whole_words without word_ids.
        """
        ids = batch["input_ids"]
        candidate = ~jnp.isin(ids, jnp.asarray(self.special_ids, ids.dtype))
        for name in ("attention_mask", "segment_ids"):
            if name in batch:
                candidate &= batch[name] != 0
        choose, replace, draw = jax.random.split(key, 3)
        chance = jax.random.uniform(choose, ids.shape)
        if self.whole_words:
            if "word_ids" not in batch:
                raise DataError(
                    "whole_words needs word_ids in the batch: the number of each token's word"
                )
            words = batch["word_ids"]
            candidate &= words >= 0
            chance = jnp.take_along_axis(chance, _runs(words), 1)
        chosen = candidate & (chance < self.probability)
        fate = jax.random.uniform(replace, ids.shape)
        other = jax.random.randint(draw, ids.shape, 0, self.vocab_size, ids.dtype)
        hidden = jnp.select(
            [fate < self.masked, fate < self.masked + self.random],
            [jnp.full_like(ids, self.mask_token_id), other],
            ids,
        )
        return jnp.where(chosen, hidden, ids), jnp.where(chosen, ids, IGNORE)

    def summarize(self, means: Mapping[str, float]) -> dict[str, float]:
        """Adds e^loss, the perplexity of a hidden token; inf where it overflows."""
        loss = means["loss"]
        return {**means, "perplexity": math.exp(loss) if loss < 700 else math.inf}


def _runs(words: jax.Array) -> jax.Array:
    """Numbers the runs of equal values in each row from 0: [5, 5, 6, 0] → [0, 0, 1, 2].

    Word numbers may restart within a row (pairs, packed texts) or exceed its length (a window of
    a long text); the number of a run does neither.
    """
    changed = jnp.concatenate([jnp.zeros_like(words[:, :1]), words[:, 1:] != words[:, :-1]], 1)
    return jnp.cumsum(changed, 1)


def _key_of(ids: jax.Array) -> jax.Array:
    """A key that is a function of the tokens."""
    return jax.random.fold_in(jax.random.key(0), jnp.sum(ids.astype(jnp.uint32)))
