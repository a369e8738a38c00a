"""Answers of a fine-tuned model to rows of a file or of standard input, and how good they are."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

import fmjax
from fmjax import peft
from fmjax.core.errors import ConfigError
from fmjax.data.tasks import eval_task_batches
from fmjax.recipes.models import compute_dtype, parse_mesh, resolve_directory
from fmjax.recipes.tasks.evaluate import EvaluateTask
from fmjax.recipes.tasks.inference import Predictor, counting
from fmjax.recipes.tasks.inputs import STDIN, check_sizes, read_inputs
from fmjax.recipes.tasks.predict import Predict
from fmjax.recipes.tasks.settings import Examples
from fmjax.recipes.tasks.task import Measured, Prepared, Reading, Task
from fmjax.recipes.tasks.tasks import task_of


@dataclasses.dataclass(frozen=True)
class Opened:
    """A model with its task: what both answers and figures are made with."""

    task: Task
    reading: Reading
    model: Any
    variables: dict[str, Any]
    mesh: jax.sharding.Mesh

    @classmethod
    def of(cls, settings: Predict | EvaluateTask) -> "Opened":
        """Reads the model that the settings name.

        Raises:
          FmjaxError: a model without a task, or one that cannot be read.
        """
        mesh = parse_mesh(settings.mesh)
        check_sizes(settings.batch_size, settings.max_length, mesh)
        start = resolve_directory(settings.model, heads=None)
        task = task_of(start.config, Path(settings.model))
        dtype = compute_dtype(settings.dtype)
        model, params = fmjax.from_pretrained(settings.model, dtype=dtype, mesh=mesh)
        variables = {"params": params}
        room = 0
        if settings.adapter is not None:
            spec, variables["adapter"] = peft.load(settings.adapter, model, params)
            room = getattr(spec, "num_virtual_tokens", 0)
        stride = settings.stride
        reading = Reading.of(start.tokenizer, start.config, settings.max_length, stride, room)
        return cls(task, reading, model, variables, mesh)


def measure(settings: EvaluateTask) -> tuple[Prepared, Measured]:
    """The test examples and the figures on them.

    Raises:
      FmjaxError: a model without a task, or a file that cannot be used.
    """
    opened = Opened.of(settings)
    names = ("text_column", "pair_column", "label_column", "scheme")
    files = Examples(settings.test, **{name: getattr(settings, name) for name in names})
    examples = opened.task.load(settings.test, files)
    prepared = opened.task.prepare(examples, opened.reading)
    batches = eval_task_batches(prepared.features, settings.batch_size, **opened.reading.padding)
    predictor = Predictor(opened.model.apply, opened.task.pick, opened.mesh)
    with counting("measuring", len(prepared.features)) as advance:
        outputs, _ = predictor(opened.variables, batches, advance)
    return prepared, opened.task.measure(prepared, outputs, thorough=True)


def answers(settings: Predict) -> Iterator[list[dict[str, Any]]]:
    """The input's rows with their answers, as they are read.

    Raises:
      FmjaxError: a model without a task, or input that cannot be used.
    """
    if not 0 <= settings.threshold <= 1:
        raise ConfigError(f"--threshold {settings.threshold} must lie in 0 to 1")
    opened = Opened.of(settings)
    predictor = Predictor(opened.model.apply, opened.task.pick, opened.mesh)
    chunk = 8 * settings.batch_size
    for table in read_inputs(settings.input, settings.text_column, chunk):
        features, finish = opened.task.ask(table, opened.reading, settings)
        batches = eval_task_batches(features, settings.batch_size, **opened.reading.padding)
        with counting("answering", len(features), settings.input != STDIN) as advance:
            outputs, _ = predictor(opened.variables, batches, advance)
        yield finish(outputs)
