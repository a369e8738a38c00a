"""Packed kernels out of files and into them, one layer's matrix on the host at a time."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from fmjax import quant
from fmjax.convert.bitsandbytes import PackedTensor, part_name
from fmjax.convert.checkpoint import Match, spellings
from fmjax.convert.rows import Row, targets
from fmjax.convert.safetensors import Item, Tensor, cast
from fmjax.core.errors import CheckpointError


def inputs_first(row: Row, shape: tuple[int, ...]) -> bool:
    """Whether a kernel's unpacked tensor is [in, out], as GPT-2's Conv1D, and not [out, in].

    Packed it is [out, in] in either case: transformers transposes a Conv1D first. Blocks run along
    the rows of that matrix, in which our kernels [in, *out] are packed too, so nothing has to be
    packed anew between files and memory as long as no row or column is out of order.

    Args:
      row: of the kernel.
      shape: of one layer's kernel, [in, *out].

    Raises:
      CheckpointError: a weights map that reorders rows or columns.
    """
    sizes = row.transform.file_shape(shape)
    if len(sizes) == 2:
        first = (slice(None), *(0,) * (len(shape) - 1))  # of each input, the first output
        # Broadcast views, of which two lines are looked at: nothing of the matrix's size exists.
        down, across = (
            row.transform.forward(np.broadcast_to(numbers, sizes))
            for numbers in (np.arange(sizes[0])[:, None], np.arange(sizes[1]))
        )
        if _in_order(across[first]) and _in_order(down[0]):
            return False
        if _in_order(down[first]) and _in_order(across[0]):
            return True
    raise CheckpointError(
        f"{row.hf!r} lies in files in another order than in {row.path!r}, so it cannot be packed "
        "as bitsandbytes packs it; leave it unpacked"
    )


def _in_order(numbers: np.ndarray) -> bool:
    return bool((numbers.ravel() == np.arange(numbers.size)).all())


def survey(
    tensors: Mapping[str, Tensor],
    rows: Sequence[Row],
    flat: Mapping[str, Any],
    unpack: bool = False,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What a packed checkpoint makes of a model: which of its kernels are packed, and how.

    Args:
      tensors: from `gather`.
      rows: the family's weights map.
      flat: {path: ParamSpec} of the model's parameters.
      unpack: all of them are to be dequantised, so that it does not matter which are packed.

    Returns:
      (the tensors, turned as the rows expect them; the parameters, with `Packed` leaves of
      `ParamSpec`s where the files are packed).

    Raises:
      CheckpointError: a packed tensor that is no linear layer's, or a stack of layers that are not
        packed alike; the message names the tensor.
    """
    turned, flat = dict(tensors), dict(flat)
    for target in targets(rows, flat):
        found = [_find(tensors, key, target.row) for key in target.keys]
        packed = [t for t in found if isinstance(t, PackedTensor)]
        if not packed:
            continue
        first = packed[0]
        linear = target.path.rpartition("/")[2] == "kernel"
        if linear and inputs_first(target.row, target.shape[len(target.lead) :]):
            turned |= {t.name: t.transposed() for t in packed}
        if unpack:
            continue
        if not linear:
            raise CheckpointError(
                f"{first.file}: {first.name!r} is packed, but {target.path!r} is no linear layer; "
                "unpack the checkpoint: fmjax convert --model DIR --out OUT --dtype bfloat16"
            )
        odd = [k for k, t in zip(target.keys, found, strict=True) if _kind(t) != _kind(first)]
        if odd:
            raise CheckpointError(
                f"{first.file}: {first.name!r} and {odd[0]!r} are not packed alike and cannot be "
                "stacked; pass scan_layers=False"
            )
        spec = dataclasses.replace(flat[target.path], dtype=first.dtype)
        flat[target.path] = quant.abstract(spec, first.fmt)
    return turned, flat


def _find(tensors: Mapping[str, Tensor], key: str, row: Row) -> Tensor | None:
    return next((tensors[name] for name in spellings(key, row) if name in tensors), None)


def _kind(tensor: Tensor | None) -> Any:
    return (tensor.fmt, tensor.dtype) if isinstance(tensor, PackedTensor) else None


# --- from files into memory ---------------------------------------------------------------------


def place_packed(found: Match, like: quant.Packed, sharding: Any = None) -> quant.Packed:
    """A packed parameter from its tensors, packed already or to be quantised.

    Layer by layer: the host holds one layer's matrix. With several processes each reads all of it,
    because the scales of scales need the whole, and keeps its own part.

    Args:
      found: the parameter and its tensors.
      like: node whose leaves have shape and dtype.
      sharding: the same, of `jax.sharding.Sharding`s. None: the default device.
    """
    leaves, structure = jax.tree.flatten(like)
    shardings = [None] * len(leaves) if sharding is None else jax.tree.leaves(sharding)
    arrays = [_Placed(x.shape, x.dtype, s) for x, s in zip(leaves, shardings, strict=True)]
    for i in range(len(found.tensors)):
        layer = read_packed(found, i, like)
        parts = jax.tree.leaves(layer)
        for array, part in zip(arrays, parts, strict=True):
            # Cut for several devices on the host; what is already where it belongs stays there.
            array.put(found.target.index(i), part if sharding is None else np.asarray(part))
    return jax.tree.unflatten(structure, [array.whole() for array in arrays])


def read_packed(found: Match, i: int, like: quant.Packed) -> quant.Packed:
    """One layer's packed matrix, on the host or the default device."""
    tensor = found.tensors[i]
    shape = found.target.shape[len(found.target.lead) :]
    if isinstance(tensor, PackedTensor):
        return tensor.read(shape)
    matrix = cast(found.target.row.transform.forward(tensor.view()), like.dtype, tensor.name)
    return pack(jnp.asarray(matrix), like.format)


def pack(kernel: jax.Array, fmt: quant.Format, lead: int = 0) -> quant.Packed:
    """Quantises a kernel [*lead, in, *out] as bitsandbytes' layers do, and remembers its dtype.

    That is `fmjax.quant.quantize`, except that `Linear8bitLt` rounds to float16 first.
    """
    name = kernel.dtype.name
    if isinstance(fmt, quant.Int8):
        kernel = kernel.astype(jnp.float16)  # outside of the jit, which could skip the rounding
    return _quantizer(fmt, lead)(kernel).replace(dtype_name=name)


@functools.cache
def _quantizer(fmt: quant.Format, lead: int) -> Callable[..., quant.Packed]:
    return jax.jit(functools.partial(quant.quantize, fmt=fmt, lead=lead))


class _Placed:
    """An array that is filled on its devices, one index of its leading axes at a time."""

    def __init__(self, shape: tuple[int, ...], dtype: Any, sharding: Sharding | None) -> None:
        self._shape, self._dtype, self._sharding = shape, dtype, sharding
        whole = (slice(None),) * len(shape)
        self._index = (
            {None: whole} if sharding is None else sharding.addressable_devices_indices_map(shape)
        )
        self._shards: dict[Any, jax.Array] = {}

    def put(self, place: tuple[int, ...], part: np.ndarray) -> None:
        """Fills `[*place, ...]`."""
        for device, index in self._index.items():
            bounds = [s.indices(n)[:2] for s, n in zip(index, self._shape, strict=True)]
            lead = [n - start for n, (start, _) in zip(place, bounds, strict=False)]
            sizes = [stop - start for start, stop in bounds]
            if not all(0 <= n < size for n, size in zip(lead, sizes, strict=False)):
                continue
            own = jax.device_put(part if device is None else part[index[len(place) :]], device)
            if place:
                if device not in self._shards:
                    self._shards[device] = jnp.zeros(sizes, self._dtype, device=device)
                own = _set(self._shards[device], own, tuple(lead))
            self._shards[device] = own

    def whole(self) -> jax.Array:
        if self._sharding is None:
            return self._shards[None]
        return jax.make_array_from_single_device_arrays(
            self._shape, self._sharding, list(self._shards.values())
        )


@functools.partial(jax.jit, donate_argnums=0)
def _set(whole: jax.Array, part: jax.Array, place: tuple[jax.Array, ...]) -> jax.Array:
    return whole.at[place].set(part)


# --- from memory into files ---------------------------------------------------------------------


def packed_items(key: str, read: Callable[[], quant.Packed]) -> list[Item]:
    """The file tensors of one packed matrix.

    Args:
      key: name of the weight, "model.layers.0.mlp.up_proj.weight".
      read: gives the matrix; called now, because the sizes of what is written depend on it, and
        again when its codes are written, so that they are not kept.
    """
    parts = quant.to_file(read())
    codes = parts.pop("")
    items = [Item(key, codes.shape, codes.dtype, lambda: quant.to_file(read())[""])]
    for suffix, array in parts.items():
        items.append(Item(part_name(key, suffix), array.shape, array.dtype, lambda a=array: a))
    return items
