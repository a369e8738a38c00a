"""Next-token prediction."""

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from fmjax.core.errors import ConfigError
from fmjax.core.token_sums import TokenSums
from fmjax.objectives.cross_entropy import is_top, nll_and_logsumexp
from fmjax.objectives.inputs import IGNORE, Batch, Metrics, Stateless
from fmjax.objectives.router import load_balancing_loss, router_statistics, router_z_loss

INPUTS = ("input_ids", "attention_mask", "position_ids", "segment_ids")


def next_token_targets(batch: Batch) -> tuple[jax.Array, jax.Array]:
    """What each position has to predict, and with which weight.

    Labels move left by one instead of logits losing their last row: all T positions are computed,
    shapes stay as they divide over the devices, and the last position weighs nothing.

    Args:
      batch: input_ids i32[B, T] and optionally, all [B, T] and aligned with input_ids:
        labels (unshifted; -100 is not predicted; default input_ids),
        attention_mask (1 for tokens, 0 for padding on either side),
        segment_ids (documents 1, 2, … packed in a row; 0 for padding),
        loss_mask (weight of each token *as a target*, for example 1 on a completion's tokens).

    Returns:
      targets i32[B, T] and weights f32[B, T]. A target counts when it is a token of the same
      document as the position that predicts it.
    """
    targets = _shift_left(batch.get("labels", batch["input_ids"]), IGNORE)
    weights = (targets != IGNORE).astype(jnp.float32)
    if "attention_mask" in batch:
        mask = batch["attention_mask"]
        weights *= ((mask != 0) & (_shift_left(mask, 0) != 0)).astype(jnp.float32)
    if "segment_ids" in batch:
        segments = batch["segment_ids"]
        weights *= ((segments != 0) & (_shift_left(segments, 0) == segments)).astype(jnp.float32)
    if "loss_mask" in batch:
        weights *= _shift_left(batch["loss_mask"].astype(jnp.float32), 0.0)
    return targets, weights


def _shift_left(x: jax.Array, fill: float) -> jax.Array:
    return jnp.concatenate([x[:, 1:], jnp.full_like(x[:, :1], fill)], 1)


@dataclasses.dataclass(frozen=True)
class CausalLM(Stateless):
    """Cross-entropy of the next token, in nats a token, from float32 logits.

    Where the logits would be large, models with a `token_sums` argument (fmjax's decoders) compute
    them, the loss and its gradient for some tokens at a time: they are never held whole.

    Attributes:
      z_loss: adds z_loss · logsumexp², which keeps the logits near zero (arXiv:2204.02311 uses
        1e-4). The reported `loss` stays the plain cross-entropy.
      accuracy: also report the share of targets with the highest logit. None: in evaluation only,
        as it reads all logits once more.
      router_loss: adds router_loss · `load_balancing_loss`, for models with `router_logits`.
      router_z_loss: adds router_z_loss · `fmjax.objectives.router.router_z_loss`.
      experts_per_token: K of that model. Router losses and statistics are means over the tokens of
        a (micro)batch, so accumulation averages them.
      router_metrics: report `router_statistics` of that model. None: where a router loss is set.
      chunk: tokens whose logits a device holds at one time; 0 holds all. None: all where they are
        small (`fmjax.nn.chunked_head.LOGITS`) or the model cannot do otherwise.
    """

    z_loss: float = 0.0
    accuracy: bool | None = None
    router_loss: float = 0.0
    router_z_loss: float = 0.0
    experts_per_token: int = 2
    router_metrics: bool | None = None
    chunk: int | None = None

    def __post_init__(self) -> None:
        for name in ("z_loss", "router_loss", "router_z_loss"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(
                    f"{name} {getattr(self, name)} must be a number that is not negative"
                )

    def loss(
        self,
        apply: Callable[..., Any],
        variables: Any,
        extra: Any,
        batch: Batch,
        rng: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array, Metrics, Any]:
        """Sum of the weighted losses and of the weights, over the batch.

        Args:
          apply: `model.apply`; its output has `logits` [B, T, V].
          variables: of the model.
          extra: what `init` gave; returned as it is.
          batch: see `next_token_targets`, and position_ids i32[B, T]. Its model inputs are passed
            on by name.
          rng: key for dropout; None evaluates.

        Returns:
          loss_sum f32, weight f32, metrics {name: (sum, weight)}, extra.

        Raises:
          ConfigError: a negative chunk, or one for a model without `token_sums`.
        """
        inputs = {name: batch[name] for name in INPUTS if name in batch}
        rngs = {} if rng is None else {"rngs": {"dropout": rng}}
        balanced = bool(self.router_loss or self.router_z_loss)
        watched = balanced if self.router_metrics is None else self.router_metrics
        if balanced or watched:
            inputs["output_router_logits"] = True
        targets, weights = next_token_targets(batch)
        counted = self.accuracy or (self.accuracy is None and rng is None)
        score = partial(self._score, counted)
        if self._in_parts(apply):
            inputs["token_sums"] = TokenSums(score, (targets, weights), self.chunk)
        output = apply(variables, **inputs, **rngs)
        loss_sum, sums = getattr(output, "token_sums", None) or score(
            output.logits, targets, weights
        )
        weight = jnp.sum(weights)
        metrics = {name: (value, weight) for name, value in sums.items()}
        if balanced:
            for name, value in self._router_losses(output.router_logits, batch).items():
                metrics[name] = (value * weight, weight)
                loss_sum = loss_sum + value * weight
        if watched:
            statistics = router_statistics(
                output.router_logits, self.experts_per_token, _token_mask(batch)
            )
            metrics |= {name: (value * weight, weight) for name, value in statistics.items()}
        return loss_sum, weight, metrics, extra

    def _score(
        self, accuracy: bool, logits: jax.Array, targets: jax.Array, weights: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Of some tokens: what is minimised, and what is reported, as sums."""
        nll, logsumexp = nll_and_logsumexp(logits, targets)
        loss = jnp.sum(nll * weights)
        sums = {"loss": loss}
        if self.z_loss:
            sums["z_loss"] = self.z_loss * jnp.sum(jnp.square(logsumexp) * weights)
            loss = loss + sums["z_loss"]
        if accuracy:
            sums["accuracy"] = jnp.sum(is_top(logits, targets) * weights)
        return loss, sums

    def _in_parts(self, apply: Callable[..., Any]) -> bool:
        """Whether the model is asked for sums in place of logits."""
        if self.chunk == 0:
            return False
        # Of a Linen module `apply` takes anything, and hands it to `__call__`.
        module = getattr(apply, "__self__", None)
        known = inspect.signature(apply if module is None else type(module).__call__).parameters
        able = "token_sums" in known or any(p.kind is p.VAR_KEYWORD for p in known.values())
        if self.chunk is not None and (self.chunk < 0 or not able):
            raise ConfigError(
                f"chunk={self.chunk} is for models with a token_sums argument and positive; "
                "give 0 to hold all logits, or None"
            )
        return able

    def _router_losses(self, router_logits: Any, batch: Batch) -> dict[str, jax.Array]:
        """Both, times their coefficients; padding does not count."""
        mask = _token_mask(batch)
        balance = load_balancing_loss(router_logits, self.experts_per_token, mask)
        z = router_z_loss(router_logits, mask)
        return {"router_loss": self.router_loss * balance, "router_z_loss": self.router_z_loss * z}

    def summarize(self, means: Mapping[str, float]) -> dict[str, float]:
        """Adds the perplexity e^loss to the means of an evaluation; inf where it overflows."""
        loss = means["loss"]
        return {**means, "perplexity": math.exp(loss) if loss < 700 else math.inf}


def _token_mask(batch: Batch) -> jax.Array | None:
    """bool [B, T], False on padding; None where there is none."""
    mask = batch.get("attention_mask", batch.get("segment_ids"))
    return None if mask is None else mask != 0
