"""One functional JAX library for every kind of foundation model.

Load it, pretrain it, adapt it, prompt it, measure it, ship it back as PyTorch files. The nouns are
few: a config (frozen dataclass), a model (Linen module with pure `init` and `apply`), params and
adapters (nested dicts of arrays), an objective (two pure functions), a state (one pytree), a mesh
and rules (data). Names are imported when they are first used, so that `import fmjax` is quick.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Execution": "fmjax.core.execution",
    "FmjaxError": "fmjax.core.errors",
    "abstract_params": "fmjax.models.registry",
    "build": "fmjax.models.registry",
    "dequantize": "fmjax.quantization",
    "from_pretrained": "fmjax.hub",
    "init_params": "fmjax.initialize",
    "load_tokenizer": "fmjax.data",
    "make_mesh": "fmjax.parallel",
    "param_count": "fmjax.models.registry",
    "presets": "fmjax.models.registry",
    "quantize": "fmjax.quantization",
    "save_pretrained": "fmjax.hub",
}
_ROOMS = (
    "convert",
    "core",
    "data",
    "generate",
    "models",
    "nn",
    "objectives",
    "parallel",
    "peft",
    "quant",
    "train",
)

__all__ = sorted([*_HOME, *_ROOMS])  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"fmjax.{name}")
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'fmjax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
