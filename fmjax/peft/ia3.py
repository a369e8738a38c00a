"""IA³ (arXiv:2205.05638): learned factors on the features of linear layers, starting at one.

Layers are chosen as PEFT chooses them. A factor multiplies the inputs of feedforward layers and
the outputs, bias included, of all others.
"""

import dataclasses
import math
import re
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmjax.core import tree
from fmjax.core.errors import ConfigError
from fmjax.core.params import ParamSpec
from fmjax.peft.base import Base, Weight
from fmjax.peft.config import ALL_LINEAR, names_match, saved_by
from fmjax.peft.names import Names, names

DTYPE = np.dtype("float32")

# model_type → (targets, those of them that are feedforward), as in PEFT.
_DEFAULTS: dict[str, tuple[Names, Names]] = {
    "bert": (("key", "value", "output.dense"), ("output.dense",)),
    "roberta": (("key", "value", "output.dense"), ("output.dense",)),
    "falcon": (("query_key_value", "dense_4h_to_h"), ("dense_4h_to_h",)),
    "gpt2": (("c_attn", "mlp.c_proj"), ("mlp.c_proj",)),
    "llama": (("k_proj", "v_proj", "down_proj"), ("down_proj",)),
    "mistral": (("k_proj", "v_proj", "down_proj"), ("down_proj",)),
    # PEFT also names the experts' w2, which transformers 5 does not have as layers.
    "mixtral": (("k_proj", "v_proj"), ()),
    "gemma": (("q_proj", "v_proj", "down_proj"), ("down_proj",)),
    "gemma2": (("q_proj", "v_proj", "down_proj"), ("down_proj",)),
    "qwen2": (("q_proj", "v_proj", "down_proj"), ("down_proj",)),
    "qwen3": (("q_proj", "v_proj", "down_proj"), ("down_proj",)),
    # PEFT has none for these: keys, values and the MLP's second layer, as in the paper.
    **dict.fromkeys(
        (
            "clip",
            "clip_text_model",
            "clip_vision_model",
            "siglip",
            "siglip_text_model",
            "siglip_vision_model",
            "vit",
            "vit_mae",
        ),
        (("k_proj", "v_proj", "fc2"), ("fc2",)),
    ),
    **dict.fromkeys(
        ("dinov2", "dinov2_with_registers"),
        (("k_proj", "v_proj", "fc2", "down_proj"), ("fc2", "down_proj")),
    ),
}


@dataclasses.dataclass(frozen=True)
class IA3:
    """(IA)³: y = l ∘ (W x + b), and y = W (l ∘ x) + b in feedforward layers; l starts at one.

    Attributes:
      targets: as of `LoRA`; linear layers only. None: PEFT's choice for the model_type, where it
        has one.
      feedforward: names, matching every module whose name ends in them, or a regular expression
        for whole names: the targets whose inputs are scaled. Where both are names each ends a
        name in `targets`. None: PEFT's choice for the model_type.
      exclude: names or a regular expression, matched like `targets`, to leave out.
      modules_to_save: modules that are trained whole, as of `LoRA`.

    Raises:
      ConfigError: no targets, a broken regular expression, feedforward names that are no targets.
    """

    targets: Names | str | None = None
    feedforward: Names | str | None = None
    exclude: Names | str = ()
    modules_to_save: Names = ()

    def __post_init__(self) -> None:
        for field in ("targets", "feedforward", "exclude", "modules_to_save"):
            value = getattr(self, field)
            if value is not None:
                value = names("IA3", field, value, listed=field == "modules_to_save")
                object.__setattr__(self, field, value)
        if self.targets is not None and not self.targets:
            raise ConfigError("IA3: targets is empty; name layers, or leave it out")
        if isinstance(self.targets, str) and self.targets.lower() == ALL_LINEAR:
            object.__setattr__(self, "targets", ALL_LINEAR)
        if isinstance(self.targets, tuple) and isinstance(self.feedforward, tuple):
            for name in self.feedforward:
                if not _ends(name, self.targets):
                    raise ConfigError(
                        f"IA3: feedforward {name!r} is not in targets={self.targets!r}; name it "
                        "there in the same words"
                    )

    def saves(self, name: str) -> bool:
        """Whether `modules_to_save` cover this module or one that holds it."""
        return bool(saved_by(self.modules_to_save, name))


@dataclasses.dataclass(frozen=True)
class Site:
    """A linear layer, or a stack of them, with factors on its inputs or on its outputs."""

    weight: Weight
    feedforward: bool

    @property
    def leaf(self) -> str:
        """Name of the factors in the adapter."""
        return "ia3_in" if self.feedforward else "ia3_out"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one layer's factors: [in] or [*out]."""
        return self.weight.shape[:1] if self.feedforward else self.weight.shape[1:]

    @property
    def axes(self) -> tuple[str | None, ...]:
        """Logical axes of one layer's factors."""
        return self.weight.axes[:1] if self.feedforward else self.weight.axes[1:]


def resolved(spec: IA3, base: Base) -> tuple[Names | str, Names | str]:
    """(targets, feedforward) with the model_type's own where the spec has None."""
    targets, feedforward = _DEFAULTS.get(base.model_type, (None, None))
    targets = targets if spec.targets is None else spec.targets
    feedforward = feedforward if spec.feedforward is None else spec.feedforward
    if targets is None or feedforward is None:
        raise ConfigError(
            f"IA3 has no default layers for {base.model_type}; give targets and feedforward"
        )
    return targets, feedforward


def sites(spec: IA3, base: Base) -> list[Site]:
    """The layers that `spec` touches, in the model's order.

    Raises:
      ConfigError: targets that match no linear layer, or only some of a stack.
    """
    targets, feedforward = resolved(spec, base)
    found: list[Site] = []
    for weight in base.weights:
        chosen = [_kind(spec, targets, feedforward, weight, name) for name in weight.names]
        if not any(chosen):
            continue
        if len(set(chosen)) > 1:
            name, other = (
                weight.names[0],
                next(n for n, c in zip(weight.names, chosen, strict=True) if c != chosen[0]),
            )
            raise ConfigError(
                f"IA3: targets={targets!r} treat {name!r} and {other!r} differently, which lie in "
                "the same array; name all layers, or build the model with scan_layers=False"
            )
        found.append(Site(weight, chosen[0] == "ia3_in"))
    if not found:
        raise ConfigError(
            f"IA3: targets={targets!r} (exclude={spec.exclude!r}, modules_to_save="
            f"{spec.modules_to_save!r}) match no linear layer of this {base.model_type} model; "
            f"choose from {', '.join(_linear(base))} or {ALL_LINEAR!r}"
        )
    return found


def _kind(
    spec: IA3, targets: Names | str, feedforward: Names | str, weight: Weight, name: str
) -> str | None:
    if not weight.linear or weight.inner > 1:
        return None
    if names_match(spec.exclude, name) or spec.saves(name):
        return None
    if weight.head if targets == ALL_LINEAR else not names_match(targets, name):
        return None
    if isinstance(feedforward, str):
        return "ia3_in" if re.fullmatch(feedforward, name) else "ia3_out"
    # Also in the middle of a name's component, as in PEFT.
    return "ia3_in" if name.endswith(feedforward) else "ia3_out"


def _linear(base: Base) -> list[str]:
    kinds = [n.rpartition(".")[2] for w in base.weights if w.linear for n in w.names]
    return list(dict.fromkeys(kinds))


def check(spec: IA3, base: Base) -> None:
    """Refuses a spec with a part that has no effect on this model, or that touches other modules.

    Raises:
      ConfigError: a target, exclusion or feedforward name that matches no linear layer; a target
        that matches an embedding, a norm, experts or a head that shares the table of the words.
    """
    targets, _ = resolved(spec, base)
    found = sites(spec, base)
    tables = {name for weight in base.weights if not weight.linear for name in weight.names}
    for name in sorted({*base.others, *base.tied, *tables} if targets != ALL_LINEAR else ()):
        if names_match(targets, name) and not names_match(spec.exclude, name):
            if not spec.saves(name):
                raise ConfigError(
                    f"IA3: targets={targets!r} match {name!r}, which is no linear layer of its "
                    f"own; choose from {', '.join(_linear(base))}, or add it to exclude"
                )
    used = [name for site in found for name in site.weight.names]
    inputs = [name for site in found if site.feedforward for name in site.weight.names]
    every = [name for weight in base.weights for name in weight.names]

    def matching(wanted: str) -> bool:
        return any(names_match((wanted,), name) for name in used)

    def named(value: Names | str | None) -> Names:
        return value if isinstance(value, tuple) else ()

    idle = [("targets", t) for t in named(spec.targets) if not matching(t)]
    idle += [("feedforward", f) for f in named(spec.feedforward) if not _ends(f, inputs)]
    idle += [
        ("exclude", e)
        for e in named(spec.exclude)
        if not any(names_match((e,), name) for name in (*every, *base.tied))
    ]
    if idle:
        field, value = idle[0]
        raise ConfigError(
            f"IA3: {field} {value!r} matches no linear layer of this {base.model_type} model; "
            f"correct or remove it (layers: {', '.join(_linear(base))})"
        )


def _ends(wanted: str, found: Iterable[str]) -> bool:
    return any(name.endswith(wanted) for name in found)


def abstract(spec: IA3, base: Base) -> dict[str, Any]:
    """The adapter as nested dicts of `ParamSpec`: `ia3_in` [in] or `ia3_out` [*out], f32.

    With a leading layers axis where the kernel has one.
    """
    flat: dict[str, ParamSpec] = {}
    for site in sites(spec, base):
        w = site.weight
        shape, axes = site.shape, site.axes
        if w.stacked:
            shape, axes = (len(w.names), *shape), ("layers", *axes)
        flat[f"{w.path}/{site.leaf}"] = ParamSpec(shape, DTYPE, axes)
    return tree.unflatten(flat)


def init(rng: jax.Array, spec: IA3, base: Base, params: Any = None) -> dict[str, Any]:
    """A fresh adapter, all ones: it changes nothing yet. Traceable."""
    del rng, params
    return jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), abstract(spec, base))


def count(spec: IA3, base: Base) -> int:
    """Number of trained parameters."""
    return sum(len(s.weight.names) * math.prod(s.shape) for s in sites(spec, base))
