"""A fine-tuning run on a task, from files to files: one path for every task and method."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

import fmjax
from fmjax.core import tree
from fmjax.core.errors import ConfigError
from fmjax.data import TextBatches
from fmjax.data.tasks import eval_task_batches, task_batches
from fmjax.data.tasks.batches import EvalTaskBatches
from fmjax.recipes.adaptation import Adapted, open_adapted, starting_weights
from fmjax.recipes.models import resolve_directory
from fmjax.recipes.tasks.embedding import EmbeddingTask
from fmjax.recipes.tasks.finetune import FinetuneTask
from fmjax.recipes.tasks.inference import Predictor
from fmjax.recipes.tasks.results import write_results
from fmjax.recipes.tasks.sentences import write_sentence_model
from fmjax.recipes.tasks.start import check, laid_out, schedule
from fmjax.recipes.tasks.task import Measured, Metrics, Prepared, Reading, Task
from fmjax.recipes.tasks.tasks import TASKS
from fmjax.recipes.training import METRICS
from fmjax.train import (
    EarlyStopping,
    Outcome,
    Profile,
    Step,
    TrainState,
    fit,
    make_step,
)
from fmjax.train.checkpoint import Checkpointer
from fmjax.train.loggers import JsonlLogger, TensorBoardLogger


@dataclasses.dataclass
class TaskRun:
    """A run whose files are read and whose model is in memory; nothing is written yet.

    Attributes:
      settings: as given.
      task: with the labels that the files have.
      adapted: the model.
      valid: the examples to measure on.
      batches, held_out: to train on, and to measure on.
      examples: number of those to train on.
      steps: updates in all.
      step, state: the update, and where it starts.
      trained: how many parameters are trained, in words.
      notes: on the data.
    """

    settings: FinetuneTask
    task: Task
    adapted: Adapted
    valid: Prepared
    batches: TextBatches
    held_out: EvalTaskBatches
    examples: int
    steps: int
    step: Step
    state: TrainState
    trained: str
    notes: list[str]

    @classmethod
    def open(cls, settings: FinetuneTask) -> "TaskRun":
        """Reads files and model.

        Raises:
          FmjaxError: settings or files that cannot be used.
        """
        check(settings)
        start = resolve_directory(settings.model, heads=None)
        layout = laid_out(settings, start.config)
        seed, size = settings.optimization.seed, settings.optimization.batch_size
        task, *examples, notes = TASKS[settings.task].read(settings)
        files, room = settings.examples, settings.adaptation.positions
        limit = start.config.position_limit
        if limit and limit - room < 3:
            raise ConfigError(
                f"--virtual-tokens {room} leave no room for text in the model's {limit} positions; "
                "take fewer"
            )
        reading = Reading.of(start.tokenizer, start.config, files.max_length, files.stride, room)
        train, valid = (task.prepare(e, reading) for e in examples)
        notes += [f"to train on: {train.note}", f"to measure on: {valid.note}"]
        print(*notes, sep="\n")
        batches = task_batches(train.features, size, seed=seed, **reading.padding)
        held_out = eval_task_batches(valid.features, size, **reading.padding)
        adapted = open_adapted(
            settings.adaptation,
            settings.model,
            settings.hardware,
            layout,
            seed,
            tokenizer=start.tokenizer,
            override=task.override(),
        )
        steps = settings.steps(len(train.features))
        rate = schedule(settings, steps)
        optimization = settings.optimization
        step = make_step(
            adapted.apply,
            task.objective(optimization, train.examples),
            adapted.optimizer(
                rate,
                layer_decay=optimization.layer_decay,
                b2=0.999,
                weight_decay=optimization.weight_decay,
            ),
            mesh=layout.mesh,
            rules=layout.rules,
            trainable=adapted.trainable,
            accumulate=optimization.accumulate,
            clip_norm=optimization.clip_norm or None,
            learning_rate=rate,
            offload=settings.hardware.offloaded,
        )
        state = step.init(adapted.variables, jax.random.key(seed + 1))
        number = tree.count(step.split(state.variables)[0])
        total = tree.count(adapted.variables["params"])
        trained = f"{number:,} of {total:,} parameters trained ({number / total:.2%})"
        print(f"{trained}, {steps:,} steps")
        return cls(
            settings, task, adapted, valid, batches, held_out, len(train.features), steps,
            step, state, trained, notes,
        )  # fmt: skip

    def run(self) -> Measured | None:
        """Trains, measures and exports; consumes the state.

        Returns:
          The figures on the examples to measure on; None if a signal ended the run early.
        """
        settings, task = self.settings, self.task
        step = self.step
        predictor = Predictor(self.adapted.apply, task.pick, step.mesh, step.objective, step.rules)

        def measure(state: TrainState, thorough: bool = False) -> Measured:
            outputs, means = predictor(self.adapted.counted(state).variables, self.held_out)
            found = task.measure(self.valid, outputs, thorough)
            return dataclasses.replace(found, metrics={"loss": means["loss"], **found.metrics})

        metric = settings.optimization.metric or task.metric
        if settings.optimization.metric or task.head is None:
            before = measure(self.state).metrics
            if metric not in before:
                raise ConfigError(f"no metric {metric!r}; --metric takes {', '.join(before)}")
            shown = task.headline(before, metric).items()
            print("before training: " + ", ".join(f"{name} {value:.4f}" for name, value in shown))
        outcome = train_to_best(
            settings,
            self.step,
            self.state,
            self.batches,
            steps=self.steps,
            evaluate=lambda state: task.headline(measure(state).metrics, metric),
            eval_every=settings.eval_every(self.examples),
            stop=EarlyStopping(metric, task.mode(metric), settings.optimization.patience or None),
            config=self.adapted.model.config.to_hf(),
        )
        if outcome is None:
            return None
        measured = measure(outcome.state, thorough=True)
        self._export(self.adapted.counted(outcome.state).variables)
        if jax.process_index() == 0:
            write_results(settings, measured, metric, outcome, self.trained, self.notes)
        return measured

    def _export(self, variables: dict[str, Any]) -> None:
        settings, adapted, task = self.settings, self.adapted, self.task
        if adapted.spec is not None:
            adapted.save(settings.out, variables, settings.model)
        target = settings.out / "model"
        params = adapted.merged(variables)
        fmjax.save_pretrained(target, adapted.model, params, carry_from=settings.model)
        if isinstance(task, EmbeddingTask) and jax.process_index() == 0:
            width, length = adapted.model.config.hidden_size, settings.examples.max_length
            write_sentence_model(target, width, task.pooling, length)


def train_to_best(
    settings: Any,
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
    profile = Profile.of(settings.hardware.profile, out / "profile")
    checkpointer = Checkpointer(
        out / "checkpoints",
        keep=1,
        best=stop.best,
        config={**settings.record(), "architecture": config, **starting_weights(state.variables)},
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
            profile=profile,
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
