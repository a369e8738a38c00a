"""Models with batch normalisation: their running statistics, carried from step to step."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax

from fmjax.core import tree
from fmjax.objectives.inputs import Batch, Metrics

COLLECTION = "batch_stats"
"""As in `fmjax.nn.batch_norm`."""

_STATISTICS = re.compile(r"(^|/)(running_mean|running_var|num_batches_tracked)$")
_FORWARDED = ("unit", "decomposes", "summarize")


@dataclasses.dataclass(frozen=True)
class BatchStatistics:
    """An objective whose model has batch normalisation.

    In training the new running statistics are handed on in `extra` and, after the update, put in
    the place of the old ones among the trained parameters, where evaluations, checkpoints and
    exports find them; statistics that the step is told to freeze stay as they are. A pass without
    `rngs`, such as a teacher's, evaluates: it runs on the statistics among its own variables, of a
    teacher the averaged ones. Microbatches are normalised each by itself, as everywhere. A
    contrastive loss is therefore not embedded in parts: that would be another function of the
    batch.

    Attributes:
      objective: the loss itself.
    """

    objective: Any

    undivided: ClassVar[str] = "which normalises each part by itself: another loss than the batch's"

    def __getattr__(self, name: str) -> Any:
        if name in _FORWARDED:
            return getattr(self.objective, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def init(self, variables: Any) -> dict[str, Any]:
        """The objective's own, and the statistics."""
        return {
            "objective": self.objective.init(variables),
            "statistics": _statistics({"params": variables["params"]}),
        }

    def loss(
        self,
        apply: Callable[..., Any],
        variables: Any,
        extra: Any,
        batch: Batch,
        rng: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array, Metrics, Any]:
        """The objective's loss; `extra` comes back with the new statistics."""
        statistics = extra["statistics"]

        def applied(variables: Any, **inputs: Any) -> Any:
            nonlocal statistics
            if "rngs" not in inputs:
                return apply(variables, **inputs)
            variables = _put(variables, statistics)
            output, new = apply(variables, mutable=[COLLECTION], **inputs)
            # Of several calls in a step, each goes on from the one before.
            statistics = _put(statistics, {"params": new.get(COLLECTION, {})})
            return output

        loss = self.objective.loss(applied, variables, extra["objective"], batch, rng)
        return *loss[:3], {"objective": loss[3], "statistics": statistics}

    def project(self, trained: Any, extra: Any) -> Any:
        """The trained parameters after an update, with the new statistics among them."""
        if hasattr(self.objective, "project"):
            trained = self.objective.project(trained, extra["objective"])
        return _put(trained, extra["statistics"])


def with_batch_statistics(objective: Any, variables: Mapping[str, Any]) -> Any:
    """The objective, inside a `BatchStatistics` where the variables have running statistics."""
    return BatchStatistics(objective) if _statistics(variables) else objective


def _statistics(variables: Mapping[str, Any]) -> dict[str, Any]:
    return tree.unflatten(
        {path: x for path, x in tree.flatten(variables).items() if _STATISTICS.search(path)}
    )


def _put(variables: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Variables with the arrays of `new` in the places that they have."""
    flat, given = tree.flatten(variables), tree.flatten(new)
    return tree.unflatten({path: given.get(path, x) for path, x in flat.items()})
