"""What an adapter must know of the model under it: which layers there are, and their names."""

import dataclasses
from collections.abc import Sequence

import flax.linen as nn

from fmjax.convert import Row, targets
from fmjax.convert.rows import Target
from fmjax.core import tree
from fmjax.core.params import ParamSpec
from fmjax.models.registry import abstract_params, get_family

# What PEFT puts before the module names of the model that it wraps.
PREFIX = "base_model.model."


@dataclasses.dataclass(frozen=True)
class Weight:
    """A parameter: for low-rank factors a matrix, dense kernel [in, *out] or table [V, D].

    Attributes:
      path: of the module that owns it, "layers/self_attn/q_proj" or "layers_3/self_attn/q_proj".
      names: Hugging Face module names, one per index of the leading axes if it is stacked.
      spec: of the parameter.
      target: its line in the weights map.
    """

    path: str
    names: tuple[str, ...]
    spec: ParamSpec
    target: Target

    @property
    def stacked(self) -> bool:
        """Whether the parameter has a leading layers axis."""
        return self.target.stacked

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one layer's matrix."""
        return self.spec.shape[1:] if self.stacked else self.spec.shape

    @property
    def axes(self) -> tuple[str | None, ...]:
        """Logical axes of one layer's matrix."""
        return self.spec.axes[1:] if self.stacked else self.spec.axes

    @property
    def leaf(self) -> str:
        """Name of the parameter in its module."""
        return self.target.path.rpartition("/")[2]

    @property
    def linear(self) -> bool:
        """A dense kernel, as opposed to an embedding table."""
        return self.leaf == "kernel"

    @property
    def head(self) -> bool:
        """The output head: the linear layer onto the vocabulary."""
        return self.linear and self.axes[-1] == "vocab"


@dataclasses.dataclass(frozen=True)
class Base:
    """The model under an adapter, without any of its arrays.

    Attributes:
      params: all parameters, in the model's order.
      weights: those of them that can be adapted.
      tied: Hugging Face module name → path of the table that it shares ("lm_head").
      others: names of modules that cannot be adapted: norms, and the modules that hold others.
      rows: the family's weights map.
      model_type, architecture: in Hugging Face's words.
      model: the module itself.
    """

    params: tuple[Weight, ...]
    weights: tuple[Weight, ...]
    tied: dict[str, str]
    others: frozenset[str]
    rows: Sequence[Row]
    model_type: str
    architecture: str
    model: nn.Module

    @classmethod
    def of(cls, model: nn.Module) -> "Base":
        """Surveys a model from `fmjax.build` or `from_pretrained`; nothing is allocated."""
        family = get_family(model.config.model_type)
        rows = family.rows(model.config)
        flat = tree.flatten(abstract_params(model))
        params: list[Weight] = []
        tied: dict[str, str] = {}
        names: set[str] = set()
        for target in targets(rows, flat):
            modules = tuple(key.rpartition(".")[0] for key in target.keys)
            path, _, leaf = target.path.rpartition("/")
            if target.row.copy:
                if leaf == "embedding":
                    tied |= {name: path for name in modules}
                continue
            names |= set(modules)
            params.append(Weight(path, modules, flat[target.path], target))
        for name in tuple(names):
            parts = name.split(".")
            names |= {".".join(parts[:i]) for i in range(1, len(parts))}
        weights = tuple(p for p in params if p.leaf in ("kernel", "embedding"))
        adaptable = {name for weight in weights for name in weight.names}
        return cls(
            tuple(params),
            weights,
            tied,
            frozenset(names - adaptable),
            rows,
            family.name,
            family.architecture(model.config),
            model,
        )

    def modules(self) -> frozenset[str]:
        """Names of all modules that hold parameters of their own or below them."""
        return self.others.union(*(weight.names for weight in self.weights))

    def kinds(self) -> list[str]:
        """Last components of the adaptable names, for messages: "q_proj", "embed_tokens"."""
        return list(dict.fromkeys(n.rpartition(".")[2] for w in self.weights for n in w.names))
