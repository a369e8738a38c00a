"""A model made ready to be adapted, and what comes out of it: one place for every method."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax

import fmjax
from fmjax import peft
from fmjax.models.registry import get_family
from fmjax.peft.base import Base
from fmjax.recipes.models import compute_dtype
from fmjax.recipes.options import Adaptation, Hardware

# Where adapters for a task go by default: the projections onto queries and values, in the
# families' own names.
QUERY_VALUE = ("query", "value", "q_proj", "v_proj", "c_attn", "query_key_value")


@dataclasses.dataclass(frozen=True)
class Adapted:
    """A model and what is trained of it.

    Attributes:
      model: the module.
      variables: params, and the adapter where there is one.
      spec: of the adapter; None trains the params.
    """

    model: nn.Module
    variables: dict[str, Any]
    spec: Any

    def save(self, directory: Path, variables: Mapping[str, Any], base: Path) -> Path:
        """Writes what was trained: `adapter`, or else `model`.

        Args:
          directory: of the run.
          variables: trained.
          base: directory that the run started from.

        Returns:
          The directory written.
        """
        params = variables["params"]
        if self.spec is None:
            fmjax.save_pretrained(directory / "model", self.model, params, carry_from=base)
            return directory / "model"
        target = directory / "adapter"
        adapter = variables["adapter"]
        peft.save(target, self.spec, adapter, self.model, base=str(base), params=params)
        return target


def open_adapted(
    adaptation: Adaptation,
    directory: str | Path,
    hardware: Hardware,
    mesh: jax.sharding.Mesh,
    seed: int,
    *,
    override: Mapping[str, Any] | None = None,
) -> Adapted:
    """Reads a model and puts on it what the method trains.

    Args:
      adaptation: the method and its settings.
      directory: of the model.
      hardware: precision and rematerialisation.
      mesh: devices.
      seed: of a new head and of the adapter.
      override: the head of a task and its labels; None keeps the model's own. A task's head is
        trained whole beside the adapter.

    Raises:
      FmjaxError: what cannot be read, or a method that does not fit the model.
    """
    full = adaptation.method == "full"
    dtype = compute_dtype(hardware.dtype)
    model, params = fmjax.from_pretrained(
        directory,
        dtype=dtype,
        # Frozen weights need no more precision than the computation; trained ones do.
        param_dtype="float32" if full else dtype,
        remat=hardware.remat,
        mesh=mesh,
        override=override,
        new_head=None if override is None else jax.random.key(seed),
    )
    variables = {"params": params}
    if full:
        return Adapted(model, variables, None)
    task = override is not None
    heads = head_modules(model) if task and override["head"] else ()
    spec = _spec(adaptation, model, heads, task)
    variables["adapter"] = peft.init(jax.random.key(seed + 2), spec, model, params)
    return Adapted(model, variables, spec)


def _spec(adaptation: Adaptation, model: nn.Module, heads: tuple[str, ...], task: bool) -> Any:
    match adaptation.method:
        case "lora" | "rslora":
            return peft.LoRA(
                adaptation.rank,
                adaptation.alpha,
                _targets(adaptation.targets, model, task),
                adaptation.lora_dropout,
                use_rslora=adaptation.method == "rslora",
                modules_to_save=heads,
            )
    raise AssertionError(f"no method {adaptation.method!r}")


def _targets(named: tuple[str, ...], model: nn.Module, task: bool) -> tuple[str, ...] | str:
    if named:
        return named[0] if named == ("all-linear",) else named
    if not task:
        return "all-linear"
    kinds = Base.of(model).kinds()
    return tuple(kind for kind in kinds if kind in QUERY_VALUE) or "all-linear"


def head_modules(model: nn.Module) -> tuple[str, ...]:
    """Names of the modules that belong to the model's head, a pooler under it included."""
    pattern = get_family(model.config.model_type).head_tensors
    names = [name for weight in Base.of(model).weights for name in weight.names]
    found = [match.group() for name in names if (match := pattern.match(f"{name}."))]
    return tuple(dict.fromkeys(name.rstrip(".").rpartition(".")[2] for name in found))
