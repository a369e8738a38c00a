"""Whole runs out of the library's parts: what the command line and the experiments share.

Importing this room imports no JAX; `run()` does.
"""

from fmjax.recipes.chat import FinetuneDpo, FinetuneSft
from fmjax.recipes.finetune import Finetune
from fmjax.recipes.options import Adaptation, Cadence, Data, Hardware, Masking, Optimization
from fmjax.recipes.pretrain import Pretrain
from fmjax.recipes.tasks import Embed, EvaluateTask, FinetuneTask, Predict
from fmjax.recipes.vision import Classify, EmbedImages, PretrainImages, Retrieve

__all__ = [
    "Adaptation",
    "Cadence",
    "Classify",
    "Data",
    "Embed",
    "EmbedImages",
    "EvaluateTask",
    "Finetune",
    "FinetuneDpo",
    "FinetuneSft",
    "FinetuneTask",
    "Hardware",
    "Masking",
    "Optimization",
    "Predict",
    "Pretrain",
    "PretrainImages",
    "Retrieve",
]
