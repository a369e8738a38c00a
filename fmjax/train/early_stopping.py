"""When to stop, and which state to keep, by a metric of the evaluations."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from fmjax.core.errors import CheckpointError, ConfigError


@dataclasses.dataclass(frozen=True)
class EarlyStopping:
    """Keeps the best state by a metric, and ends the run when that gets no better.

    A metric that is not finite is never best.

    Attributes:
      metric: its name in what the evaluation gives, such as "f1" (in the log: "eval_f1").
      mode: "max" or "min", whichever is better.
      patience: evaluations in a row without an improvement that end the run; None only keeps the
        best state.
      min_delta: gains of at most this do not count as improvement for `patience`; the best state
        is the best none the less.

    Raises:
      ConfigError: a value out of range.
    """

    metric: str = "loss"
    mode: str = "min"
    patience: int | None = 3
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        if self.mode not in ("min", "max"):
            raise ConfigError(f"early stopping: mode {self.mode!r} is neither 'min' nor 'max'")
        if self.patience is not None and self.patience < 1:
            raise ConfigError(f"early stopping: patience {self.patience} must be at least 1")
        if not 0 <= self.min_delta < math.inf:
            raise ConfigError(f"early stopping: min_delta {self.min_delta} must not be negative")

    @property
    def best(self) -> tuple[str, str]:
        """The `best` of a `Checkpointer` that keeps the best state."""
        return f"eval_{self.metric}", self.mode

    def gain(self, value: float, reference: float | None) -> float:
        """By how much `value` is better than `reference`; of anything over nothing, infinite."""
        if not math.isfinite(value):
            return -math.inf
        if reference is None:
            return math.inf
        return value - reference if self.mode == "max" else reference - value


@dataclasses.dataclass
class Watch:
    """What early stopping remembers of the evaluations so far.

    Attributes:
      rule: what is watched.
      step: of the best evaluation so far; None before the first finite one.
      metrics: of that evaluation.
      reference: the value that an improvement has to exceed by `min_delta`.
      waited: evaluations since the last improvement.
    """

    rule: EarlyStopping
    step: int | None = None
    metrics: dict[str, float] | None = None
    reference: float | None = None
    waited: int = 0

    @property
    def over(self) -> bool:
        """Whether patience has run out."""
        return self.rule.patience is not None and self.waited >= self.rule.patience

    def observe(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Takes in an evaluation, and says whether it is the best so far.

        Raises:
          ConfigError: the metric is not among them.
        """
        name = self.rule.metric
        if name not in metrics:
            raise ConfigError(
                f"early stopping watches {name!r}, but the evaluation gives {', '.join(metrics)}"
            )
        value = metrics[name]
        best = self.rule.gain(value, self.metrics and self.metrics[name]) > 0
        if best:
            self.step, self.metrics = step, dict(metrics)
        if self.rule.gain(value, self.reference) > self.rule.min_delta:
            self.reference, self.waited = value, 0
        else:
            self.waited += 1
        return best

    def notes(self) -> dict[str, Any]:
        """For the checkpoint: JSON values."""
        state = dataclasses.asdict(self)
        rule = state.pop("rule")
        return state | {"metric": rule["metric"], "mode": rule["mode"]}

    @classmethod
    def resume(cls, rule: EarlyStopping, notes: Mapping[str, Any] | None) -> "Watch":
        """From the notes of a checkpoint; one without any starts afresh.

        Raises:
          CheckpointError: the notes are of another metric or mode.
        """
        if not notes:
            return cls(rule)
        state = dict(notes)
        before = (state.pop("metric"), state.pop("mode"))
        if before != (rule.metric, rule.mode):
            raise CheckpointError(
                f"the checkpoint's best state is by {before[0]!r} ({before[1]}), this run's by "
                f"{rule.metric!r} ({rule.mode}); keep the metric, or use another directory"
            )
        return cls(rule, **state)
