"""Learning which of two answers is preferred, without a reward model.

Shapes: B pairs, T tokens of a row (prompt and answer), V vocabulary.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from fmjax.core import adapter
from fmjax.core.errors import ConfigError, DataError
from fmjax.objectives.causal_lm import next_token_targets
from fmjax.objectives.cross_entropy import nll_and_logsumexp
from fmjax.objectives.inputs import (
    Batch,
    Metrics,
    OverExamples,
    example_weight,
    forward,
    output_field,
    target,
)

SIDES = ("chosen", "rejected")
_ROWS = ("input_ids", "labels", "attention_mask", "position_ids")
_REFERENCE = tuple(f"reference_{side}_logps" for side in SIDES)


class Pair(NamedTuple):
    """A figure of the chosen answer and of the rejected one, f32[B] each."""

    chosen: jax.Array
    rejected: jax.Array

    @property
    def difference(self) -> jax.Array:
        return self.chosen - self.rejected


@dataclasses.dataclass(frozen=True)
class DPO(OverExamples):
    """Direct preference optimisation (arXiv:2305.18290).

    An answer's reward is beta · (its log-probability − that under a reference). The reference is
    the model without its adapter, as it stands: no second copy of the weights exists. A run that
    trains the weights themselves needs the reference's log-probabilities in its batches instead
    (`log_probabilities`, before the first step).

    Attributes:
      beta: how dear it is to leave the reference.
      label_smoothing: share of the preferences taken to be wrong (conservative DPO), below 0.5; of
        "sigmoid" only.
      loss_type: of the difference of the two rewards: "sigmoid", its negative log-sigmoid; "hinge",
        max(0, 1 − difference) (arXiv:2309.06657); "ipo", the squared distance of the difference of
        log-ratios from 1 / (2 beta) (arXiv:2310.12036), where log-probabilities are means over an
        answer's tokens, so that long answers do not weigh more.

    Raises:
      ConfigError: a number out of range, or an unknown loss.
    """

    beta: float = 0.1
    label_smoothing: float = 0.0
    loss_type: Literal["sigmoid", "ipo", "hinge"] = "sigmoid"

    decomposes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (0 < self.beta < math.inf):
            raise ConfigError(f"DPO: beta={self.beta} must be above 0, such as 0.1")
        if self.loss_type not in ("sigmoid", "ipo", "hinge"):
            raise ConfigError(f"DPO: no loss {self.loss_type!r}; use sigmoid, ipo or hinge")
        if not 0 <= self.label_smoothing < 0.5:
            raise ConfigError(f"DPO: label_smoothing={self.label_smoothing} must lie in [0, 0.5)")
        if self.label_smoothing and self.loss_type != "sigmoid":
            raise ConfigError(f"DPO: label_smoothing is not for {self.loss_type!r}; set it to 0")

    def loss(
        self,
        apply: Callable[..., Any],
        variables: Any,
        extra: Any,
        batch: Batch,
        rng: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array, Metrics, Any]:
        """Sum of the weighted losses and of the weights, over the pairs.

        Args:
          apply: `model.apply`; its output has `logits` [2B, T, V].
          variables: of the model, with the adapter that is trained.
          extra: what `init` gave; returned as it is.
          batch: chosen_input_ids and rejected_input_ids i32[B, T], with padding on the right;
            chosen_labels and rejected_labels i32[B, T], the answers' tokens and -100 elsewhere;
            optionally chosen_attention_mask and rejected_attention_mask, and the like with
            position_ids; example_weight f32[B]; and reference_chosen_logps and
            reference_rejected_logps f32[B], sums over an answer's tokens in nats, in place of the
            reference.
          rng: key for dropout; None evaluates.

        Returns:
          loss_sum f32, weight f32, metrics {name: (sum, weight)}, extra. Metrics are the loss, the
          rewards, their margin (chosen − rejected), the accuracy (share of pairs whose margin is
          positive) and the answers' log-probabilities.

        Raises:
          DataError: a batch that lacks a key, or rows of unlike shapes.
          ConfigError: no adapter and no reference in the batch, or a model that is no decoder.
        """
        policy, ratios = self._ratios(apply, variables, batch, rng)
        losses = self._losses(ratios.difference)
        weight = example_weight({**batch, "input_ids": batch["chosen_input_ids"]})
        rewards = Pair(*(self.beta * ratio for ratio in ratios))
        figures = {
            "loss": losses,
            "accuracy": (rewards.difference > 0).astype(jnp.float32),
            "margin": rewards.difference,
            "chosen_reward": rewards.chosen,
            "rejected_reward": rewards.rejected,
            "chosen_logps": policy.chosen,
            "rejected_logps": policy.rejected,
        }
        total = jnp.sum(weight)
        # Selected, not multiplied: a row that fills the batch may hold anything.
        sums = {k: jnp.sum(jnp.where(weight > 0, x * weight, 0)) for k, x in figures.items()}
        return sums["loss"], total, {name: (x, total) for name, x in sums.items()}, extra

    def rewards(
        self,
        apply: Callable[..., Any],
        variables: Any,
        batch: Batch,
    ) -> Pair:
        """The rewards of each pair's answers, f32[B] each; arguments and errors as of `loss`."""
        ratios = self._ratios(apply, variables, batch, None)[1]
        return Pair(*(self.beta * ratio for ratio in ratios))

    def _ratios(
        self, apply: Callable[..., Any], variables: Any, batch: Batch, rng: jax.Array | None
    ) -> tuple[Pair, Pair]:
        """The answers' log-probabilities, and how far they are above the reference's."""
        rows = _check(batch)
        given = [name for name in _REFERENCE if name in batch]
        if not given and not variables.get(adapter.COLLECTION):
            raise ConfigError(
                "DPO: there is no adapter, so the model without it cannot be the reference; train "
                "an adapter (peft.init), or put the reference's log-probabilities into the batches "
                f"as {' and '.join(_REFERENCE)} (objectives.log_probabilities)"
            )
        policy, lengths = _log_probabilities(apply, variables, batch, rows, rng)
        if given:
            shape, what = [lengths.chosen.shape], "a log-probability for each row"
            reference = Pair(*(target(batch, k, jnp.floating, shape, what) for k in _REFERENCE))
        else:
            bare = {k: v for k, v in variables.items() if k != adapter.COLLECTION}
            reference, _ = _log_probabilities(apply, jax.lax.stop_gradient(bare), batch, rows, None)
        reference = jax.lax.stop_gradient(reference)
        if self.loss_type == "ipo":
            policy, reference = (
                Pair(*(x / jnp.maximum(n, 1) for x, n in zip(pair, lengths, strict=True)))
                for pair in (policy, reference)
            )
        return policy, Pair(*(x - y for x, y in zip(policy, reference, strict=True)))

    def _losses(self, difference: jax.Array) -> jax.Array:
        """Of the differences of log-ratios, f32[B]."""
        logits = self.beta * difference
        match self.loss_type:
            case "hinge":
                return jax.nn.relu(1 - logits)
            case "ipo":
                return jnp.square(difference - 1 / (2 * self.beta))
        wrong = self.label_smoothing
        return -(1 - wrong) * jax.nn.log_sigmoid(logits) - wrong * jax.nn.log_sigmoid(-logits)


def log_probabilities(apply: Callable[..., Any], variables: Any, batch: Batch) -> Pair:
    """Of the answers of a batch, summed over their tokens, in nats; without dropout.

    Args:
      apply: `model.apply`.
      variables: of the model; a reference's are those before training.
      batch: as of `DPO.loss`.

    Returns:
      f32[B] for the chosen answers and for the rejected ones.

    Raises:
      DataError, ConfigError: as `DPO.loss`.
    """
    return _log_probabilities(apply, variables, batch, _check(batch), None)[0]


def _check(batch: Batch) -> tuple[str, ...]:
    """The names of what each side has, all alike in shape."""
    needed = ("input_ids", "labels")
    names = [n for n in _ROWS if n in needed or any(f"{side}_{n}" in batch for side in SIDES)]
    shape = None
    for name in names:
        for side in SIDES:
            shapes = [getattr(batch.get(f"{side}_{name}"), "shape", ()) if shape is None else shape]
            what = "a row for each pair, those of both sides padded to one length"
            x = target(batch, f"{side}_{name}", jnp.integer, shapes, what)
            if x.ndim != 2:
                raise DataError(f"{side}_{name} is of shape {x.shape}; it must be [B, T]")
            shape = x.shape
    return tuple(names)


def _log_probabilities(
    apply: Callable[..., Any],
    variables: Any,
    batch: Batch,
    names: tuple[str, ...],
    rng: jax.Array | None,
) -> tuple[Pair, Pair]:
    """(sums over the answers' tokens, numbers of those tokens); both sides in one pass."""

    def both(name: str) -> jax.Array:
        # Side by side, so that rows stay on the devices that have them.
        x = jnp.stack([batch[f"{side}_{name}"] for side in SIDES], 1)  # [B, 2, T]
        return x.reshape(-1, x.shape[-1])

    rows = {name: both(name) for name in names}  # [2B, T]
    output = forward(apply, variables, rows, rng, ("attention_mask", "position_ids"))
    logits = output_field(output, "logits", 3, "causal-lm")
    targets, weights = next_token_targets(rows)
    nll, _ = nll_and_logsumexp(logits, targets)
    sums, lengths = jnp.sum(-nll * weights, -1), jnp.sum(weights, -1)
    return Pair(*sums.reshape(-1, 2).T), Pair(*lengths.reshape(-1, 2).T)
