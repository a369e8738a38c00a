"""Packed weights as the tensors that bitsandbytes writes for a torch Linear.

Suffixes are those after the name of the weight: NF4 has "" uint8 [⌈N / 2⌉, 1], ".absmax",
".quant_map", ".quant_state.bitsandbytes__nf4" (JSON as bytes) and, with double quantisation,
".nested_absmax" and ".nested_quant_map". Int8 has "" int8 [out, in], ".SCB" f32 [out] and
".weight_format" uint8 [].
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmjax.core.errors import CheckpointError, ConfigError
from fmjax.quant.codebook import DYNAMIC, NF4
from fmjax.quant.double import BLOCK
from fmjax.quant.formats import storage_of
from fmjax.quant.int8 import Int8Array
from fmjax.quant.nf4 import BLOCKSIZES, NF4Array, unpacked
from fmjax.quant.packed import Packed

STATE = ".quant_state.bitsandbytes__nf4"
_INT8_KEYS = {"", ".SCB", ".weight_format"}
_ROW_MAJOR = 0


def to_file(packed: Packed) -> dict[str, np.ndarray]:
    """The tensors of one layer's kernel, by suffix.

    Raises:
      ConfigError: a kernel with leading axes.
    """
    if packed.lead:
        raise ConfigError(f"a file holds one layer's kernel, not {packed.shape}; index it first")
    packed = jax.tree.map(np.asarray, packed)
    inputs, *out = packed.matrix
    if isinstance(packed, Int8Array):
        return {
            "": np.ascontiguousarray(packed.codes.reshape(inputs, -1).T),
            ".SCB": packed.scale.reshape(-1),
            ".weight_format": np.uint8(_ROW_MAJOR),
        }
    codes, absmax = packed.codes, packed.absmax
    if packed.blocked:
        rows = unpacked(codes, packed.blocksize).astype(np.uint8).reshape(inputs, -1).T
        pairs = rows.reshape(-1, 2)
        codes = pairs[:, 0] << 4 | pairs[:, 1]
        absmax = np.moveaxis(absmax, 0, -1).reshape(-1)
    state = {
        "quant_type": "nf4",
        "blocksize": packed.blocksize,
        "dtype": packed.dtype_name,
        "shape": [math.prod(out), inputs],
    }
    tensors = {"": codes.reshape(-1, 1), ".absmax": absmax, ".quant_map": NF4.copy()}
    if packed.nested_absmax is not None:
        tensors |= {".nested_absmax": packed.nested_absmax, ".nested_quant_map": DYNAMIC.copy()}
        state |= {
            "nested_blocksize": BLOCK,
            "nested_dtype": "float32",
            "nested_offset": float(packed.offset),
        }
    return tensors | {STATE: np.frombuffer(json.dumps(state).encode(), np.uint8)}


def from_file(
    tensors: Mapping[str, np.ndarray],
    shape: tuple[int, ...],
    dtype: Any = None,
    *,
    name: str = "weight",
    storage: str | None = None,
) -> Packed:
    """The inverse of `to_file`; a node of numpy arrays.

    Args:
      tensors: by suffix.
      shape: (in, *out) of the kernel.
      dtype: that it stands for; default what an NF4 file says, and float16 for int8.
      name: of the weight, for messages.
      storage: of NF4 codes, see `quantize`.

    Raises:
      CheckpointError: missing or unexpected tensors, a layout or table that fmjax does not read,
        or another shape.
    """
    matrix = tuple(shape)
    inputs, outputs = matrix[0], math.prod(matrix[1:])
    if ".SCB" in tensors:
        return _int8(tensors, matrix, (outputs, inputs), dtype, name)
    state = _state(tensors, name)
    nested = ".nested_absmax" in tensors
    known = {"", ".absmax", ".quant_map", STATE}
    known |= {".nested_absmax", ".nested_quant_map"} if nested else set()
    _require(name, set(tensors) == known, f"holds {sorted(tensors)} where {sorted(known)} belong")
    _require(name, state.get("quant_type") == "nf4", f"is {state.get('quant_type')}, not nf4")
    blocksize = state.get("blocksize")
    _require(name, blocksize in BLOCKSIZES, f"has blocks of {blocksize}")
    found = tuple(state.get("shape") or ())
    _require(name, found == (outputs, inputs), f"has shape {found}, not {(outputs, inputs)}")
    same = np.array_equal(tensors[".quant_map"], NF4)
    _require(name, same, "has a quant_map of its own, not NF4's")
    absmax, blocks = np.asarray(tensors[".absmax"]).reshape(-1), -(-inputs * outputs // blocksize)
    codes = np.ascontiguousarray(tensors[""]).view(np.uint8).reshape(-1)
    count = -(-inputs * outputs // 2)
    _require(name, codes.size == count, f"has {codes.size} bytes of codes, not {count}")
    _require(name, absmax.size == blocks, f"has {absmax.size} scales, not {blocks}")
    nested_absmax = offset = None
    if nested:
        same = np.array_equal(tensors[".nested_quant_map"], DYNAMIC)
        _require(name, same, "has a nested_quant_map of its own, not bitsandbytes' dynamic map")
        size = state.get("nested_blocksize")
        _require(name, size == BLOCK, f"has nested blocks of {size}, not {BLOCK}")
        nested_absmax = np.asarray(tensors[".nested_absmax"], np.float32).reshape(-1)
        nested_count = -(-blocks // BLOCK)
        what = f"has {nested_absmax.size} nested scales, not {nested_count}"
        _require(name, nested_absmax.size == nested_count, what)
        offset = np.float32(state["nested_offset"])
    absmax = absmax.astype(np.uint8 if nested else np.float32)
    if inputs % blocksize == 0:
        codes = np.stack([codes >> 4, codes & 15], 1).reshape(outputs, -1, blocksize)
        codes = np.moveaxis(codes, 0, -1)  # (blocks, b, out)
        if storage_of(storage) == "uint4":
            codes = codes.astype(jnp.uint4)
        else:
            half = blocksize // 2
            codes = codes[:, :half] << 4 | codes[:, half:]
        codes = codes.reshape(-1, *matrix[1:])
        absmax = np.ascontiguousarray(absmax.reshape(outputs, -1).T).reshape(-1, *matrix[1:])
    stands = jnp.dtype(dtype or state["dtype"]).name
    return NF4Array(codes, absmax, nested_absmax, offset, matrix, stands, blocksize)


def _int8(
    tensors: Mapping[str, np.ndarray],
    matrix: tuple[int, ...],
    stored: tuple[int, int],
    dtype: Any,
    name: str,
) -> Int8Array:
    keys = set(tensors) | {".weight_format"}  # Left out by some writers: row-major.
    _require(name, keys == _INT8_KEYS, f"holds {sorted(keys)} where {sorted(_INT8_KEYS)} belong")
    layout = int(np.asarray(tensors.get(".weight_format", _ROW_MAJOR)))
    _require(name, layout == _ROW_MAJOR, f"has weight_format {layout}; only 0, rows, is read")
    codes, scale = np.asarray(tensors[""]), np.asarray(tensors[".SCB"], np.float32)
    _require(name, codes.shape == stored, f"has shape {codes.shape}, not {stored}")
    _require(name, scale.size == stored[0], f"has {scale.size} scales, not {stored[0]}")
    codes = np.ascontiguousarray(codes.view(np.int8).T).reshape(matrix)
    return Int8Array(codes, scale.reshape(matrix[1:]), matrix, jnp.dtype(dtype or "float16").name)


def _state(tensors: Mapping[str, np.ndarray], name: str) -> dict[str, Any]:
    _require(name, STATE in tensors, f"has no {STATE[1:]}; fmjax reads NF4 and int8")
    try:
        return json.loads(np.asarray(tensors[STATE]).tobytes())
    except ValueError as error:
        raise CheckpointError(f"{name}{STATE} is not JSON ({error}); download it again") from None


def _require(name: str, ok: bool, what: str) -> None:
    if not ok:
        raise CheckpointError(f"packed weight {name!r} {what}; quantize the original again")
