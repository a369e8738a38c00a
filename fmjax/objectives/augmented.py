"""An objective on raw images: they are augmented within the step, on the device."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax

from fmjax.objectives.inputs import Batch, Metrics


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

    @property
    def unit(self) -> str:
        """What a run's speed is measured in."""
        return getattr(self.objective, "unit", "tokens")

    @property
    def decomposes(self) -> bool:
        """Whether a batch may be cut into microbatches."""
        return getattr(self.objective, "decomposes", True)

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
        if rng is None:
            batch = batch if self.evaluate is None else self.evaluate(batch)
            return self.objective.loss(apply, variables, extra, batch, None)
        augment, rng = jax.random.split(rng)
        return self.objective.loss(apply, variables, extra, self.train(augment, batch), rng)

    def summarize(self, means: Mapping[str, float]) -> dict[str, float]:
        """The objective's own, where it has one."""
        own = getattr(self.objective, "summarize", dict)
        return own(means)
