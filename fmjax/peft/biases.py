"""Biases of the base that a spec trains: its field `bias`, as PEFT has it.

They are copies in the adapter like those of `modules_to_save` (`fmjax.peft.saved`), but a bias of
an adapted layer has another name in the files, after the wrapper that PEFT puts around the layer.
"""

from typing import Any

from fmjax.core.errors import ConfigError
from fmjax.peft.base import PREFIX, Base, Weight
from fmjax.peft.config import LoRA
from fmjax.peft.lora_sites import sites


def trained(spec: Any, base: Base) -> list[Weight]:
    """The biases that `spec` trains, those of whole modules apart, in the model's order.

    Raises:
      ConfigError: only some of a stack, with bias="lora_only".
    """
    if not isinstance(spec, LoRA) or spec.bias == "none":
        return []
    adapted = _adapted(spec, base)
    found = []
    for weight in base.params:
        if not is_bias(weight) or any(spec.saves(name) for name in weight.names):
            continue
        covered = [spec.bias == "all" or name in adapted for name in weight.names]
        if any(covered) and not all(covered):
            one, other = (weight.names[covered.index(c)] for c in (True, False))
            raise ConfigError(
                f"LoRA: bias='lora_only' trains the bias of {one!r} but not of {other!r}, which "
                "lies in the same array; target all layers, or build the model with "
                "scan_layers=False"
            )
        if all(covered):
            found.append(weight)
    return found


def keys(spec: Any, base: Base, weight: Weight) -> list[str]:
    """Names of a parameter's tensors in an adapter's file, without what stands before all names."""
    if not is_bias(weight) or any(spec.saves(name) for name in weight.names):
        leaf = weight.target.row.hf.rpartition(".")[2]
        return [f"{name}.{leaf}" for name in weight.names]
    adapted = _adapted(spec, base)
    return [
        f"{name}.base_layer.bias" if name in adapted else f"{name}.bias" for name in weight.names
    ]


def repeated(spec: Any, base: Base, key: str) -> bool:
    """Whether PEFT wrote this tensor without need, with bias="all".

    It stores biases of modules that are trained whole three times: what the module has, the same
    again, and what the base had and nothing reads. One with two names it stores under both.
    """
    ends = (".original_module.bias", ".modules_to_save.bias")
    name = key.removeprefix(PREFIX).replace(".base_layer.", ".")
    second = any(row.copy and row.hf == name for row in base.rows)
    return getattr(spec, "bias", "none") == "all" and (
        key.endswith(ends) or (second and name.endswith(".bias"))
    )


def is_bias(weight: Weight) -> bool:
    """Whether a parameter is one of those that PEFT calls biases: by its name in the files."""
    return weight.target.keys[0].endswith(".bias")


def _adapted(spec: LoRA, base: Base) -> set[str]:
    found = sites(spec, base)
    return {n for s in found for n, rank in zip(s.weight.names, s.ranks, strict=True) if rank}
