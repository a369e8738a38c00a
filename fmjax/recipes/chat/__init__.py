"""Runs on conversations: instruction tuning and preferences, from files to files.

Importing this room imports no JAX; `run()` does.
"""

from fmjax.recipes.chat.finetune import FinetuneDpo, FinetuneSft
from fmjax.recipes.chat.settings import ChatExamples, ChatOptimization, Preference, Samples

__all__ = [
    "ChatExamples",
    "ChatOptimization",
    "FinetuneDpo",
    "FinetuneSft",
    "Preference",
    "Samples",
]
