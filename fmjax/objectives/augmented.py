"""An objective on raw images: they are augmented within the step, on the device."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from fmjax.objectives.inputs import Batch, Metrics

_FORWARDED = ("unit", "decomposes", "summarize", "project", "compare")


@dataclasses.dataclass(frozen=True)
class Augmented:
    """`objective` on batches that `train` and `evaluate` make of raw ones.

    Each step of a run draws its augmentation from its own key, so that a resumed run sees what the
    uninterrupted one would have seen.

    Attributes:
      objective: any objective; its state, unit and whether it decomposes are kept.
      train: (key, batch) → batch, for example of `fmjax.data.augment`.
      evaluate: batch → batch; None hands the batch on as it is.
    """

    objective: Any
    train: Callable[[jax.Array, Batch], Batch]
    evaluate: Callable[[Batch], Batch] | None = None

    def __getattr__(self, name: str) -> Any:
        if name in _FORWARDED or (name == "embed" and hasattr(self.objective, name)):
            return getattr(self.objective, name) if name in _FORWARDED else self._embed
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def init(self, variables: Any) -> Any:
        """What the objective keeps."""
        return self.objective.init(variables)

    def loss(
        self,
        apply: Callable[..., Any],
        variables: Any,
        extra: Any,
        batch: Batch,
        rng: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array, Metrics, Any]:
        """The objective's, of the augmented batch; `rng` None evaluates."""
        batch, rng = self._seen(batch, rng)
        return self.objective.loss(apply, variables, extra, batch, rng)

    def _embed(
        self, apply: Callable[..., Any], variables: Any, batch: Batch, rng: jax.Array | None
    ) -> Any:
        """The objective's `embed` of augmented rows, see `fmjax.train.gradient_cache`."""
        batch, rng = self._seen(batch, rng)
        return self.objective.embed(apply, variables, batch, rng)

    def _seen(self, batch: Batch, rng: jax.Array | None) -> tuple[Batch, jax.Array | None]:
        """What the objective reads in place of a raw batch, and its own key."""
        if rng is None:
            return (batch if self.evaluate is None else self.evaluate(batch)), None
        augment, rng = jax.random.split(rng)
        return self.train(augment, batch), rng
