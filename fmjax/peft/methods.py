"""The table of adaptation methods: what each must provide to be created, counted and filed."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from fmjax.core.errors import ConfigError
from fmjax.peft import ia3, ia3_files, lora, lora_config, lora_files, lora_sites
from fmjax.peft.base import Base
from fmjax.peft.config import LoRA
from fmjax.peft.ia3 import IA3

Spec = LoRA | IA3  # the union of the classes in the table below


@dataclasses.dataclass(frozen=True)
class Method:
    """One way of adapting a model. The functions take (spec, base) first; see `fmjax.peft.lora`.

    Modules that are trained whole are no method's affair: every spec has `modules_to_save` and
    `saves`, and `fmjax.peft.saved` serves them all.

    Attributes:
      check: raises ConfigError for a spec that does not fit the model or has idle parts.
      abstract: nested dict of `ParamSpec`.
      init: (rng, spec, base, params) → adapter; traced.
      count: number of trained parameters.
      shapes: {name in the file: shape}, exactly what a file of this spec holds.
      pack: adapter {path: host array} → {name in the file: array}.
      unpack: {name in the file: array} → adapter {path: host array}.
      to_peft: → contents of adapter_config.json.
      from_peft: (those contents, base) → spec of what the file holds, which is expanded.
      expand: (spec, base, adapter["encoder"]) → the part of the adapter that it stands for; None
        where everything that is trained is applied as it is.
    """

    check: Callable[[Any, Base], None]
    abstract: Callable[[Any, Base], dict[str, Any]]
    init: Callable[[jax.Array, Any, Base, Any], dict[str, Any]]
    count: Callable[[Any, Base], int]
    shapes: Callable[[Any, Base], dict[str, tuple[int, ...]]]
    pack: Callable[[Any, Base, Mapping[str, np.ndarray]], dict[str, np.ndarray]]
    unpack: Callable[[Any, Base, Mapping[str, np.ndarray]], dict[str, np.ndarray]]
    to_peft: Callable[[Any, Base], dict[str, Any]]
    from_peft: Callable[[Mapping[str, Any], Base], Any]
    expand: Callable[[Any, Base, Any], dict[str, Any]] | None = None


# peft_type of an adapter_config.json → (spec class, method).
METHODS: dict[str, tuple[type, Method]] = {
    "LORA": (
        LoRA,
        Method(
            check=lora_sites.check,
            abstract=lora.abstract,
            init=lora.init,
            count=lora.count,
            shapes=lora_files.shapes,
            pack=lora_files.pack,
            unpack=lora_files.unpack,
            to_peft=lora_config.to_peft,
            from_peft=lora_config.from_peft,
        ),
    ),
    "IA3": (
        IA3,
        Method(
            check=ia3.check,
            abstract=ia3.abstract,
            init=ia3.init,
            count=ia3.count,
            shapes=ia3_files.shapes,
            pack=ia3_files.pack,
            unpack=ia3_files.unpack,
            to_peft=ia3_files.to_peft,
            from_peft=ia3_files.from_peft,
        ),
    ),
}


def method_of(spec: Any) -> Method:
    """The method that a spec belongs to.

    Raises:
      ConfigError: an object that is no adapter spec.
    """
    for cls, method in METHODS.values():
        if type(spec) is cls:
            return method
    known = ", ".join(cls.__name__ for cls, _ in METHODS.values())
    raise ConfigError(f"{spec!r} is not an adapter spec; give one of fmjax.peft.{known}")
