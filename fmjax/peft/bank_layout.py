"""What a bank's arrays look like: which leaves, with which axes, and one adapter's part of each."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.core.adapter import ENCODER, PRESENT
from fmjax.core.errors import ConfigError
from fmjax.peft.base import Base

# Zero, they say "none" by themselves; all other leaves go with what of them is present.
LOW_RANK = ("lora_a", "lora_b", "lora_scale", "lora_dropout")
_BESIDE = ("lora_bias", "magnitude")
_VECTORS = ("ia3_in", "ia3_out")
# Leaves of methods that change shapes (how many keys there are, where tokens stand).
_ALONE = ("prefix_key", "prefix_value", "prompt")


@dataclasses.dataclass(frozen=True)
class Leaf:
    """What one adapter of a bank has at a path.

    Attributes:
      shape: [*lead, …] without the adapter axis.
      lead: 1 if there is a leading layers axis, else 0.
      dtype: of the bank's array.
    """

    shape: tuple[int, ...]
    lead: int
    dtype: Any


Layout = dict[str, Leaf]


def of_adapters(flats: Sequence[Mapping[str, Any]], model: nn.Module | None) -> Layout:
    """{path: what one adapter has there}, with room for each of these.

    Args:
      flats: {path: array} of the adapters.
      model: under them, if more than low-rank factors are among the arrays.

    Raises:
      ConfigError: an array that cannot differ by row, or whose axes are not known; adapters of
        different models.
    """
    # Parameter path → number of leading axes.
    leads = {w.target.path: len(w.target.lead) for w in Base.of(model).params} if model else {}
    layout: Layout = {}
    for number, flat in enumerate(flats, 1):
        for path, x in flat.items():
            new = Leaf(x.shape, _lead(path, flat, leads), x.dtype)
            layout[path] = _joined(path, layout.get(path, new), new, number)
    return layout


def slot(layout: Layout, flat: Mapping[str, Any], number: int) -> dict[str, jax.Array]:
    """One adapter's part of every array: padded, zero where it has none, and what is present.

    Raises:
      ConfigError: an adapter for which there is no room.
    """
    if outside := sorted(flat.keys() - layout.keys()):
        raise ConfigError(
            f"adapter {number} touches {outside[0]!r}, which this bank has no room for; make a new "
            "bank with this adapter in it"
        )
    found: dict[str, jax.Array] = {}
    for path, leaf in layout.items():
        has = path in flat
        own = _padded(path, jnp.asarray(flat[path]), leaf) if has else jnp.zeros(leaf.shape)
        if own.shape != leaf.shape:
            raise ConfigError(
                f"adapter {number} has {path!r} of shape {own.shape}, and this bank has room for "
                f"{leaf.shape}; make a new bank with this adapter in it"
            )
        found[path] = own.astype(leaf.dtype)
        if path.rpartition("/")[2] not in LOW_RANK:
            found[path + PRESENT] = jnp.full(leaf.shape[: leaf.lead], has)
    return found


def _padded(path: str, x: jax.Array, leaf: Leaf) -> jax.Array:
    """With zeros up to the bank's rank."""
    rank = _rank_axis(path, leaf)
    if rank is None or x.ndim != len(leaf.shape):
        return x
    missing = max(leaf.shape[rank] - x.shape[rank], 0)
    return jnp.pad(x, [(0, missing if axis == rank else 0) for axis in range(x.ndim)])


def _lead(path: str, flat: Mapping[str, Any], leads: Mapping[str, int]) -> int:
    """1 if a leaf has a leading layers axis, else 0."""
    module, _, name = path.rpartition("/")
    if name in _ALONE or path.partition("/")[0] == ENCODER:
        raise ConfigError(
            f"the adapter's {path!r} cannot differ by row, so it cannot stand in a bank; use that "
            "adapter by itself"
        )
    if name in (*LOW_RANK, *_BESIDE):
        return _low_rank_lead(module, flat)
    lead = leads.get(f"{module}/kernel" if name in _VECTORS else path)
    if lead is None:
        raise ConfigError(
            f"a bank cannot tell the axes of {path!r}; pass model=, the one that the adapters "
            "were made for"
        )
    if lead > 1 or name not in (*_VECTORS, "bias", "scale", "kernel"):
        raise ConfigError(
            f"a bank cannot hold copies of {path!r}, which is the same for all rows; use that "
            "adapter by itself, or merge it"
        )
    return lead


def _low_rank_lead(module: str, flat: Mapping[str, Any]) -> int:
    scale, a = flat.get(f"{module}/lora_scale"), flat.get(f"{module}/lora_a")
    if scale is None or a is None or a.ndim != scale.ndim + 2 or scale.ndim > 1:
        raise ConfigError(
            f"the low-rank factors at {module!r} are not those of one linear layer or embedding "
            "(experts cannot differ by row); use that adapter by itself"
        )
    return scale.ndim


def _joined(path: str, old: Leaf, new: Leaf, number: int) -> Leaf:
    """The leaf that holds both: the larger rank."""
    rank = _rank_axis(path, old)
    shapes = [tuple(n for i, n in enumerate(leaf.shape) if i != rank) for leaf in (old, new)]
    if shapes[0] != shapes[1] or old.lead != new.lead:
        raise ConfigError(
            f"adapter {number} has {path!r} of shape {new.shape} where another has {old.shape}; a "
            "bank holds adapters of one model"
        )
    shape = tuple(map(max, old.shape, new.shape))
    return Leaf(shape, old.lead, jnp.promote_types(old.dtype, new.dtype))


def _rank_axis(path: str, leaf: Leaf) -> int | None:
    name = path.rpartition("/")[2]
    return {"lora_a": len(leaf.shape) - 1, "lora_b": leaf.lead}.get(name)
