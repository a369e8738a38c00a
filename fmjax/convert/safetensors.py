"""The safetensors file format: a checked reader of slices and a streaming writer.

Layout (https://github.com/huggingface/safetensors#format): 8 bytes little-endian header length,
a JSON header `{name: {dtype, shape, data_offsets}}`, then the arrays, C-contiguous and without
gaps. Files are untrusted input: every number of the header is checked before an array is made.
"""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from fmjax.core.errors import CheckpointError

DTYPES: dict[str, np.dtype] = {
    code: np.dtype(dtype)
    for code, dtype in {
        "BOOL": np.bool_,
        "U8": np.uint8,
        "I8": np.int8,
        "U16": np.uint16,
        "I16": np.int16,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "U32": np.uint32,
        "I32": np.int32,
        "F32": np.float32,
        "U64": np.uint64,
        "I64": np.int64,
        "F64": np.float64,
    }.items()
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
MAX_HEADER = 100_000_000  # bytes; the limit of the reference implementation


@dataclass(frozen=True)
class Tensor:
    """One array of a file, not yet read.

    Attributes:
      file: where it lies.
      name: its key in the header.
      dtype: as stored.
      shape: as stored.
      start: byte offset in the file.
    """

    file: Path
    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def view(self) -> np.ndarray:
        """The array, memory-mapped and read-only: only what is indexed gets read.

        The mapping goes when the last view of it goes, so hold views no longer than it takes to
        copy out of them, and the process never accounts for more than one mapped tensor.
        """
        if not self.nbytes:
            return np.empty(self.shape, self.dtype)
        raw = np.memmap(self.file, np.uint8, "r", offset=self.start, shape=(self.nbytes,))
        return np.asarray(raw).view(self.dtype).reshape(self.shape)


def read_header(file: Path) -> dict[str, Tensor]:
    """Name → tensor for a whole file, in the order of the bytes.

    Raises:
      CheckpointError: the file is missing, truncated, or not safetensors.
    """
    try:
        with open(file, "rb") as f:
            size = os.fstat(f.fileno()).st_size
            length = int.from_bytes(f.read(8), "little")
            if size < 8 or length > min(MAX_HEADER, size - 8):
                raise _corrupt(file, f"a header of {length} bytes in a file of {size}")
            raw = f.read(length)
    except OSError as e:
        raise CheckpointError(f"cannot read weights file {file}: {e.strerror}") from e
    try:
        header = json.loads(raw, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as e:
        raise _corrupt(file, f"the header is not valid JSON: {e}") from e
    if not isinstance(header, dict):
        raise _corrupt(file, "the header is not a JSON object")
    header.pop("__metadata__", None)
    found = [_tensor(file, 8 + length, name, entry) for name, entry in header.items()]
    found.sort(key=lambda t: (t.start, t.nbytes))
    end = 8 + length
    for tensor in found:
        if tensor.start != end:
            what = "overlaps another" if tensor.start < end else "leaves a gap before it"
            raise _corrupt(file, f"tensor {tensor.name!r} {what}")
        end += tensor.nbytes
    if end != size:
        raise _corrupt(file, f"the tensors end at byte {end}, the file at {size}")
    return {tensor.name: tensor for tensor in found}


def _tensor(file: Path, base: int, name: str, entry: Any) -> Tensor:
    match entry:
        case {"dtype": str(code), "shape": list(shape), "data_offsets": [int(begin), int(end)]}:
            dtype = DTYPES.get(code)
        case _:
            raise _corrupt(file, f"tensor {name!r} lacks dtype, shape or data_offsets")
    if dtype is None:
        raise CheckpointError(
            f"{file}: tensor {name!r} has dtype {code!r}; convert the file to one of "
            f"{', '.join(DTYPES)}"
        )
    if not all(type(n) is int and n >= 0 for n in shape):
        raise _corrupt(file, f"tensor {name!r} has shape {shape}")
    tensor = Tensor(file, name, dtype, tuple(shape), base + begin)
    if begin < 0 or end - begin != tensor.nbytes:
        raise _corrupt(
            file, f"tensor {name!r} of {tensor.nbytes} bytes lies in a range of {end - begin}"
        )
    return tensor


def _no_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) != len(pairs):
        raise ValueError("a key stands there twice")
    return keys


def _corrupt(file: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{file} is damaged or incomplete ({why}); download it or save it again")


@dataclass(frozen=True)
class Item:
    """An array to be written, produced only when its turn comes.

    Attributes:
      name: key in the header.
      shape: of the array.
      dtype: of the array; one of `DTYPES`.
      read: gives the array; cast to `dtype` if it comes in another one.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def ordered(items: Sequence[Item]) -> list[Item]:
    """Wide dtypes first, then by name, as in the reference implementation.

    It keeps every array aligned to its own item size.
    """
    return sorted(items, key=lambda i: (-i.dtype.itemsize, i.name))


def write_file(
    file: Path, items: Sequence[Item], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes one file, one array in memory at a time, in the order given by `ordered`.

    Raises:
      CheckpointError: a dtype that the format lacks, or an array of another shape than declared.
      OSError: from the file system, for the caller that knows what to clean up.
    """
    items = ordered(items)
    header: dict[str, Any] = {"__metadata__": dict(metadata or {"format": "pt"})}
    end = 0
    for item in items:
        if (code := CODES.get(item.dtype)) is None:
            raise CheckpointError(
                f"safetensors has no dtype for {item.name!r} ({item.dtype}); pass dtype= to cast"
            )
        header[item.name] = {
            "dtype": code,
            "shape": list(item.shape),
            "data_offsets": [end, end + item.nbytes],
        }
        end += item.nbytes
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with open(file, "wb") as f:
        f.write(len(raw).to_bytes(8, "little"))
        f.write(raw)
        for item in items:
            f.write(_bytes_of(item))


def _bytes_of(item: Item) -> memoryview:
    array = cast(item.read(), item.dtype, item.name)
    if array.shape != tuple(item.shape):
        raise CheckpointError(
            f"tensor {item.name!r} has shape {array.shape} instead of {tuple(item.shape)}; "
            "the parameters do not belong to this model"
        )
    # The buffer protocol knows no bfloat16; bytes are bytes.
    return memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def cast(
    array: np.ndarray, dtype: np.dtype, name: str, out: np.ndarray | None = None
) -> np.ndarray:
    """Casts between floating dtypes, bit for bit where the dtype stays; into `out` if given.

    Raises:
      CheckpointError: an integer array where floats are wanted or the reverse, or a value that
        the narrower dtype cannot hold.
    """
    dtype = np.dtype(dtype)
    check_castable(name, array.dtype, dtype)
    try:
        with np.errstate(over="raise"):
            if out is None:
                return array.astype(dtype, copy=False)
            out[...] = array
            return out
    except FloatingPointError as e:
        raise CheckpointError(
            f"tensor {name!r} has values that {dtype} cannot hold; use bfloat16 or float32"
        ) from e


def check_castable(name: str, source: np.dtype, target: np.dtype) -> None:
    """Raises CheckpointError unless both are floating or both the same."""
    if source != np.dtype(target) and not (_is_float(source) and _is_float(np.dtype(target))):
        raise CheckpointError(
            f"tensor {name!r} holds {source} where {np.dtype(target)} is wanted; a quantised "
            "checkpoint must be dequantised by the tool that wrote it first"
        )


def _is_float(dtype: np.dtype) -> bool:
    return np.issubdtype(dtype, np.floating) or dtype.name.startswith(("bfloat", "float8"))
