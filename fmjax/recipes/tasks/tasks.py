"""Tasks by name, and by the head of a model."""

from pathlib import Path
from typing import Any

from fmjax.core.errors import ConfigError
from fmjax.recipes.tasks.classification import ClassificationTask
from fmjax.recipes.tasks.embedding import EmbeddingTask
from fmjax.recipes.tasks.questions import QuestionsTask
from fmjax.recipes.tasks.tagging import TaggingTask
from fmjax.recipes.tasks.task import Task

TASKS: dict[str, type[Task]] = {
    task.name: task for task in (ClassificationTask, TaggingTask, QuestionsTask, EmbeddingTask)
}


def task_of(config: Any, directory: Path) -> Task:
    """The task that a model was fine-tuned on.

    Raises:
      ConfigError: a model without a head for a task.
    """
    for task in TASKS.values():
        if task.head is not None and task.head == config.head:
            return task.of_config(config)
    known = ", ".join(str(task.head) for task in TASKS.values() if task.head)
    what = f"the head {config.head!r}" if config.head else "no head"
    raise ConfigError(
        f"{directory} has {what}, which answers no task ({known}); fine-tune it with "
        "`fmjax finetune --task`, or use `fmjax embed` for vectors"
    )
