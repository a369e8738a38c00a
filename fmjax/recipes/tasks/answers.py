"""Answers of a fine-tuned model to rows of a file or of standard input."""

from collections.abc import Iterator
from typing import Any

import fmjax
from fmjax.core.errors import ConfigError
from fmjax.data.tasks import eval_task_batches
from fmjax.recipes.models import compute_dtype, parse_mesh, resolve_directory
from fmjax.recipes.tasks.inference import Predictor, counting
from fmjax.recipes.tasks.inputs import STDIN, check_sizes, read_inputs
from fmjax.recipes.tasks.predict import Predict
from fmjax.recipes.tasks.task import Reading
from fmjax.recipes.tasks.tasks import task_of


def answers(settings: Predict) -> Iterator[list[dict[str, Any]]]:
    """The input's rows with their answers, as they are read.

    Raises:
      FmjaxError: a model without a task, or input that cannot be used.
    """
    if not 0 <= settings.threshold <= 1:
        raise ConfigError(f"--threshold {settings.threshold} must lie in 0 to 1")
    mesh = parse_mesh(settings.mesh)
    check_sizes(settings.batch_size, settings.max_length, mesh)
    start = resolve_directory(settings.model, heads=None)
    task = task_of(start.config, settings.model)
    model, params = fmjax.from_pretrained(
        settings.model, dtype=compute_dtype(settings.dtype), mesh=mesh
    )
    predictor = Predictor(model, task.pick, mesh)
    reading = Reading.of(start.tokenizer, start.config, settings.max_length, settings.stride)
    chunk = 8 * settings.batch_size
    for table in read_inputs(settings.input, settings.text_column, chunk):
        features, finish = task.ask(table, reading, settings)
        batches = eval_task_batches(features, settings.batch_size, **reading.padding)
        with counting("answering", len(features), settings.input != STDIN) as advance:
            outputs, _ = predictor({"params": params}, batches, advance)
        yield finish(outputs)
