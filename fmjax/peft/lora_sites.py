"""Which matrices of a model LoRA goes on, with which ranks and scales."""

import dataclasses
from typing import Any

from fmjax.core.errors import ConfigError
from fmjax.peft.base import Base, Weight
from fmjax.peft.config import ALL_LINEAR, LoRA, names_match, pattern_matches


@dataclasses.dataclass(frozen=True)
class Site:
    """A weight with an adapter on at least one of its layers.

    Attributes:
      weight: the matrix, stacked or not.
      ranks: of each layer; 0 where a layer is not adapted.
      scales: of each layer; 0 where a layer is not adapted.
    """

    weight: Weight
    ranks: tuple[int, ...]
    scales: tuple[float, ...]

    @property
    def rank(self) -> int:
        """Of the arrays: the largest of the layers'."""
        return max(self.ranks)

    def leaves(self, spec: LoRA) -> dict[str, tuple[tuple[int, ...], tuple[str | None, ...]]]:
        """{leaf: (shape, logical axes)} of one layer, constants apart."""
        w = self.weight
        lead = w.inner == 2  # experts have factors of their own each
        found = {
            "lora_a": ((*w.inputs, self.rank), (*w.axes[: w.inner], "lora")),
            "lora_b": (
                (*w.shape[:lead], self.rank, *w.outputs),
                (*w.axes[:lead], "lora", *w.output_axes),
            ),
        }
        for name in ("magnitude",) * spec.use_dora + ("lora_bias",) * spec.lora_bias:
            found[name] = (w.outputs, w.output_axes)
        return found


def sites(spec: LoRA, base: Base) -> list[Site]:
    """The weights that `spec` touches, in the model's order.

    Raises:
      ConfigError: targets that match nothing or a module that is not a layer; an embedding with
        lora_bias.
    """
    found: list[Site] = []
    for weight in base.adaptable:
        names = [name if _chosen(spec, base, weight, name) else None for name in weight.names]
        if any(names):
            if spec.lora_bias and not weight.linear:
                raise ConfigError(
                    f"LoRA: lora_bias does not go with the embedding {weight.names[0]!r}; "
                    "take it out of targets"
                )
            ranks = tuple(spec.rank_of(n) if n else 0 for n in names)
            scales = tuple(spec.scale_of(n) if n else 0.0 for n in names)
            found.append(Site(weight, ranks, scales))
    if spec.targets != ALL_LINEAR:
        _refuse_others(spec, base)
    if not found:
        raise ConfigError(
            f"LoRA: targets={spec.targets!r} (exclude={spec.exclude!r}, "
            f"modules_to_save={spec.modules_to_save!r}) match no layer of this "
            f"{base.model_type} model; choose from {', '.join(base.kinds())} or 'all-linear'"
        )
    return found


def _chosen(spec: LoRA, base: Base, weight: Weight, name: str) -> bool:
    if weight in base.fused:
        return names_match(spec.target_parameters, name)
    if spec.excludes(name) or spec.saves(name):
        return False
    if spec.targets == ALL_LINEAR:
        return weight.linear and not weight.head and not weight.conv
    return spec.matches(name)


def _refuse_others(spec: LoRA, base: Base) -> None:
    for name in sorted(base.others - base.tied.keys()):
        if spec.matches(name) and not spec.excludes(name) and not spec.saves(name):
            raise ConfigError(
                f"LoRA: targets={spec.targets!r} match {name!r}, which is neither a linear layer "
                f"nor an embedding; choose from {', '.join(base.kinds())}"
            )


def check(spec: LoRA, base: Base) -> None:
    """Refuses a spec with a part that has no effect on this model: most likely a slip.

    Raises:
      ConfigError: a target, exclusion, pattern or layer number that matches no layer.
    """
    every = [name for weight in (*base.weights, *base.heads) for name in weight.names]
    pairs = [
        (s, n, r) for s in sites(spec, base) for n, r in zip(s.weight.names, s.ranks, strict=True)
    ]
    used = [name for _, name, rank in pairs if rank]
    layers = [name for site, name, rank in pairs if rank and site.weight not in base.fused]

    def refuse(field: str, value: Any) -> None:
        raise ConfigError(
            f"LoRA: {field} {value!r} matches no adapted layer of this {base.model_type} model; "
            f"correct or remove it (layers: {', '.join(base.kinds())})"
        )

    for field, wanted, names in (
        ("targets", spec.targets, layers),
        ("exclude", spec.exclude, every),
    ):
        for name in () if isinstance(wanted, str) else wanted:
            if not any(names_match((name,), n) for n in names):
                refuse(field, name)
    for name in spec.target_parameters:
        if not any(names_match((name,), n) for w in base.fused for n in w.names):
            known = dict.fromkeys(".".join(w.names[0].split(".")[-3:]) for w in base.fused)
            raise ConfigError(
                f"LoRA: target_parameters {name!r} matches no experts and no router of this "
                f"{base.model_type} model; "
                + (f"choose from {', '.join(known)}" if known else "name layers in targets")
            )
    for field in ("rank_pattern", "alpha_pattern"):
        for pattern, _ in getattr(spec, field):
            if not any(pattern_matches(pattern, n) for n in used):
                refuse(field, pattern)
    for number in spec.layers_to_transform or ():
        alone = dataclasses.replace(spec, layers_to_transform=(number,))
        if not any(alone.matches(n) for n in layers):
            refuse("layers_to_transform", number)
