"""Plan before you pay: a step compiled for accelerators that are not there, and what it takes.

The room needs a step only, whatever the model; `fmjax.recipes.plan` builds those of models and
methods. Call `prepare` before JAX is imported: names are imported when they are first used.
"""

import importlib
from typing import Any

_HOME = {
    "CHIPS": "chips",
    "Chip": "chips",
    "Memory": "result",
    "Plan": "result",
    "Topology": "topology",
    "describe": "topology",
    "parse": "topology",
    "plan": "engine",
    "plan_traced": "engine",
    "prepare": "environment",
}

__all__ = sorted(_HOME)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fmjax.plan' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"fmjax.plan.{_HOME[name]}"), name)
    globals()[name] = value
    return value
