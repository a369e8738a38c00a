"""Many adapters of one model at once: each row of a batch uses its own, in one compiled program.

A bank holds N adapters in arrays with an adapter axis, after the layers axis where there is one.
Number 0 is no adapter; what smaller adapters lack is zero, and so is every gradient there. Which
adapters a batch uses is data: neither other rows nor other values of the adapters compile again.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fmjax.core import tree
from fmjax.core.adapter import PRESENT
from fmjax.core.errors import ConfigError, DataError
from fmjax.peft.base import Base

# Zero, they say "none" by themselves; all other leaves go with what of them is present.
_LOW_RANK = ("lora_a", "lora_b", "lora_scale", "lora_dropout")
_BESIDE = ("lora_bias", "magnitude")
_VECTORS = ("ia3_in", "ia3_out")
# Leaves of methods that change shapes (how many keys there are, where tokens stand).
_ALONE = ("prefix_key", "prefix_value", "prompt")


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """What one adapter of a bank has at a path.

    Attributes:
      shape: [*lead, …] without the adapter axis.
      lead: 1 if there is a leading layers axis, else 0.
      dtype: of the bank's array.
    """

    shape: tuple[int, ...]
    lead: int
    dtype: Any


def bank(adapters: Sequence[tree.Tree | None], model: nn.Module | None = None) -> dict[str, Any]:
    """Puts adapters of the same model into one pytree: the first becomes number 1.

    Low-rank adapters with or without DoRA (their ranks, scales, dropout rates and layers may
    differ), IA3's vectors, and whole copies of biases, norms and linear layers (`modules_to_save`)
    can stand in a bank.

    Args:
      adapters: "adapter" collections; None keeps a place free for `insert`.
      model: under them; needed where they hold more than low-rank factors, to tell which arrays
        have a layers axis.

    Returns:
      For `select`, `Routed`, `insert` and `take`: every leaf has N = 1 + len(adapters) entries.

    Raises:
      ConfigError: an adapter of a kind that cannot differ by row, adapters of different models, or
        nothing but None.
    """
    flats = [tree.flatten(adapter or {}) for adapter in adapters]
    leads = _leads(model)
    layout: dict[str, _Leaf] = {}
    for number, flat in enumerate(flats, 1):
        for path, x in flat.items():
            new = _Leaf(x.shape, _lead(path, flat, leads), x.dtype)
            layout[path] = _joined(path, layout.get(path, new), new, number)
    if not layout:
        raise ConfigError("a bank needs at least one adapter that is not None")
    slots = [_slot(layout, flat, number) for number, flat in enumerate([{}, *flats])]
    return tree.unflatten(
        {
            path: jnp.stack([slot[path] for slot in slots], axis=_axis(path, layout))
            for path in slots[0]
        }
    )


def select(bank: tree.Tree, rows: Any) -> dict[str, Any]:
    """The "adapter" collection in which row i of the batch uses adapter `rows[i]` of the bank.

    Nothing is copied. Inside a compiled function `rows` is an argument like any other.

    Args:
      bank: from `bank`.
      rows: integers [B]; 0 is no adapter.

    Raises:
      DataError: rows that are no integers [B], or, where their values are known, out of range.
        Unknown ones give NaN.
    """
    flat = tree.flatten(bank)
    count = size(bank)
    if not isinstance(rows, jax.core.Tracer):
        rows = np.asarray(rows)
    if rows.ndim != 1 or not jnp.issubdtype(rows.dtype, jnp.integer):
        raise DataError(
            f"rows is {rows.dtype} of shape {rows.shape}; give one adapter number for each row"
        )
    if isinstance(rows, np.ndarray) and rows.size and not 0 <= rows.min() <= rows.max() < count:
        outside = rows[(rows < 0) | (rows >= count)][0]
        raise DataError(f"row number {outside} is not in this bank; it has 0 … {count - 1}")
    rows = jnp.asarray(rows, jnp.int32)
    chosen = {
        f"{_module(path)}/rows": jnp.broadcast_to(rows, (*x.shape[:-1], rows.size))
        for path, x in flat.items()
        if _marks(path)
    }
    return tree.unflatten(flat | chosen)


def size(bank: tree.Tree) -> int:
    """N, the number of adapters with "none" counted.

    Raises:
      ConfigError: what is no bank.
    """
    marks = [x for path, x in tree.flatten(bank).items() if _marks(path)]
    counts = {x.shape[-1] if x.ndim else 0 for x in marks}
    if len(counts) != 1 or 0 in counts:
        raise ConfigError("this is no bank of adapters; make one with fmjax.peft.bank")
    return counts.pop()


def insert(bank: tree.Tree, index: int, adapter: tree.Tree | None) -> dict[str, Any]:
    """The bank with another adapter, or none, as number `index`. Shapes stay.

    Raises:
      ConfigError: an adapter that touches more than the bank does or has a larger rank; a number
        that is not in the bank.
    """
    _check_index(bank, index)
    flat = tree.flatten(bank)
    layout: dict[str, _Leaf] = {}
    leads = {_module(path): x.ndim - 1 for path, x in flat.items() if _marks(path)}
    for path, x in flat.items():
        if not path.endswith(PRESENT):
            lead = leads[_module(path)]
            layout[path] = _Leaf((*x.shape[:lead], *x.shape[lead + 1 :]), lead, x.dtype)
    slot = _slot(layout, tree.flatten(adapter or {}), index)
    return tree.unflatten(
        {
            path: x.at[:, index].set(slot[path])
            if leads[_module(path)]
            else x.at[index].set(slot[path])
            for path, x in flat.items()
        }
    )


def take(bank: tree.Tree, index: int) -> dict[str, Any]:
    """Adapter number `index` by itself, without what it lacks; low-rank factors stay padded.

    `fmjax.peft.save` writes it with its own spec.

    Raises:
      ConfigError: a number that is not in the bank.
    """
    _check_index(bank, index)
    flat = tree.flatten(bank)
    leads = {_module(path): x.ndim - 1 for path, x in flat.items() if _marks(path)}
    own = {p: jnp.take(x, index, axis=leads[_module(p)]) for p, x in flat.items()}

    def present(path: str) -> bool:
        module, name = _module(path), path.rpartition("/")[2]
        if name == "lora_dropout":
            return bool(own[path].any())
        if name in _LOW_RANK:
            return any(bool(own[f"{module}/{leaf}"].any()) for leaf in _LOW_RANK[:3])
        return bool(own[path + PRESENT].any())

    return tree.unflatten({p: x for p, x in own.items() if not p.endswith(PRESENT) and present(p)})


def _module(path: str) -> str:
    return path.rpartition("/")[0]


def _marks(path: str) -> bool:
    """Of these leaves one adapter has a number a layer, so their last axis is the adapters'."""
    return path.endswith(("/lora_scale", PRESENT))


def _axis(path: str, layout: Mapping[str, _Leaf]) -> int:
    return layout[path.removesuffix(PRESENT)].lead


def _check_index(bank: tree.Tree, index: int) -> None:
    if not 0 < index < size(bank):
        raise ConfigError(
            f"adapter {index} is not in this bank, which has 1 … {size(bank) - 1} (0 is none)"
        )


def _leads(model: nn.Module | None) -> dict[str, int]:
    """{parameter path: number of leading axes}."""
    if model is None:
        return {}
    return {w.target.path: len(w.target.lead) for w in Base.of(model).params}


def _lead(path: str, flat: Mapping[str, Any], leads: Mapping[str, int]) -> int:
    module, _, name = path.rpartition("/")
    if name in _ALONE or path.startswith("encoder/"):
        raise ConfigError(
            f"the adapter's {path!r} cannot differ by row, so it cannot stand in a bank; use that "
            "adapter by itself"
        )
    if name in (*_LOW_RANK, *_BESIDE):
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


def _joined(path: str, old: _Leaf, new: _Leaf, number: int) -> _Leaf:
    """The leaf that holds both: the larger rank."""
    rank = _rank_axis(path, old)
    shapes = [tuple(n for i, n in enumerate(leaf.shape) if i != rank) for leaf in (old, new)]
    if shapes[0] != shapes[1] or old.lead != new.lead:
        raise ConfigError(
            f"adapter {number} has {path!r} of shape {new.shape} where another has {old.shape}; a "
            "bank holds adapters of one model"
        )
    shape = tuple(map(max, old.shape, new.shape))
    return _Leaf(shape, old.lead, jnp.promote_types(old.dtype, new.dtype))


def _rank_axis(path: str, leaf: _Leaf) -> int | None:
    name = path.rpartition("/")[2]
    return {"lora_a": len(leaf.shape) - 1, "lora_b": leaf.lead}.get(name)


def _slot(
    layout: Mapping[str, _Leaf], flat: Mapping[str, Any], number: int
) -> dict[str, jax.Array]:
    """One adapter with every leaf of the layout, padded, and whether it has it."""
    if outside := sorted(flat.keys() - layout.keys()):
        raise ConfigError(
            f"adapter {number} touches {outside[0]!r}, which this bank has no room for; make a new "
            "bank with this adapter in it"
        )
    slot: dict[str, jax.Array] = {}
    for path, leaf in layout.items():
        x = (
            jnp.asarray(flat[path], leaf.dtype)
            if path in flat
            else jnp.zeros(leaf.shape, leaf.dtype)
        )
        rank = _rank_axis(path, leaf)
        if x.ndim == len(leaf.shape) and rank is not None and x.shape[rank] < leaf.shape[rank]:
            widths = [
                (0, n - m if i == rank else 0)
                for i, (m, n) in enumerate(zip(x.shape, leaf.shape, strict=True))
            ]
            x = jnp.pad(x, widths)
        if x.shape != leaf.shape:
            raise ConfigError(
                f"adapter {number} has {path!r} of shape {x.shape}, and this bank has room for "
                f"{leaf.shape}; make a new bank with this adapter in it"
            )
        slot[path] = x
        if path.rpartition("/")[2] not in _LOW_RANK:
            slot[path + PRESENT] = jnp.full(leaf.shape[: leaf.lead], path in flat)
    return slot
