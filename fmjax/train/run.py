"""What changes while a run goes on, and what is done with it."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax

from fmjax.core.errors import CheckpointError, DataError
from fmjax.train.clock import Clock
from fmjax.train.early_stopping import Watch
from fmjax.train.loggers import Logger
from fmjax.train.meter import Meter
from fmjax.train.outcome import Outcome, restore
from fmjax.train.profile import Profile
from fmjax.train.progress import Display
from fmjax.train.state import TrainState
from fmjax.train.step import Batch, Step
from fmjax.train.stragglers import Stragglers

if TYPE_CHECKING:
    from fmjax.train.checkpoint import Checkpointer

TIME = "time"
"""Under which the notes of a checkpoint keep the run's clock."""


class Run:
    """A state on its way through the loop; see `fmjax.train.fit`.

    Attributes:
      state: after the newest step.
      number: of that step.
      steps: number of the last step; lowered where the data end before.
      metrics: the last ones read, with the last evaluation's under "eval_…".
      improved: the newest step's evaluation is the best so far, by what is watched.
      ended: None while there is more to do, then why there is not: see `Outcome.ended`.
    """

    def __init__(
        self,
        step: Step,
        state: TrainState,
        batches: Iterator[Batch],
        *,
        steps: int,
        log_every: int,
        evaluate: Callable[[TrainState], Mapping[str, float]] | None,
        watch: Watch | None,
        checkpointer: "Checkpointer | None",
        loggers: Sequence[Logger],
        display: Display,
        meter: Meter,
        clock: Clock,
        stragglers: Stragglers,
        profile: Profile | None,
    ) -> None:
        self.step, self.state, self.batches = step, state, batches
        self.steps, self.log_every = steps, log_every
        self.measure, self.watch = evaluate, watch
        self.checkpointer, self.loggers = checkpointer, loggers
        self.display, self.meter = display, meter
        self.clock, self.stragglers, self.profile = clock, stragglers, profile
        self.number = int(state.step)
        self._evaluation: dict[str, float] | None = None
        if checkpointer is not None and self.number:
            self._evaluation = checkpointer.metrics(self.number)
        self.metrics: dict[str, float] = dict(self._evaluation or {})
        self._pending: dict[str, Any] | None = None
        self._saved: int | None = self.number
        self._rows = 0  # of the newest global batch
        self.improved = False
        self.ended: str | None = "steps" if self.number >= steps else None
        if watch is not None and watch.over:
            self.ended = "patience"

    def advance(self) -> bool:
        """One step, then the metrics of the one before. False when the data have ended."""
        with self.clock.doing("input"):
            batch = next(self.batches, None)
        if batch is None and not self.number:
            raise DataError("there is no batch to train on; check the size of the training data")
        if batch is None:
            return False
        profile = self.profile
        around = contextlib.nullcontext() if profile is None else profile.step(self.number + 1)
        with self.clock.doing("step"), around:
            self.state, metrics = self.step(self.state, batch)
        self.flush()
        self._rows = len(next(iter(batch.values()))) * jax.process_count()
        self.number += 1
        self._pending, self._evaluation, self.improved = metrics, None, False
        if profile is not None and profile.ends(self.number):
            self.flush()
            if profile.stop():
                self.display.message(
                    f"profile of steps {profile.first} to {profile.last}: {profile.directory}"
                )
        return True

    def end(self, why: str) -> None:
        """This was the last step."""
        self.ended = why
        if why == "data":
            self.steps = self.number

    def due(self, every: int | None) -> bool:
        """Whether something that happens every so many steps happens now."""
        return every is not None and self.number % every == 0

    def flush(self) -> None:
        """Waits for the newest step and writes its metrics if they are due."""
        if self._pending is None:
            return
        with self.clock.doing("step"):
            metrics = {name: float(x) for name, x in jax.device_get(self._pending).items()}
        self._pending = None
        self.clock.beat(self.number)
        self.metrics |= metrics
        self.meter.count(self.number, metrics.get("tokens", self._rows))
        if self.number % self.log_every == 0 or self.number == self.steps:
            metrics |= self.meter.report(self.number)
            metrics["goodput"] = self.clock.goodput()
            self.display.step(self.number, metrics)
            metrics.pop("seconds_left", None)
            self.metrics |= metrics
            self._write(metrics)
        found, sentences = self.stragglers(self.number, self.clock.usual)
        if found:
            self._write(found)
        for sentence in sentences:
            self.display.message(f"step {self.number}: {sentence}")

    def evaluate(self) -> None:
        """Measures the state, reported as "eval_…"; once a step, and only if there is a way to.

        Running out of patience ends the run. Where measuring fails, the state is saved first.
        """
        self.flush()
        if self.measure is None or self._evaluation is not None:
            return
        try:
            with self.meter.pause(), self.clock.doing("evaluation"):
                found = {name: float(value) for name, value in self.measure(self.state).items()}
        except Exception:
            if jax.process_count() == 1:  # Others may not have failed, and not come to save.
                try:
                    self.save()
                except CheckpointError as lost:
                    self.display.message(str(lost))
            raise
        if not found and self.watch is None:
            return
        self._evaluation = {f"eval_{name}": value for name, value in found.items()}
        self._saved = None  # A checkpoint of this step that there may be lacks the evaluation.
        self.metrics |= self._evaluation
        self._write(self._evaluation)
        values = " · ".join(f"{name} {value:.4f}" for name, value in found.items())
        if self.watch is not None:
            self.improved = self.watch.observe(self.number, found)
            values += " · best so far" if self.improved else ""
        self.display.message(f"step {self.number}: evaluation {values}")
        if self.watch is not None and self.watch.over:
            self.ended = "patience"
            self.display.message(
                f"stopped early: {self.watch.waited} evaluations without a better "
                f"{self.watch.rule.metric}"
            )

    def save(self) -> None:
        """A checkpoint of this step, unless there is one. What precedes it is in the logs."""
        self.flush()
        if self.checkpointer is None or self._saved == self.number:
            return
        trained, frozen = self.step.split(self.state.variables)
        notes = {} if self.watch is None else self.watch.notes()
        complete = self.ended not in (None, "signal")
        with self.meter.pause(), self.clock.doing("checkpoint"):
            self.checkpointer.save(
                self.number,
                self.state.replace(variables=trained),
                frozen=frozen,
                data=self.batches if hasattr(self.batches, "get_state") else None,
                metrics=self._evaluation,
                notes={**notes, TIME: self.clock.notes(complete)},
            )
        self._saved = self.number

    def outcome(self) -> Outcome:
        """What the caller gets."""
        watched = self.watch is not None
        return Outcome(
            self.state,
            self.number,
            self.ended,
            self.metrics,
            best_step=self.watch.step if watched else None,
            best_metrics=self.watch.metrics if watched else None,
            load=self._load if watched else None,
        )

    def _load(self, number: int, release: bool) -> TrainState:
        return restore(self.step, self.state, self.checkpointer, number=number, release=release)

    def _write(self, metrics: dict[str, float]) -> None:
        for logger in self.loggers:
            logger.write(self.number, metrics)
