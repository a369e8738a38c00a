"""The training loop: steps, evaluations, checkpoints and logs in their order."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from fmjax.core import tree
from fmjax.core.errors import ConfigError, DataError
from fmjax.train.loggers import JsonlLogger, Logger, TensorBoardLogger
from fmjax.train.meter import Meter
from fmjax.train.progress import Display
from fmjax.train.run import Run
from fmjax.train.signals import StopRequest
from fmjax.train.state import TrainState
from fmjax.train.step import Batch, Step

if TYPE_CHECKING:
    from fmjax.train.checkpoint import Checkpointer


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
      state: after the last step.
      step: number of that step.
      stopped: a signal ended the run before its time; its state is saved if there is a place.
      metrics: the last that were reported, with the last evaluation's under "eval_…".
    """

    state: TrainState
    step: int
    stopped: bool
    metrics: dict[str, float]


def fit(
    step: Step,
    state: TrainState,
    batches: Iterator[Batch],
    *,
    steps: int,
    out_dir: str | Path | None = None,
    checkpointer: "Checkpointer | None" = None,
    save_every: int | None = None,
    eval_batches: Callable[[], Iterable[Batch]] | None = None,
    eval_every: int | None = None,
    log_every: int = 10,
    loggers: Sequence[Logger] | None = None,
    flops_per_step: float | None = None,
    progress: bool = True,
) -> Outcome:
    """Trains up to step number `steps`, from the newest checkpoint if there is one.

    A run that is stopped at any moment and started again with the same arguments computes what an
    unbroken run computes, and leaves the same metrics log. Metrics are read one step late, so that
    the device always has the next step queued. SIGTERM and SIGINT end the run after the current
    step and a last checkpoint.

    Args:
      step: from `make_step`.
      state: from `step.init`; consumed.
      batches: iterator of dicts of host arrays. To resume it needs get_state() and set_state(). The
        run ends early when it does.
      steps: number of the last step, counted from the very first run.
      out_dir: holds checkpoints/, metrics.jsonl and tensorboard/ by default; None keeps nothing.
      checkpointer: in place of the default one.
      save_every: steps between checkpoints; one is saved at the end in any case.
      eval_batches: gives the evaluation batches afresh at each call.
      eval_every: steps between evaluations; there is one at the end in any case.
      log_every: steps between written metrics.
      loggers: in place of the default JSONL and TensorBoard ones.
      flops_per_step: model FLOPs of a step (`train_flops_per_token` × tokens), to report MFU.
      progress: show progress on stderr.

    Raises:
      CheckpointError: the checkpoint is of another configuration, or saving failed.
      DataError: the data cannot go back to where the checkpoint was saved, or gives nothing.
    """
    for name, every in (("save_every", save_every), ("eval_every", eval_every)):
        if every is not None and every < 1:
            raise ConfigError(f"{name} is {every}; it must be at least 1, or None")
    if log_every < 1:
        raise ConfigError(f"log_every is {log_every}; it must be at least 1")
    if not hasattr(batches, "__next__"):
        batches = iter(batches)
    own = checkpointer is None and out_dir is not None
    if own:
        from fmjax.train.checkpoint import Checkpointer

        checkpointer = Checkpointer(Path(out_dir) / "checkpoints")
    if loggers is None:
        loggers = [] if out_dir is None else _default_loggers(Path(out_dir))
    main = jax.process_index() == 0
    loggers = list(loggers) if main else []
    try:
        state = _resume(step, state, batches, checkpointer)
        first = int(state.step)
        for logger in loggers:
            logger.resume(first)
        devices = jax.devices()[:1] if step.mesh is None else step.mesh.devices.flatten().tolist()
        with Display(steps, progress and main) as display, StopRequest() as stop:
            if first:
                display.message(f"resuming after step {first}")
            run = Run(
                step,
                state,
                batches,
                steps=steps,
                log_every=log_every,
                checkpointer=checkpointer,
                loggers=loggers,
                display=display,
                meter=Meter(steps, flops_per_step, devices),
            )
            stopped = False
            if first and run.due(eval_every) and not checkpointer.metrics(first):
                # A signal came at this step, and saving went before the evaluation.
                run.evaluate(eval_batches)
            while run.number < run.steps and not stopped:
                if not run.advance():
                    run.steps = run.number
                last = run.number == run.steps
                stopped = not last and stop(run.number)
                if not stopped and (last or run.due(eval_every)):
                    run.evaluate(eval_batches)
                if last or stopped or run.due(save_every):
                    run.save()
            if stopped:
                display.message(f"stopped after step {run.number}")
        if checkpointer is not None:
            checkpointer.wait()
    finally:
        for logger in loggers:
            logger.close()
        if own:
            checkpointer.close()
    return Outcome(run.state, run.number, stopped, run.metrics)


def _default_loggers(out_dir: Path) -> list[Logger]:
    return [JsonlLogger(out_dir / "metrics.jsonl"), TensorBoardLogger(out_dir / "tensorboard")]


def _resume(
    step: Step, state: TrainState, batches: Any, checkpointer: "Checkpointer | None"
) -> TrainState:
    if checkpointer is None or not checkpointer.steps():
        return state
    if not hasattr(batches, "set_state"):
        raise DataError(
            f"{checkpointer.directory} has a checkpoint, but the batches have no set_state() to go "
            "on from it; pass an iterator that has, or another directory"
        )
    trained, frozen = step.split(state.variables)
    like = step.abstract_state(state.variables)
    restored = checkpointer.restore(
        like.replace(variables=step.split(like.variables)[0]),
        frozen=frozen,
        data=batches,
        release=(trained, state.opt_state, state.extra),
    )
    return restored.replace(variables=tree.combine(restored.variables, frozen))
