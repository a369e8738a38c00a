"""Tensors that bitsandbytes packed: which of a file belong together, and what they stand for.

A linear layer's matrix [out, in] (of GPT-2's Conv1D too, which transformers transposes first)
lies in the file as several tensors. With 4 bits, below the name of the weight: the codes, the
blocks' scales, tables, and a JSON text as bytes; with 8 bits, beside it: the codes [out, in] and
one scale a row. Here each such group is one tensor that stands for its matrix, so that the rest of
the reader checks names and shapes as it always does.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np

from fmjax import quant
from fmjax.convert.safetensors import Item, Tensor
from fmjax.core.errors import CheckpointError
from fmjax.quant.nf4 import BLOCKSIZES

NF4_STATE = ".quant_state.bitsandbytes__nf4"
FP4_STATE = ".quant_state.bitsandbytes__fp4"
SCALES = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", ".SCB")
"""How the names of a packed weight's floating parts end."""

_BESIDE = (".SCB", ".weight_format")

_DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
_INTEGERS = (np.uint8, np.int8)


@dataclasses.dataclass(frozen=True)
class PackedTensor(Tensor):
    """A matrix [out, in] and the tensors that it is packed in.

    Attributes:
      dtype: that the matrix stands for.
      parts: suffix → tensor, as `fmjax.quant.from_file` takes them.
      fmt: how it is packed.
      inputs_first: `shape` and `view` are [in, out]; packed it is [out, in] all the same.
    """

    parts: Mapping[str, Tensor]
    fmt: Any
    inputs_first: bool = False

    def transposed(self) -> "PackedTensor":
        """The same for a layer that lies [in, out] where it is not packed, as GPT-2's do."""
        return dataclasses.replace(self, shape=self.shape[::-1], inputs_first=True)

    def read(self, shape: tuple[int, ...]) -> quant.Packed:
        """The matrix as the packed kernel [in, *out] of this shape, on the host."""
        arrays = {suffix: part.view() for suffix, part in self.parts.items()}
        if NF4_STATE in arrays:
            arrays[""] = self._codes()
        return quant.from_file(arrays, shape, self.dtype, name=self.name)

    def view(self) -> np.ndarray:
        """The matrix in full precision: computed, unlike that of other tensors."""
        shape = self.shape if self.inputs_first else self.shape[::-1]
        matrix = np.asarray(_dequantize(self.read(shape)))
        return matrix if self.inputs_first else matrix.T

    def items(self, key: str) -> list[Item]:
        """Its parts as they are, to be written under the name `key` of the weight."""
        codes = self.parts[""]
        items = []
        for suffix, part in self.parts.items():
            if part is codes and NF4_STATE in self.parts:
                items.append(Item(key, (codes.nbytes, 1), np.dtype(np.uint8), self._codes))
            else:
                items.append(Item(part_name(key, suffix), part.shape, part.dtype, part.view))
        return items

    def _codes(self) -> np.ndarray:
        """NF4's codes as bytes; files may declare another dtype (bnb_4bit_quant_storage)."""
        return self.parts[""].view().reshape(-1).view(np.uint8)[:, None]


@jax.jit
def _dequantize(packed: quant.Packed) -> jax.Array:
    return packed.dequantize()


def part_name(key: str, suffix: str) -> str:
    """Of a part of the packed weight `key`: int8's stand beside it, nf4's below it."""
    return key.removesuffix(".weight") + suffix if suffix in _BESIDE else key + suffix


def gather(tensors: Mapping[str, Tensor], kind: str | None, dtype: Any) -> dict[str, Tensor]:
    """The tensors of a checkpoint, each packed group as one `PackedTensor` under its weight's name.

    Args:
      tensors: what the files hold.
      kind: of packing, "nf4" or "int8", from `read_config`; None leaves all as they are.
      dtype: that int8 matrices stand for, of which the files say nothing; nf4's say it.

    Raises:
      CheckpointError: a group of which a part is missing, of another dtype or shape, or
        inconsistent in itself; the message names the tensor.
    """
    if kind is None:
        if packed := next((name for name in tensors if name.endswith((NF4_STATE, ".SCB"))), None):
            raise CheckpointError(
                f"{tensors[packed].file} holds {packed!r} of a packed weight, but config.json has "
                "no quantization_config; use the config.json that belongs to these weights"
            )
        return dict(tensors)
    if fp4 := next((name for name in tensors if name.endswith(FP4_STATE)), None):
        raise CheckpointError(
            f"{tensors[fp4].file}: {fp4.removesuffix(FP4_STATE)!r} is packed as fp4, which is not "
            "supported, only nf4; quantise the original weights with quantize='nf4'"
        )
    rest = dict(tensors)
    for name, tensor in tensors.items():
        if not name.endswith(".weight"):
            continue
        if kind == "nf4" and (tensor.dtype in _INTEGERS or name + NF4_STATE in tensors):
            rest[name] = _nf4(name, rest)
        elif kind == "int8" and (tensor.dtype in _INTEGERS or part_name(name, ".SCB") in tensors):
            rest[name] = _int8(name, rest, np.dtype(dtype))
    return rest


def _nf4(name: str, rest: dict[str, Tensor]) -> PackedTensor:
    codes = rest.pop(name)
    state_tensor = _part(rest, name, NF4_STATE, codes, np.uint8)
    state = _state(state_tensor)
    out, into = state["shape"]
    n = out * into
    blocks = -(-n // state["blocksize"])
    parts = {
        "": codes,
        NF4_STATE: state_tensor,
        ".quant_map": _part(rest, name, ".quant_map", codes, np.float32, (16,)),
    }
    if nested := "nested_blocksize" in state:
        groups = -(-blocks // state["nested_blocksize"])
        wanted = {".nested_absmax": (groups,), ".nested_quant_map": (256,)}
        parts |= {k: _part(rest, name, k, codes, np.float32, s) for k, s in wanted.items()}
    dtype = np.uint8 if nested else np.float32
    parts[".absmax"] = _part(rest, name, ".absmax", codes, dtype, (blocks,))
    if codes.nbytes != -(-n // 2):
        raise CheckpointError(
            f"{codes.file}: {name!r} has {codes.nbytes} bytes of codes where its quant_state asks "
            f"for {-(-n // 2)}; download the file again"
        )
    return PackedTensor(
        codes.file,
        name,
        np.dtype(_DTYPES[state["dtype"]]),
        (out, into),
        codes.start,
        parts,
        quant.NF4(double=nested, blocksize=state["blocksize"]),
    )


def _state(tensor: Tensor) -> dict[str, Any]:
    """The JSON text that a quant_state tensor holds, checked."""
    try:
        state = json.loads(bytes(tensor.view()))
    except ValueError as e:
        raise CheckpointError(f"{tensor.file}: {tensor.name!r} is no JSON; download it") from e
    match state:
        case {
            "quant_type": "nf4",
            "blocksize": int(size),
            "dtype": str(dtype),
            "shape": [int(out), int(into)],
        } if size in BLOCKSIZES and out > 0 and into > 0 and dtype in _DTYPES:
            nested = [k for k in state if k.startswith("nested_")]
            match state:
                case {
                    "nested_blocksize": int(outer),
                    "nested_dtype": "float32",
                    "nested_offset": float(),
                } if outer > 0:
                    return state
                case _ if not nested:
                    return state
    raise CheckpointError(
        f"{tensor.file}: {tensor.name!r} says {json.dumps(state)[:200]}, which is no matrix packed "
        "as nf4; download the file again"
    )


def _int8(name: str, rest: dict[str, Tensor], dtype: np.dtype) -> PackedTensor:
    codes = rest.pop(name)
    if codes.dtype != np.int8 or len(codes.shape) != 2:
        raise CheckpointError(
            f"{codes.file}: {name!r} is {codes.dtype}{list(codes.shape)} beside scales of packed "
            "rows, which belong to int8[out, in]; download the file again"
        )
    scale = _part(rest, name, ".SCB", codes, np.float32, codes.shape[:1])
    parts = {"": codes, ".SCB": scale}
    if part_name(name, ".weight_format") in rest:  # absent from older files
        parts[".weight_format"] = _part(rest, name, ".weight_format", codes, np.uint8, ())
        if number := int(parts[".weight_format"].view()):
            raise CheckpointError(
                f"{codes.file}: {name!r} has the weight_format {number}, tiles of a GPU kernel; "
                "save it with bitsandbytes 0.45 or newer, which writes rows (0)"
            )
    return PackedTensor(codes.file, name, dtype, codes.shape, codes.start, parts, quant.Int8())


def _part(
    rest: dict[str, Tensor],
    name: str,
    part: str,
    codes: Tensor,
    dtype: Any,
    shape: tuple[int, ...] | None = None,
) -> Tensor:
    key = part_name(name, part)
    if key not in rest:
        raise CheckpointError(
            f"{codes.file} lacks tensor {key!r}, without which {name!r} cannot be unpacked; "
            "download all of the checkpoint, or save it again"
        )
    tensor = rest.pop(key)
    if tensor.dtype != dtype or (shape is not None and tensor.shape != shape):
        wanted = f"{np.dtype(dtype)}{'' if shape is None else list(shape)}"
        raise CheckpointError(
            f"{tensor.file}: {key!r} is {tensor.dtype}{list(tensor.shape)} where {wanted} belongs "
            f"to {name!r}; download the file again"
        )
    return tensor
