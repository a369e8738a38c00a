"""Text generation: a key–value cache and a compiled decoding loop, samplers, streaming.

`fmjax.generate` is this room and, called, its main function: `fmjax.generate(model, …)`.
"""

import sys
import types
from typing import Any

from fmjax.generate.config import GenerationConfig
from fmjax.generate.decoding import for_decoding
from fmjax.generate.generation import GenerateOutput, generate, stream
from fmjax.generate.sampling import Sampling
from fmjax.generate.text import TextStream

__all__ = [
    "GenerateOutput",
    "GenerationConfig",
    "Sampling",
    "TextStream",
    "for_decoding",
    "generate",
    "stream",
]


class _Room(types.ModuleType):
    # The name `generate` in the package is a module as soon as anything in it is imported; making
    # the module callable keeps `fmjax.generate(…)` from depending on who was imported first.
    def __call__(self, *args: Any, **kwargs: Any) -> GenerateOutput:
        return generate(*args, **kwargs)


sys.modules[__name__].__class__ = _Room
