"""Many adapters of one model at once: each row of a batch uses its own, in one compiled program.

A bank holds N adapters in arrays with an adapter axis, after the layers axis where there is one.
Number 0 is no adapter; what smaller adapters lack is zero, and so is every gradient there. Which
adapters a batch uses is data: neither other rows nor other values of the adapters compile again.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fmjax.core import tree
from fmjax.core.adapter import PRESENT
from fmjax.core.errors import ConfigError, DataError
from fmjax.peft import bank_layout as layouts
from fmjax.peft.bank_layout import LOW_RANK, Layout


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
    layout = layouts.of_adapters(flats, model)
    if not layout:
        raise ConfigError("a bank needs at least one adapter that is not None")
    slots = [layouts.slot(layout, flat, number) for number, flat in enumerate([{}, *flats])]

    def stacked(path: str) -> jax.Array:
        lead = layout[path.removesuffix(PRESENT)].lead
        return jnp.stack([slot[path] for slot in slots], axis=lead)

    return tree.unflatten({path: stacked(path) for path in slots[0]})


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
        f"{module}/rows": jnp.broadcast_to(rows, (*mark.shape[:-1], rows.size))
        for module, mark in _marks(flat).items()
    }
    return tree.unflatten(flat | chosen)


def size(bank: tree.Tree) -> int:
    """N, the number of adapters with "none" counted.

    Raises:
      ConfigError: what is no bank.
    """
    counts = {x.shape[-1] if x.ndim else 0 for x in _marks(tree.flatten(bank)).values()}
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
    slot = layouts.slot(_layout(flat), tree.flatten(adapter or {}), index)
    leads = _leads(flat)
    return tree.unflatten(
        {
            path: x.at[(slice(None),) * leads[path] + (index,)].set(slot[path])
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
    leads = _leads(flat)
    own = {path: jnp.take(x, index, axis=leads[path]) for path, x in flat.items()}

    def present(path: str) -> bool:
        module, _, name = path.rpartition("/")
        if name == "lora_dropout":
            return bool(own[path].any())
        if name in LOW_RANK:
            return any(bool(own[f"{module}/{leaf}"].any()) for leaf in LOW_RANK[:3])
        return bool(own[path + PRESENT].any())

    return tree.unflatten({p: x for p, x in own.items() if not p.endswith(PRESENT) and present(p)})


def _marks(flat: dict[str, Any]) -> dict[str, Any]:
    """{module: a leaf [*lead, N]}: one of which an adapter has a single number a layer."""
    return {
        path.rpartition("/")[0]: x
        for path, x in flat.items()
        if path.endswith(("/lora_scale", PRESENT))
    }


def _leads(flat: dict[str, Any]) -> dict[str, int]:
    """{path: which axis is the adapters'}."""
    marks = _marks(flat)
    return {path: marks[path.rpartition("/")[0]].ndim - 1 for path in flat}


def _layout(flat: dict[str, Any]) -> Layout:
    """What one adapter has in this bank."""
    found: Layout = {}
    for path, lead in _leads(flat).items():
        if not path.endswith(PRESENT):
            x = flat[path]
            shape = (*x.shape[:lead], *x.shape[lead + 1 :])
            found[path] = layouts.Leaf(shape, lead, x.dtype)
    return found


def _check_index(bank: tree.Tree, index: int) -> None:
    if not 0 < index < size(bank):
        raise ConfigError(
            f"adapter {index} is not in this bank, which has 1 … {size(bank) - 1} (0 is none)"
        )
