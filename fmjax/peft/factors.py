"""Low-rank adapters layer by layer: a spec and an adapter from a pair of factors for each layer.

Factors are host arrays of one layer, matrices whatever the layer: A [*lead, in, r] and
B [*lead, r, out], with a lead of E for experts.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from fmjax.core import tree
from fmjax.core.errors import ConfigError
from fmjax.peft.base import Base, Weight
from fmjax.peft.config import LoRA
from fmjax.peft.lora import DTYPE, constants
from fmjax.peft.lora_sites import sites


@dataclasses.dataclass(frozen=True)
class Factors:
    """What an adapter adds to one layer's matrix: s A B.

    Attributes:
      a: f32 [*lead, in, r].
      b: f32 [*lead, r, out].
      scale: s.
    """

    a: np.ndarray
    b: np.ndarray
    scale: float = 1.0

    @property
    def rank(self) -> int:
        """r."""
        return self.a.shape[-1]


def split(spec: LoRA, base: Base, adapter: tree.Tree) -> dict[str, Factors]:
    """{Hugging Face name of an adapted layer: its factors}, without padding.

    Raises:
      ConfigError: an adapter that is not its spec's.
    """
    flat = tree.flatten(adapter)
    found: dict[str, Factors] = {}
    for site in sites(spec, base):
        w = site.weight
        try:
            a, b = (np.asarray(flat[f"{w.path}/{leaf}"], DTYPE) for leaf in ("lora_a", "lora_b"))
        except KeyError as e:
            raise ConfigError(
                f"the adapter lacks {e.args[0]!r}; give it with the spec that it was made from"
            ) from e
        for i, rank in enumerate(site.ranks):
            if rank:
                one_a, one_b = (a[i], b[i]) if w.stacked else (a, b)
                shape_a, shape_b = _shapes(w, one_a.shape[-1])
                one_a, one_b = one_a.reshape(shape_a), one_b.reshape(shape_b)
                one_a, one_b = one_a[..., :rank], one_b[..., :rank, :]
                found[w.names[i]] = Factors(one_a, one_b, site.scales[i])
    return found


def join(base: Base, layers: Mapping[str, Factors], **fields: Any) -> tuple[LoRA, dict[str, Any]]:
    """The spec and the adapter, of scale 1, that have these factors.

    Args:
      base: the model.
      layers: {Hugging Face name: factors of scale 1}; there must be some.
      **fields: more of the spec.

    Returns:
      (spec, adapter of low-rank factors alone, as host arrays).
    """
    spec = _spec(base, {name: own.rank for name, own in layers.items()}, fields)
    flat = constants(spec, base)
    for site in sites(spec, base):
        w = site.weight
        count = (len(w.names),) if w.stacked else ()
        leaves = site.leaves(spec)
        a, b = (np.zeros((*count, *leaves[name][0]), DTYPE) for name in ("lora_a", "lora_b"))
        shape_a, shape_b = (x.shape[len(count) :] for x in (a, b))
        for i, rank in enumerate(site.ranks):
            if not rank:
                continue
            own = layers[w.names[i]]
            flat_a, flat_b = (np.zeros(shape, DTYPE) for shape in _shapes(w, site.rank))
            flat_a[..., :rank], flat_b[..., :rank, :] = own.a, own.b
            at = i if w.stacked else ...
            a[at], b[at] = flat_a.reshape(shape_a), flat_b.reshape(shape_b)
        flat |= {f"{w.path}/lora_a": a, f"{w.path}/lora_b": b}
    return spec, tree.unflatten(flat)


def named(base: Base) -> Iterator[tuple[str, Weight, int]]:
    """(Hugging Face name, weight, index in its stack) of all that can be adapted."""
    for w in base.adaptable:
        for i, name in enumerate(w.names):
            yield name, w, i


def _shapes(w: Weight, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    lead = w.shape[:1] if w.inner == 2 else ()
    inputs = int(np.prod(w.inputs[len(lead) :]))
    return (*lead, inputs, rank), (*lead, rank, int(np.prod(w.outputs)))


def _spec(base: Base, ranks: Mapping[str, int], fields: Mapping[str, Any]) -> LoRA:
    """Scale 1 everywhere: alpha is the rank."""
    fused = {name for w in base.fused for name in w.names}
    layers = {name: rank for name, rank in ranks.items() if name not in fused}
    [(rank, _)] = Counter(ranks.values()).most_common(1)
    every = [*(n for n, _, _ in named(base)), *base.others]
    pattern: dict[str, int] = {}
    targets: list[str] = []
    for kind in dict.fromkeys(_last(name) for name in layers):
        own = [name for name in layers if _last(name) == kind]
        # By their kind, if it means these layers and no others.
        whole = all(name in layers for name in every if _last(name) == kind)
        targets += [kind] if whole else own
        if len({layers[name] for name in own}) == 1:
            pattern[re.escape(kind)] = layers[own[0]]
        else:
            pattern |= {re.escape(name): layers[name] for name in own}
    others = {name: r for name, r in ranks.items() if name in fused}
    pattern |= {re.escape(name): r for name, r in others.items()}
    pattern = {key: r for key, r in pattern.items() if r != rank}
    if not layers:
        raise ConfigError("an adapter of experts alone is not supported; adapt a layer as well")
    return LoRA(
        rank=rank,
        alpha=rank,
        targets=tuple(targets),
        rank_pattern=pattern,
        alpha_pattern=pattern,
        target_parameters=tuple(others),
        **fields,
    )


def _last(name: str) -> str:
    return name.rpartition(".")[2]
