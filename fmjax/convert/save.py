"""Parameters back into the files that other libraries load."""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from fmjax.convert.atomic import replacing
from fmjax.convert.bitsandbytes import PackedTensor
from fmjax.convert.checkpoint import INDEX, SINGLE, Match
from fmjax.convert.packed import inputs_first, packed_items, read_packed
from fmjax.convert.rows import LAYER, Row, Target, targets
from fmjax.convert.safetensors import Item, ordered, write_file
from fmjax.core.errors import CheckpointError
from fmjax.core.tree import flatten
from fmjax.quant import Packed

MAX_SHARD_SIZE = 5_000_000_000  # bytes
OWNED = (SINGLE, INDEX, "model-*-of-*.safetensors")


def save_params(
    directory: str | Path,
    rows: Sequence[Row],
    params: Mapping[str, Any],
    max_shard_size: int = MAX_SHARD_SIZE,
    dtype: Any = None,
) -> None:
    """Writes parameters as safetensors in the Hugging Face layout, all files or none.

    One tensor at a time comes to the host. With several processes all must call this with the
    same arguments; the first one writes, the others only contribute their shards.

    Args:
      directory: made if needed; an earlier export's weights in it are replaced at the end.
      rows: the family's weights map.
      params: nested dict of arrays, sharded or not, layers stacked or not.
      max_shard_size: bytes per file; above it the weights are split and an index is written.
      dtype: of floating tensors; None keeps each as it is, bit for bit.

    Raises:
      CheckpointError: params that do not fit the rows, or a directory that cannot be written.
    """
    items = param_items(rows, params, dtype)
    if jax.process_index():
        return contribute(items, max_shard_size)
    with replacing(directory, OWNED) as staging:
        write_weights(staging, items, max_shard_size)


def write_weights(directory: Path, items: Sequence[Item], max_shard_size: int) -> None:
    """Writes `model.safetensors`, or shards with an index, into a directory as it is.

    Raises:
      CheckpointError: a tensor that the format cannot hold.
      OSError: from the file system.
    """
    shards = _shards(items, max_shard_size)
    if len(shards) == 1:
        return write_file(directory / SINGLE, shards[0])
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_file(directory / file, shard)
        weight_map |= {item.name: file for item in shard}
    index = {
        "metadata": {"total_size": sum(item.nbytes for item in items)},
        "weight_map": dict(sorted(weight_map.items())),
    }
    (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def contribute(items: Sequence[Item], max_shard_size: int) -> None:
    """Takes part in gathering the items that the first process writes, in its order."""
    for shard in _shards(items, max_shard_size):
        for item in ordered(shard):
            item.read()


def _shards(items: Sequence[Item], max_shard_size: int) -> list[Sequence[Item]]:
    """Fills one file after the other; a tensor above the limit has a file of its own."""
    if max_shard_size < 1:
        raise CheckpointError(f"max_shard_size is {max_shard_size}; give a number of bytes above 0")
    shards: list[list[Item]] = [[]]
    room = max_shard_size
    for item in items:
        if shards[-1] and item.nbytes > room:
            shards.append([])
            room = max_shard_size
        shards[-1].append(item)
        room -= item.nbytes
    return list(shards)


def param_items(rows: Sequence[Row], params: Mapping[str, Any], dtype: Any = None) -> list[Item]:
    """The file tensors of a parameter tree, layer by layer, none of them copied yet."""
    flat = flatten(params)
    found = [t for t in targets(rows, flat) if not t.row.copy]
    order = _file_order(found)
    return [item for t, i in order for item in _items(t, i, flat[t.path], dtype)]


def tensor_items(
    matches: Sequence[Match], dtype: Any = None, packed: Mapping[str, Packed] | None = None
) -> list[Item]:
    """The tensors of a checkpoint under their canonical names, layer by layer, none kept.

    Args:
      matches: parameters and their tensors.
      dtype: of floating tensors; None keeps each as it is, bit for bit. Packed ones are
        dequantised to it.
      packed: {path: abstract leaf} of what is to be quantised on the way.
    """
    by_path = {m.target.path: m for m in matches}
    items: list[Item] = []
    for target, i in _file_order([m.target for m in matches]):
        match, key = by_path[target.path], target.keys[i]
        tensor = match.tensors[i]
        if like := (packed or {}).get(target.path):
            items += packed_items(key, functools.partial(read_packed, match, i, like))
        elif isinstance(tensor, PackedTensor) and dtype is None:
            items += tensor.items(key)
        else:
            items.append(Item(key, target.file_shape, _cast_to(tensor.dtype, dtype), tensor.view))
    return items


def _file_order(found: Sequence[Target]) -> list[tuple[Target, int]]:
    """(target, index of its key) such that the tensors of one layer follow each other."""
    stacks: dict[str, int] = {}
    order: list[tuple[int, int, Target, int]] = []
    for target in found:
        stack = stacks.setdefault(target.row.hf.partition(LAYER)[0], len(stacks))
        order += [(stack, target.layer_of(i), target, i) for i in range(len(target.keys))]
    return [(target, i) for *_, target, i in sorted(order, key=lambda o: o[:2])]


def _cast_to(own: Any, dtype: Any) -> np.dtype:
    return jnp.dtype(own if dtype is None or not jnp.issubdtype(own, jnp.floating) else dtype)


def _items(target: Target, i: int, leaf: Any, dtype: Any) -> list[Item]:
    key = target.keys[i]

    def read() -> Any:
        return jax.tree.map(lambda x: to_host(x[target.index(i)] if target.lead else x), leaf)

    if isinstance(leaf, Packed):
        inputs_first(target.row, leaf.shape[len(target.lead) :])  # refuses what is out of order
        return packed_items(key, read)
    if target.row.integer:
        whole = np.dtype(np.int64)
        return [Item(key, target.file_shape, whole, lambda: np.asarray(read()).astype(whole))]
    dtype = _cast_to(leaf.dtype, dtype)
    return [Item(key, target.file_shape, dtype, lambda: target.row.transform.inverse(read()))]


def to_host(array: Any) -> np.ndarray:
    """A whole array in host memory; with several processes, gathered on each of them."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    return np.asarray(array)
