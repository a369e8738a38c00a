"""A LoRA out of two checkpoints: the low-rank part of what fine-tuning changed.

Of each matrix the singular value decomposition of W_tuned − W_base gives the nearest change of a
rank, and the singular values say how much every rank misses.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fmjax.core import tree
from fmjax.core.errors import ConfigError
from fmjax.peft import factors
from fmjax.peft.adapter import abstract_on
from fmjax.peft.base import Base
from fmjax.peft.config import LoRA, Names
from fmjax.peft.factors import Factors
from fmjax.peft.lora_sites import sites
from fmjax.quant import Packed

_LOW_RANK = ("lora_a", "lora_b", "lora_scale")


@dataclasses.dataclass(frozen=True)
class Layer:
    """What one matrix changed by.

    Attributes:
      name: of the layer, in Hugging Face's words.
      shape: (in, out).
      rank: kept; 0 where nothing changed.
      change: ‖ΔW‖ / ‖W‖, Frobenius norms.
      energies: σ², descending: squares of the singular values of ΔW.
    """

    name: str
    shape: tuple[int, int]
    rank: int
    change: float
    energies: tuple[float, ...]

    def error(self, rank: int) -> float:
        """‖ΔW − its best approximation of this rank‖ / ‖ΔW‖; 0 where nothing changed."""
        total = math.fsum(self.energies)
        return math.sqrt(math.fsum(self.energies[rank:]) / total) if total else 0.0


@dataclasses.dataclass(frozen=True)
class ExtractReport:
    """What an extracted adapter holds of the difference, and what not.

    Attributes:
      layers: of the matrices that were decomposed.
      copied: paths of the parameters that the adapter has copies of, and that had changed.
      lost: {path: ‖Δ‖ / ‖base‖} of the parameters that changed and that the adapter lacks.
    """

    layers: tuple[Layer, ...]
    copied: tuple[str, ...]
    lost: dict[str, float]

    @property
    def ranks(self) -> tuple[int, ...]:
        """1, 2, 4, … up to the full rank."""
        full = max(len(layer.energies) for layer in self.layers)
        return (*(2**i for i in range(full.bit_length()) if 2**i < full), full)

    def error(self, rank: int | None = None) -> float:
        """‖ΔW − its approximation‖ / ‖ΔW‖ over all decomposed matrices together.

        Args:
          rank: of every matrix; None: those that were kept.
        """
        missed = [x for y in self.layers for x in y.energies[y.rank if rank is None else rank :]]
        total = math.fsum(x for y in self.layers for x in y.energies)
        return math.sqrt(math.fsum(missed) / total) if total else 0.0

    def __str__(self) -> str:
        lines = [
            "rank    error of the change (relative Frobenius norm)",
            *(f"{rank:>4}    {self.error(rank):.4f}" for rank in self.ranks),
            f"kept    {self.error():.4f}",
        ]
        if self.copied:
            lines.append(f"copied whole: {', '.join(self.copied)}")
        lines += [
            f"lost: {path} (changed by {change:.2%} of its norm)"
            for path, change in self.lost.items()
        ]
        return "\n".join(lines)


def extract(
    model: nn.Module,
    base_params: tree.Tree,
    tuned_params: tree.Tree,
    *,
    rank: int | None = None,
    energy: float | None = None,
    targets: Names | str = "all-linear",
    exclude: Names | str = (),
    modules_to_save: Names = (),
    bias: str = "none",
) -> tuple[LoRA, dict[str, Any], ExtractReport]:
    """The LoRA that is nearest to the difference of two models in the Frobenius norm.

    One layer's matrices are taken at a time, in float32.

    Args:
      model: whose parameters both are.
      base_params: that the adapter will lie on; packed weights count as what they stand for.
      tuned_params: of the fine-tuned model.
      rank: of every matrix, at most its smaller side.
      energy: share of Σσ² that each matrix keeps, in (0, 1]: its rank is the smallest that does,
        and `rank`, if given too, bounds it.
      targets, exclude, modules_to_save, bias: as of `LoRA`: which matrices are decomposed, and
        which parameters (norms, embeddings, heads, biases) are copied whole. What changed beside
        these is lost, and the report says so.

    Returns:
      (spec, adapter, report). The scale is 1 (alpha = rank); layers that did not change have none.

    Raises:
      ConfigError: neither rank nor energy, or out of range; parameters of different models; models
        that do not differ in any target.
    """
    if rank is None and energy is None:
        raise ConfigError("extract needs rank= or energy=")
    if rank is not None and (type(rank) is not int or rank < 1):
        raise ConfigError(f"rank={rank!r} must be a positive integer")
    if energy is not None and not 0 < energy <= 1:
        raise ConfigError(f"energy={energy!r} must be in (0, 1]")
    base = Base.of(model)
    wanted = LoRA(
        rank=1, targets=targets, exclude=exclude, modules_to_save=modules_to_save, bias=bias
    )
    own, tuned = tree.flatten(base_params), tree.flatten(tuned_params)
    _check_shapes(base, own, tuned)
    found: dict[str, Factors] = {}
    layers: list[Layer] = []
    adapted: set[str] = set()
    for site in sites(wanted, base):
        w, path = site.weight, site.weight.target.path
        adapted.add(path)
        for i, chosen in enumerate(site.ranks):
            if not chosen:
                continue
            pair = [_layer(flat[path], i if w.stacked else None) for flat in (own, tuned)]
            if w.tied:
                pair = [x.T for x in pair]
            layer, kept = _decompose(w.names[i], *pair, rank, energy)
            layers.append(layer)
            if layer.rank:
                found[w.names[i]] = kept
    if not found:
        raise ConfigError(
            f"the two models do not differ in any matrix of targets={wanted.targets!r}; there is "
            "nothing to extract"
        )
    spec, adapter = factors.join(base, found, modules_to_save=wanted.modules_to_save, bias=bias)
    copies = {
        path: jnp.asarray(tuned[path], jnp.float32)
        for path in tree.flatten(abstract_on(spec, base))
        if path.rpartition("/")[2] not in _LOW_RANK
    }
    changed = dict(_changed(base, own, tuned, adapted))
    report = ExtractReport(
        tuple(layers),
        tuple(path for path in copies if path in changed),
        {path: change for path, change in changed.items() if path not in copies},
    )
    adapter = tree.combine(adapter, tree.unflatten(copies))
    return spec, jax.tree.map(jnp.asarray, adapter), report


def _check_shapes(base: Base, own: dict[str, Any], tuned: dict[str, Any]) -> None:
    for weight in base.params:
        path = weight.target.path
        for what, flat in (("base", own), ("tuned", tuned)):
            shape = getattr(flat.get(path), "shape", None)
            if shape is None or tuple(shape) != weight.spec.shape:
                raise ConfigError(
                    f"the {what} params have {path!r} of shape {shape} where the model has "
                    f"{weight.spec.shape}; give two checkpoints of this architecture"
                )


def _layer(w: Any, i: int | None) -> jax.Array:
    """f32 matrix or vector of one layer."""
    one = w if i is None else jax.tree.map(lambda x: x[i], w)
    one = one.dequantize() if isinstance(one, Packed) else one
    return jnp.asarray(one, jnp.float32)


def _decompose(
    name: str, own: jax.Array, tuned: jax.Array, rank: int | None, energy: float | None
) -> tuple[Layer, Factors]:
    a, s, b, norm = (np.asarray(x) for x in _svd(own, tuned))
    energies = np.square(s, dtype=np.float64)
    total = energies.sum()
    if not math.isfinite(total):
        raise ConfigError(
            f"{name}: the weights differ by nan or infinity; give checkpoints without them"
        )
    kept = 0
    if total:
        kept = min(rank or s.size, s.size)
        if energy is not None:
            # Of shares that rounding keeps below 1, all singular values.
            enough = np.cumsum(energies) >= energy * total * (1 - 1e-12)
            kept = min(kept, int(np.argmax(enough)) + 1)
    change = math.sqrt(total) / float(norm) if norm else math.inf if total else 0.0
    root = np.sqrt(s[:kept])
    layer = Layer(name, (len(a), b.shape[1]), kept, change, tuple(energies.tolist()))
    return layer, Factors(a[:, :kept] * root, root[:, None] * b[:kept])


@jax.jit
def _svd(own: jax.Array, tuned: jax.Array) -> tuple[jax.Array, ...]:
    difference = (tuned - own).reshape(len(own), -1)
    a, s, b = jnp.linalg.svd(difference, full_matrices=False)
    return a, s, b, jnp.linalg.norm(own)


def _changed(
    base: Base, own: dict[str, Any], tuned: dict[str, Any], adapted: set[str]
) -> Iterator[tuple[str, float]]:
    """(path, ‖Δ‖ / ‖base‖) of parameters that changed, those decomposed apart."""
    for weight in base.params:
        path = weight.target.path
        if path in adapted:
            continue
        numbers: Sequence[int | None] = range(own[path].shape[0]) if weight.stacked else (None,)
        square, size = 0.0, 0.0
        for i in numbers:
            one, other = _layer(own[path], i), _layer(tuned[path], i)
            square += float(jnp.sum(jnp.square(other - one)))
            size += float(jnp.sum(jnp.square(one)))
        if square:
            yield path, math.sqrt(square / size) if size else math.inf
