"""The training loop: steps, evaluations, checkpoints and logs in their order."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from fmjax.core.errors import ConfigError, DataError
from fmjax.parallel import meet
from fmjax.train.clock import Clock
from fmjax.train.early_stopping import EarlyStopping, Watch
from fmjax.train.evaluate import evaluate as means
from fmjax.train.loggers import JsonlLogger, Logger, TensorBoardLogger
from fmjax.train.meter import Meter
from fmjax.train.outcome import Outcome, restore
from fmjax.train.profile import Profile
from fmjax.train.progress import Display
from fmjax.train.run import TIME, Run
from fmjax.train.signals import StopRequest
from fmjax.train.state import TrainState
from fmjax.train.step import Batch, Step
from fmjax.train.stragglers import Stragglers
from fmjax.train.watchdog import Watchdog

if TYPE_CHECKING:
    from fmjax.train.checkpoint import Checkpointer


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
    evaluate: Callable[[TrainState], Mapping[str, float]] | None = None,
    eval_every: int | None = None,
    stop_early: EarlyStopping | None = None,
    log_every: int = 10,
    loggers: Sequence[Logger] | None = None,
    flops_per_step: float | None = None,
    progress: bool = True,
    hang_seconds: float = 60.0,
    compare_hosts_every: int = 200,
    profile: Profile | None = None,
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
      eval_batches: gives the evaluation batches afresh at each call; the evaluation is the mean of
        the objective over them.
      evaluate: in place of `eval_batches`: state → metrics by name. Of several processes, each must
        give the same.
      eval_every: steps between evaluations; there is one at the end in any case.
      stop_early: keep the best state by a metric of the evaluations, see `Outcome.best`, and end
        the run when patience has run out. Every evaluation that is best is followed by a
        checkpoint. A `checkpointer` must have been given `best=stop_early.best`.
      log_every: steps between written metrics.
      loggers: in place of the default JSONL and TensorBoard ones.
      flops_per_step: model FLOPs of a step (`train_flops_per_token` × tokens), to report MFU.
      progress: show progress on stderr.
      hang_seconds: a step that takes longer than this, and than five usual ones, is reported with
        its host and a dump of the threads, see `Watchdog`.
      compare_hosts_every: steps between comparisons of the hosts, see `Stragglers`.
      profile: steps to trace.

    Raises:
      ConfigError: arguments out of range or at odds, or a metric that the evaluation does not give.
      CheckpointError: the checkpoint is of another configuration, or saving failed.
      DataError: the data cannot go back to where the checkpoint was saved, or gives nothing.
    """
    for name, every in (("save_every", save_every), ("eval_every", eval_every)):
        if every is not None and every < 1:
            raise ConfigError(f"{name} is {every}; it must be at least 1, or None")
    for name, every in (("log_every", log_every), ("compare_hosts_every", compare_hosts_every)):
        if every < 1:
            raise ConfigError(f"{name} is {every}; it must be at least 1")
    if hang_seconds <= 0:
        raise ConfigError(f"hang_seconds is {hang_seconds}; it must be positive")
    if eval_batches is not None:
        if evaluate is not None:
            raise ConfigError("fit takes eval_batches or evaluate, not both")

        def evaluate(state: TrainState) -> dict[str, float]:
            return means(step, state, eval_batches())

    if not hasattr(batches, "__next__"):
        batches = iter(batches)
    own = checkpointer is None and out_dir is not None
    if own:
        from fmjax.train.checkpoint import Checkpointer

        best = None if stop_early is None else stop_early.best
        checkpointer = Checkpointer(Path(out_dir) / "checkpoints", best=best)
    if loggers is None:
        loggers = [] if out_dir is None else _default_loggers(Path(out_dir))
    main = jax.process_index() == 0
    loggers = list(loggers) if main else []
    try:
        state = _resume(step, state, batches, checkpointer)
        first = int(state.step)
        evaluates = evaluate is not None and eval_every is not None
        notes = checkpointer.notes(first) if checkpointer is not None and first else {}
        clock = Clock(notes.pop(TIME, None))
        watch = _watch(stop_early, checkpointer, notes, evaluates)
        for logger in loggers:
            logger.resume(first)
        devices = jax.devices()[:1] if step.mesh is None else step.mesh.devices.flatten().tolist()
        with (
            Display(steps, progress and main) as display,
            StopRequest() as stop,
            Watchdog(clock, least=hang_seconds),
        ):
            if first:
                display.message(f"resuming after step {first}")
            run = Run(
                step,
                state,
                batches,
                steps=steps,
                log_every=log_every,
                evaluate=evaluate,
                watch=watch,
                checkpointer=checkpointer,
                loggers=loggers,
                display=display,
                meter=Meter(steps, flops_per_step, devices, step.unit),
                clock=clock,
                stragglers=Stragglers(clock, compare_hosts_every),
                profile=profile,
            )
            if first and run.due(eval_every):
                # If a signal came at this step, saving went before the evaluation.
                run.evaluate()
                run.save()
            meet(step.mesh)
            while run.ended is None:
                if not run.advance():
                    run.end("data")
                elif run.number == steps:
                    run.end("steps")
                elif stop(run.number):
                    run.end("signal")
                if run.ended != "signal" and (run.ended or run.due(eval_every)):
                    run.evaluate()
                if run.ended or run.improved or run.due(save_every):
                    run.save()
            if run.ended == "signal":
                display.message(f"stopped after step {run.number}")
            if run.number > first:
                display.message(clock.summary())
        if checkpointer is not None:
            checkpointer.wait()
    finally:
        if profile is not None:
            profile.stop()
        for logger in loggers:
            logger.close()
        if own:
            checkpointer.close()
    return run.outcome()


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
    return restore(step, state, checkpointer, data=batches, release=True)


def _watch(
    stop_early: EarlyStopping | None,
    checkpointer: "Checkpointer | None",
    notes: Mapping[str, Any],
    evaluates: bool,
) -> Watch | None:
    """What early stopping remembers, by the notes of the checkpoint."""
    if stop_early is None:
        return None
    if not evaluates:
        raise ConfigError("early stopping needs evaluations; pass evaluate= and eval_every=")
    if checkpointer is None:
        raise ConfigError("early stopping keeps the best state in a checkpoint; pass out_dir=")
    if checkpointer.best != stop_early.best:
        raise ConfigError(
            f"the checkpointer keeps the best by {checkpointer.best}, early stopping needs "
            f"{stop_early.best}; create it with best=stop_early.best"
        )
    return Watch.resume(stop_early, notes)
