"""A fine-tuning run on a task, from files to files."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

import fmjax
from fmjax import peft
from fmjax.core import tree
from fmjax.core.errors import ConfigError
from fmjax.data import TextBatches
from fmjax.data.tasks import eval_task_batches, task_batches
from fmjax.recipes.adaptation import Adapted, open_adapted
from fmjax.recipes.models import parse_mesh, resolve_directory
from fmjax.recipes.tasks.embedding import EmbeddingTask
from fmjax.recipes.tasks.finetune import FinetuneTask
from fmjax.recipes.tasks.inference import Predictor
from fmjax.recipes.tasks.results import write_results
from fmjax.recipes.tasks.start import check, optimizer, schedule
from fmjax.recipes.tasks.task import Measured, Metrics, Reading, Task
from fmjax.recipes.tasks.tasks import TASKS
from fmjax.recipes.tasks.vectors import write_pooling
from fmjax.recipes.training import METRICS
from fmjax.train import (
    EarlyStopping,
    Outcome,
    Step,
    TrainState,
    fit,
    make_step,
)
from fmjax.train.checkpoint import Checkpointer
from fmjax.train.loggers import JsonlLogger, TensorBoardLogger


def finetune(settings: FinetuneTask) -> Measured | None:
    """Trains, measures and exports; see `FinetuneTask.run`.

    Returns:
      The figures on the examples to measure on; None if a signal ended the run early.
    """
    check(settings)
    start = resolve_directory(settings.model, heads=None)
    mesh = parse_mesh(settings.hardware.mesh)
    seed, size = settings.optimization.seed, settings.optimization.batch_size
    task, *examples, notes = TASKS[settings.task].read(settings)
    files = settings.examples
    reading = Reading.of(start.tokenizer, start.config, files.max_length, files.stride)
    train, valid = (task.prepare(e, reading) for e in examples)
    notes += [f"to train on: {train.note}", f"to measure on: {valid.note}"]
    print(*notes, sep="\n")
    batches = task_batches(train.features, size, seed=seed, **reading.padding)
    held_out = eval_task_batches(valid.features, size, **reading.padding)
    adapted = open_adapted(
        settings.adaptation, settings.model, settings.hardware, mesh, seed, override=task.override()
    )
    model, variables = adapted.model, adapted.variables
    steps = settings.steps(len(train.features))
    rate = schedule(settings, steps)
    step = make_step(
        model,
        task.objective(settings.optimization, train.examples),
        optimizer(settings, rate, model.config.num_hidden_layers),
        mesh=mesh,
        accumulate=settings.optimization.accumulate,
        clip_norm=settings.optimization.clip_norm or None,
        learning_rate=rate,
    )
    state = step.init(variables, jax.random.key(seed + 1))
    number, total = tree.count(step.split(state.variables)[0]), tree.count(variables["params"])
    trained = f"{number:,} of {total:,} parameters trained ({number / total:.2%})"
    print(f"{trained}, {steps:,} steps")
    del variables
    predictor = Predictor(model, task.pick, mesh, step.objective)

    def measure(variables: Any, thorough: bool = False) -> Measured:
        outputs, means = predictor(variables, held_out)
        found = task.measure(valid, outputs, thorough)
        return dataclasses.replace(found, metrics={"loss": means["loss"], **found.metrics})

    metric = settings.optimization.metric or task.metric
    if settings.optimization.metric or task.head is None:
        before = measure(state.variables).metrics
        if metric not in before:
            raise ConfigError(f"no metric {metric!r}; --metric takes {', '.join(before)}")
        shown = task.headline(before, metric).items()
        print("before training: " + ", ".join(f"{name} {value:.4f}" for name, value in shown))
    outcome = train_to_best(
        settings,
        step,
        state,
        batches,
        steps=steps,
        evaluate=lambda state: task.headline(measure(state.variables).metrics, metric),
        eval_every=settings.eval_every(len(train.features)),
        stop=EarlyStopping(metric, task.mode(metric), settings.optimization.patience or None),
        config=model.config.to_hf(),
    )
    if outcome is None:
        return None
    measured = measure(outcome.state.variables, thorough=True)
    _export(settings, task, adapted, outcome.state.variables)
    write_results(settings, measured, metric, outcome, trained, notes)
    return measured


def train_to_best(
    settings: FinetuneTask,
    step: Step,
    state: TrainState,
    batches: TextBatches,
    *,
    steps: int,
    evaluate: Callable[[TrainState], Metrics],
    eval_every: int,
    stop: EarlyStopping,
    config: dict[str, Any],
) -> Outcome | None:
    """Trains to the end; the outcome's state is the best one. None if a signal came before.

    Args:
      settings: with `record()`, out, model, log_every and tensorboard.
      others: as of `fit`; `config` is the architecture.
    """
    out = Path(settings.out)
    checkpointer = Checkpointer(
        out / "checkpoints",
        keep=1,
        best=stop.best,
        config={**settings.record(), "architecture": config},
        base=str(settings.model),
    )
    loggers = [JsonlLogger(out / METRICS)]
    if settings.tensorboard:
        loggers.append(TensorBoardLogger(out / "tensorboard"))
    try:
        outcome = fit(
            step,
            state,
            batches,
            steps=steps,
            checkpointer=checkpointer,
            evaluate=evaluate,
            eval_every=eval_every,
            stop_early=stop,
            log_every=settings.log_every,
            loggers=loggers,
        )
        if outcome.stopped:
            print(f"stopped after step {outcome.step}; the same command goes on from there")
            return None
        if outcome.best_step is None:
            print(f"note: {stop.metric} was never a finite number; the last state is kept")
            return outcome
        return dataclasses.replace(outcome, state=outcome.best(release=True))
    finally:
        checkpointer.close()
        batches.close()


def _export(settings: FinetuneTask, task: Task, adapted: Adapted, variables: Any) -> None:
    model, params = adapted.model, variables["params"]
    if adapted.spec is not None:
        adapted.save(settings.out, variables, settings.model)
        params = peft.merge(model, params, variables["adapter"])
    target = settings.out / "model"
    fmjax.save_pretrained(target, model, params, carry_from=settings.model)
    if isinstance(task, EmbeddingTask):
        write_pooling(target, model.config.hidden_size, task.pooling, settings.examples.max_length)
