"""What an adapter must know of the model under it: which layers there are, and their names."""

import dataclasses
from collections.abc import Sequence

import flax.linen as nn

from fmjax.convert import Row, targets
from fmjax.convert.rows import EXPERT, LAYER, Target
from fmjax.core import tree
from fmjax.core.params import ParamSpec
from fmjax.models.registry import abstract_params, get_family
from fmjax.nn.embed import HEAD

# What PEFT puts before the module names of the model that it wraps.
PREFIX = "base_model.model."


@dataclasses.dataclass(frozen=True)
class Weight:
    """A parameter, or the role of one that low-rank factors adapt.

    Attributes:
      path: of the module that owns it, "layers/self_attn/q_proj" or "layers_3/self_attn/q_proj";
        of a role, where its factors lie.
      names: Hugging Face module names, one per index of the leading axes if it is stacked; of
        `Base.fused`, names of parameters, one per layer.
      spec: of the parameter.
      target: its line in the weights map.
      tied: the role of an embedding table as the output head.
      parts: how many parameters of this spec share the factors, which the files hold as one.
    """

    path: str
    names: tuple[str, ...]
    spec: ParamSpec
    target: Target
    tied: bool = False
    parts: int = 1

    @property
    def stacked(self) -> bool:
        """Whether the parameter has a leading layers axis."""
        return self.target.stacked

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one layer's matrix, inputs first."""
        return self._one(self.spec.shape)

    @property
    def axes(self) -> tuple[str | None, ...]:
        """Logical axes of one layer's matrix."""
        return self._one(self.spec.axes)

    def _one(self, sizes: tuple) -> tuple:
        sizes = sizes[1:] if self.stacked else sizes
        return sizes[::-1] if self.tied else sizes

    @property
    def inner(self) -> int:
        """How many of the leading axes of `shape` are not the outputs'.

        One of a dense kernel [in, *out] and a table [V, D], two of experts [E, in, out], three of a
        convolution [height, width, in, out].
        """
        if EXPERT in self.target.row.hf:
            return 2
        return 3 if self.linear and len(self.shape) == 4 and self.axes[:2] == (None, None) else 1

    @property
    def conv(self) -> bool:
        """The kernel of a convolution."""
        return self.linear and self.inner == 3

    @property
    def inputs(self) -> tuple[int, ...]:
        """Sizes of the inner axes."""
        return self.shape[: self.inner]

    @property
    def outputs(self) -> tuple[int, ...]:
        """Sizes of the outputs' axes, the parts first where there are several."""
        return ((self.parts,) if self.parts > 1 else ()) + self.shape[self.inner :]

    @property
    def output_axes(self) -> tuple[str | None, ...]:
        """Logical names of `outputs`."""
        return ((None,) if self.parts > 1 else ()) + self.axes[self.inner :]

    @property
    def leaf(self) -> str:
        """Name of the parameter in its module."""
        return self.target.path.rpartition("/")[2]

    @property
    def linear(self) -> bool:
        """Multiplies its input, as opposed to a table that is read by id."""
        return self.tied or self.leaf != "embedding"

    @property
    def head(self) -> bool:
        """The output head: the linear layer onto the vocabulary."""
        return self.linear and self.axes[-1] == "vocab"


@dataclasses.dataclass(frozen=True)
class Base:
    """The model under an adapter, without any of its arrays.

    Attributes:
      params: all parameters, in the model's order.
      weights: those of them that can be adapted, as modules.
      heads: output heads that share the table of an embedding, which can be adapted too.
      fused: matrices of experts and routers, which can be adapted as parameters.
      tied: Hugging Face module name → path of the table that it shares ("lm_head").
      others: names of modules that cannot be adapted: norms, and the modules that hold others.
      rows: the family's weights map.
      model_type, architecture: in Hugging Face's words.
      model: the module itself.
    """

    params: tuple[Weight, ...]
    weights: tuple[Weight, ...]
    heads: tuple[Weight, ...]
    fused: tuple[Weight, ...]
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
        heads: list[Weight] = []
        tied: dict[str, str] = {}
        names: set[str] = set()
        for target in targets(rows, flat):
            modules = target.modules
            path, _, leaf = target.path.rpartition("/")
            if target.row.copy:
                if leaf == "embedding":
                    tied |= {name: path for name in modules}
                    heads.append(
                        Weight(f"{path}/{HEAD}", modules, flat[target.path], target, tied=True)
                    )
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
            tuple(heads),
            _fused(params),
            tied,
            frozenset(names - adaptable),
            rows,
            family.name,
            family.architecture(model.config),
            model,
        )

    @property
    def adaptable(self) -> tuple[Weight, ...]:
        """All that low-rank factors can go on, in the order of an adapter."""
        return (*self.weights, *self.heads, *self.fused)

    def modules(self) -> frozenset[str]:
        """Names of all modules that hold parameters of their own or below them."""
        return self.others.union(*(weight.names for weight in self.weights))

    def kinds(self) -> list[str]:
        """Last components of the adaptable names, for messages: "q_proj", "embed_tokens"."""
        return list(dict.fromkeys(n.rpartition(".")[2] for w in self.weights for n in w.names))


def _fused(params: Sequence[Weight]) -> tuple[Weight, ...]:
    """Experts and routers by the parameters that hold them in transformers, where parts are one."""
    found: dict[tuple[str, str], Weight] = {}
    for weight in params:
        fused = weight.target.row.fused
        if fused is None:
            continue
        module, _, name = fused.hf.rpartition(".")
        own = name == "weight"  # of a router: a module with this one parameter
        path = weight.path if own else f"{weight.path.rpartition('/')[0]}/{name}"
        count = weight.target.lead[0] if weight.stacked else 1
        names = tuple(fused.hf.replace(LAYER, str(weight.target.layer + i)) for i in range(count))
        found.setdefault(
            (path, fused.hf), dataclasses.replace(weight, path=path, names=names, parts=fused.parts)
        )
    return tuple(found.values())
