"""Adapting a model to a task, and using the result: classification, tagging, questions, embedding.

`TaskRun` (run.py) is one path for every task and method. What tasks differ in (how files are read,
what the model's head and objective are, what is measured and shown) is a `Task`, one file each.
Importing this room imports no JAX.
"""

from fmjax.recipes.options import Adaptation
from fmjax.recipes.tasks.embed import Embed
from fmjax.recipes.tasks.evaluate import EvaluateTask
from fmjax.recipes.tasks.finetune import FinetuneTask
from fmjax.recipes.tasks.predict import Predict
from fmjax.recipes.tasks.settings import Examples, TaskOptimization

__all__ = [
    "Adaptation",
    "Embed",
    "EvaluateTask",
    "Examples",
    "FinetuneTask",
    "Predict",
    "TaskOptimization",
]
