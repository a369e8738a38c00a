"""LoRA in the PEFT library's format: tensor names and layouts.

A linear layer has `lora_A.weight` [r, in] and `lora_B.weight` [out, r], whichever way its own
weight lies; an embedding has `lora_embedding_A` [r, V] and `lora_embedding_B` [D, r].
"""

import math
from collections.abc import Iterator, Mapping

import numpy as np

from fmjax.core.errors import CheckpointError
from fmjax.peft.base import PREFIX, Base, Weight
from fmjax.peft.config import LoRA
from fmjax.peft.layout import orders
from fmjax.peft.lora import DTYPE, Site, constants, sites


def shapes(spec: LoRA, base: Base) -> dict[str, tuple[int, ...]]:
    """{name in the file: shape} of an adapter with this spec."""
    found: dict[str, tuple[int, ...]] = {}
    for site, i, rank in _layers(spec, base):
        a, b = _keys(site.weight, i)
        found[a] = (rank, site.weight.shape[0])
        found[b] = (math.prod(site.weight.shape[1:]), rank)
    return found


def pack(spec: LoRA, base: Base, adapter: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Adapter {path: array} → {name in the file: array}, padding removed.

    Raises:
      CheckpointError: a leaf that is missing, unexpected, of another shape or scale than the spec
        says, or padded with anything but zeros.
    """
    rest = dict(adapter)
    expected = constants(spec, base)
    found: dict[str, np.ndarray] = {}
    for site in sites(spec, base):
        w = site.weight
        a, b = _take(rest, w.path, "lora_a"), _take(rest, w.path, "lora_b")
        inputs, outputs, _ = orders(w)
        for i, rank in enumerate(site.ranks):
            own_a, own_b = (a[i], b[i]) if w.stacked else (a, b)
            _check_leaf(site, own_a, own_b, rank)
            if not rank:
                continue
            key_a, key_b = _keys(w, i)
            found[key_a] = np.empty((rank, w.shape[0]), own_a.dtype)
            found[key_a][:, inputs] = own_a[:, :rank].T
            found[key_b] = np.empty((outputs.size, rank), own_b.dtype)
            found[key_b][outputs] = own_b[:rank].reshape(rank, -1).T
    for path, value in expected.items():
        module, _, name = path.rpartition("/")
        leaf = _take(rest, module, name)
        if not np.array_equal(leaf, value.astype(leaf.dtype)):
            raise CheckpointError(
                f"adapter leaf {path!r} is not what its spec says ({value}); save it with the spec "
                "that it was made from"
            )
    if rest:
        raise CheckpointError(
            f"adapter leaf {min(rest)!r} does not belong to its spec; save it with the spec that "
            "it was made from"
        )
    return found


def unpack(spec: LoRA, base: Base, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """{name in the file: array} → adapter {path: float32 array}, padded; the inverse of `pack`."""
    flat = constants(spec, base)
    for site in sites(spec, base):
        w = site.weight
        count = (len(w.names),) if w.stacked else ()
        a = np.zeros((*count, w.shape[0], site.rank), DTYPE)
        b = np.zeros((*count, site.rank, *w.shape[1:]), DTYPE)
        inputs, outputs, _ = orders(w)
        for i, rank in enumerate(site.ranks):
            if not rank:
                continue
            key_a, key_b = _keys(w, i)
            own_a, own_b = (a[i], b[i]) if w.stacked else (a, b)
            own_a[:, :rank] = tensors[key_a][:, inputs].T
            own_b[:rank] = tensors[key_b][outputs].T.reshape(rank, *w.shape[1:])
        flat |= {f"{w.path}/lora_a": a, f"{w.path}/lora_b": b}
    return flat


def _layers(spec: LoRA, base: Base) -> Iterator[tuple[Site, int, int]]:
    for site in sites(spec, base):
        yield from ((site, i, rank) for i, rank in enumerate(site.ranks) if rank)


def _keys(weight: Weight, i: int) -> tuple[str, str]:
    suffixes = (
        ("lora_A.weight", "lora_B.weight")
        if weight.linear
        else ("lora_embedding_A", "lora_embedding_B")
    )
    a, b = (f"{PREFIX}{weight.names[i]}.{suffix}" for suffix in suffixes)
    return a, b


def _take(rest: dict[str, np.ndarray], module: str, name: str) -> np.ndarray:
    if (path := f"{module}/{name}") not in rest:
        raise CheckpointError(
            f"the adapter lacks {path!r}; save it with the spec and the model that it was made for"
        )
    return rest.pop(path)


def _check_leaf(site: Site, a: np.ndarray, b: np.ndarray, rank: int) -> None:
    w = site.weight
    if a.shape[:1] != w.shape[:1] or b.shape[1:] != w.shape[1:] or a.shape[1] != b.shape[0]:
        raise CheckpointError(
            f"the adapter at {w.path!r} has shapes {a.shape} and {b.shape}, which do not fit its "
            f"matrix {w.shape}; save it with the model that it was made for"
        )
    if a.shape[1] < rank or a[:, rank:].any() or b[rank:].any():
        raise CheckpointError(
            f"the adapter at {w.path!r} does not have the rank {rank} of its spec; save it with "
            "the spec that it was made from"
        )
