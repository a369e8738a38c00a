"""What a run leaves in the caller's hands, and how states come back from checkpoints."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fmjax.core import tree
from fmjax.core.errors import DataError
from fmjax.train.state import TrainState
from fmjax.train.step import Step

if TYPE_CHECKING:
    from fmjax.train.checkpoint import Checkpointer


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
      state: after the last step.
      step: number of that step.
      ended: why: "steps" (all were done), "data" (there are no more), "patience" (early stopping)
        or "signal" (it is to go on; its state is saved if there is a place).
      metrics: the last that were reported, with the last evaluation's under "eval_…".
      best_step: of the best evaluation, if `fit` watched for it and one was finite.
      best_metrics: what that evaluation gave, by the names that it gave.
    """

    state: TrainState
    step: int
    ended: str
    metrics: dict[str, float]
    best_step: int | None = None
    best_metrics: dict[str, float] | None = None
    load: Callable[[int, bool], TrainState] | None = dataclasses.field(default=None, repr=False)

    @property
    def stopped(self) -> bool:
        """Whether a signal ended the run before its time."""
        return self.ended == "signal"

    def best(self, *, release: bool = False) -> TrainState:
        """The state after `best_step`, from its checkpoint.

        Args:
          release: first delete the trained arrays of `state`, where memory holds only one.

        Raises:
          DataError: no evaluation was watched, or none was finite.
          CheckpointError: the checkpoint cannot be read.
        """
        if self.best_step is None or self.load is None:
            raise DataError(
                "there is no best state: pass stop_early= to fit, and see that its metric is finite"
            )
        if self.best_step == self.step:
            return self.state
        return self.load(self.best_step, release)


def restore(
    step: Step,
    state: TrainState,
    checkpointer: "Checkpointer",
    *,
    data: Any = None,
    number: int | None = None,
    release: bool,
) -> TrainState:
    """A checkpoint's state, laid out as `state`, with the same frozen arrays.

    Args:
      step: what the states belong to.
      state: one of this run.
      checkpointer: has a checkpoint.
      data: iterator to move to the saved position.
      number: of the step; None is the newest.
      release: delete the trained arrays of `state` before the checkpoint's take their place.

    Raises:
      CheckpointError: as `Checkpointer.restore`.
    """
    trained, frozen = step.split(state.variables)
    like = step.abstract_state(state.variables)
    restored = checkpointer.restore(
        like.replace(variables=step.split(like.variables)[0]),
        frozen=frozen,
        data=data,
        step=number,
        release=(trained, state.opt_state, state.extra) if release else None,
    )
    return restored.replace(variables=tree.combine(restored.variables, frozen))
