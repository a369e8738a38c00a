"""What changes while a run goes on, and what is done with it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax

from fmjax.core.errors import DataError
from fmjax.train.evaluate import evaluate
from fmjax.train.loggers import Logger
from fmjax.train.meter import Meter
from fmjax.train.progress import Display
from fmjax.train.state import TrainState
from fmjax.train.step import Batch, Step

if TYPE_CHECKING:
    from fmjax.train.checkpoint import Checkpointer


class Run:
    """A state on its way through the loop; see `fmjax.train.fit`.

    Attributes:
      state: after the newest step.
      number: of that step.
      steps: number of the last step; lowered where the data end before.
      metrics: the last ones read, with the last evaluation's under "eval_…".
    """

    def __init__(
        self,
        step: Step,
        state: TrainState,
        batches: Iterator[Batch],
        *,
        steps: int,
        log_every: int,
        checkpointer: "Checkpointer | None",
        loggers: Sequence[Logger],
        display: Display,
        meter: Meter,
    ) -> None:
        self.step, self.state, self.batches = step, state, batches
        self.steps, self.log_every = steps, log_every
        self.checkpointer, self.loggers = checkpointer, loggers
        self.display, self.meter = display, meter
        self.number = int(state.step)
        self.metrics: dict[str, float] = {}
        self._pending: dict[str, Any] | None = None
        self._evaluation: dict[str, float] | None = None
        self._saved = self.number

    def advance(self) -> bool:
        """One step, then the metrics of the one before. False when the data have ended."""
        batch = next(self.batches, None)
        if batch is None and not self.number:
            raise DataError("there is no batch to train on; check the size of the training data")
        if batch is None:
            return False
        self.state, metrics = self.step(self.state, batch)
        self.flush()
        self.number += 1
        self._pending, self._evaluation = metrics, None
        return True

    def due(self, every: int | None) -> bool:
        """Whether something that happens every so many steps happens now."""
        return every is not None and self.number % every == 0

    def flush(self) -> None:
        """Waits for the newest step and writes its metrics if they are due."""
        if self._pending is None:
            return
        metrics = {name: float(x) for name, x in jax.device_get(self._pending).items()}
        self._pending = None
        self.metrics |= metrics
        self.meter.count(self.number, metrics["tokens"])
        if self.number % self.log_every == 0 or self.number == self.steps:
            metrics |= self.meter.report(self.number)
            self.display.step(self.number, metrics)
            metrics.pop("seconds_left", None)
            self.metrics |= metrics
            self._write(metrics)

    def evaluate(self, batches: Callable[[], Iterable[Batch]] | None) -> None:
        """Means over `batches()`, reported as "eval_…"; once a step, and only if there are any."""
        self.flush()
        if batches is None or self._evaluation is not None:
            return
        with self.meter.pause():
            means = evaluate(self.step, self.state, batches())
        self._evaluation = {f"eval_{name}": value for name, value in means.items()}
        self.metrics |= self._evaluation
        self._write(self._evaluation)
        values = " · ".join(f"{name} {value:.4f}" for name, value in means.items())
        self.display.message(f"step {self.number}: evaluation {values}")

    def save(self) -> None:
        """A checkpoint of this step, unless there is one. What precedes it is in the logs."""
        self.flush()
        if self.checkpointer is None or self._saved == self.number:
            return
        trained, frozen = self.step.split(self.state.variables)
        with self.meter.pause():
            self.checkpointer.save(
                self.number,
                self.state.replace(variables=trained),
                frozen=frozen,
                data=self.batches if hasattr(self.batches, "get_state") else None,
                metrics=self._evaluation,
            )
        self._saved = self.number

    def _write(self, metrics: dict[str, float]) -> None:
        for logger in self.loggers:
            logger.write(self.number, metrics)
