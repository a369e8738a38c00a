"""What instruction tuning and preferences differ in."""

import abc
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fmjax.data import TextBatches
from fmjax.data.tasks import stratified_split
from fmjax.recipes.adaptation import Adapted
from fmjax.recipes.layout import Layout
from fmjax.recipes.tasks.task import Measured, read_split
from fmjax.train import Step, TrainState


@dataclasses.dataclass(frozen=True)
class Ready:
    """What a run needs beside the model.

    Attributes:
      batches: to train on.
      valid: to measure on; each `iter()` is a pass.
      objective: what is minimised.
      per_epoch: updates in a pass over the training examples.
    """

    batches: TextBatches
    valid: Iterable[Mapping[str, Any]]
    objective: Any
    per_epoch: float


class ChatTask(abc.ABC):
    """The examples of a run, read and encoded.

    Attributes:
      notes: what a reader of the run must know of them.
      prompts: messages before an answer, of the examples to measure on.
      wanted: those answers.
    """

    notes: list[str]
    prompts: list[Any]
    wanted: list[str]

    @abc.abstractmethod
    def ready(self, adapted: Adapted, layout: Layout) -> Ready:
        """Batches and objective for a model that is about to be trained."""

    @abc.abstractmethod
    def measure(self, step: Step, state: TrainState, valid: Any) -> Measured:
        """Figures over the examples to measure on, with intervals where there are any."""


def held_out(settings: Any, read: Callable[[str], Any]) -> tuple[Any, Any, list[str]]:
    """Examples to train on and to measure on, and notes; see `read_split`."""
    return read_split(
        settings,
        lambda name, _: read(name),
        lambda examples: [0] * len(examples),  # no classes: a split at random
        lambda examples, fraction, seed: stratified_split([0] * len(examples), fraction, seed),
    )
