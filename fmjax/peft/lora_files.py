"""LoRA in the PEFT library's format: tensor names and layouts.

A linear layer has `lora_A.weight` [r, in] and `lora_B.weight` [out, r], whichever way its own
weight lies, and where the spec says so `lora_magnitude_vector` [out] and `lora_B.bias` [out]; an
embedding has `lora_embedding_A` [r, V] and `lora_embedding_B` [D, r]; a convolution [r, in, h, w]
and [out, r, 1, 1]. Experts stand side by side, in A expert by expert and in B rank by rank:
[E r, in] and [out, r E].
"""

import math
from collections.abc import Mapping

import numpy as np

from fmjax.core.errors import CheckpointError
from fmjax.peft.base import PREFIX, Base, Weight
from fmjax.peft.config import LoRA, names_match
from fmjax.peft.layout import orders
from fmjax.peft.lora import DTYPE, constants
from fmjax.peft.lora_sites import Site, sites


def shapes(spec: LoRA, base: Base) -> dict[str, tuple[int, ...]]:
    """{name in the file: shape} of an adapter with this spec."""
    found: dict[str, tuple[int, ...]] = {}
    for site in sites(spec, base):
        w = site.weight
        outputs = math.prod(w.outputs)
        for i, rank in enumerate(site.ranks):
            if not rank:
                continue
            *window, inputs = w.inputs
            if w.inner == 2:
                experts = window[0]
                shapes = {"lora_a": (experts * rank, inputs), "lora_b": (outputs, rank * experts)}
            else:
                ones = (1,) * len(window)
                shapes = {"lora_a": (rank, inputs, *window), "lora_b": (outputs, rank, *ones)}
            shapes |= {"magnitude": _magnitude_shape(w), "lora_bias": (outputs,)}
            found |= {key: shapes[leaf] for leaf, key in _keys(spec, base, w, i).items()}
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
        leaves = {name: _take(rest, w.path, name) for name in site.leaves(spec)}
        for i, rank in enumerate(site.ranks):
            own = {name: x[i] if w.stacked else x for name, x in leaves.items()}
            _check_leaves(spec, site, own, rank)
            if rank:
                keys = _keys(spec, base, w, i)
                found |= {keys[name]: x for name, x in _to_file(w, own, rank).items()}
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
        leaves = {
            name: np.zeros((*count, *shape), DTYPE)
            for name, (shape, _) in site.leaves(spec).items()
        }
        for i, rank in enumerate(site.ranks):
            if rank:
                own = {name: x[i] if w.stacked else x for name, x in leaves.items()}
                _from_file(w, _keys(spec, base, w, i), tensors, own, rank)
        flat |= {f"{w.path}/{name}": x for name, x in leaves.items()}
    return flat


def _magnitude_shape(w: Weight) -> tuple[int, ...]:
    outputs = math.prod(w.outputs)
    return (1, outputs, 1, 1) if w.inner == 3 else (outputs,)


def _to_file(w: Weight, own: Mapping[str, np.ndarray], rank: int) -> dict[str, np.ndarray]:
    """One layer's leaves in the files' layout."""
    inputs, outputs, _ = orders(w)
    a = own["lora_a"][..., :rank]  # [*window or E, in, r]
    b = own["lora_b"]  # [E?, r, *out]
    found: dict[str, np.ndarray] = {}
    for name in own.keys() - {"lora_a", "lora_b"}:
        found[name] = np.empty(outputs.size, own[name].dtype)
        found[name][outputs] = own[name].reshape(-1)
    if "magnitude" in found:
        found["magnitude"] = found["magnitude"].reshape(_magnitude_shape(w))
    file_a = np.empty(a.shape, a.dtype)
    file_a[..., inputs, :] = a
    file_b = np.empty((*b.shape[: w.inner == 2], rank, outputs.size), b.dtype)
    file_b[..., outputs] = b[..., :rank, *(slice(None),) * len(w.outputs)].reshape(file_b.shape)
    if w.inner == 2:
        file_a = file_a.transpose(0, 2, 1).reshape(-1, inputs.size)
        file_b = file_b.transpose(2, 1, 0).reshape(outputs.size, -1)
    else:
        file_a = np.moveaxis(file_a, (-1, -2), (0, 1))
        file_b = file_b.T.reshape(outputs.size, rank, *(1,) * (w.inner - 1))
    return found | {"lora_a": np.ascontiguousarray(file_a), "lora_b": np.ascontiguousarray(file_b)}


def _from_file(
    w: Weight,
    keys: Mapping[str, str],
    tensors: Mapping[str, np.ndarray],
    own: Mapping[str, np.ndarray],
    rank: int,
) -> None:
    """The inverse of `_to_file`, into arrays of zeros."""
    inputs, outputs, _ = orders(w)
    a, b = tensors[keys["lora_a"]], tensors[keys["lora_b"]]
    if w.inner == 2:
        a = a.reshape(-1, rank, inputs.size).transpose(0, 2, 1)
        b = b.reshape(outputs.size, rank, -1).transpose(2, 1, 0)
    else:
        a = np.moveaxis(a, (0, 1), (-1, -2))
        b = b.reshape(outputs.size, rank).T
    own["lora_a"][..., :rank] = a[..., inputs, :]
    own_b = own["lora_b"][..., :rank, *(slice(None),) * len(w.outputs)]
    own_b[...] = b[..., outputs].reshape(own_b.shape)
    for name in own.keys() - {"lora_a", "lora_b"}:
        own[name][...] = tensors[keys[name]].reshape(-1)[outputs].reshape(own[name].shape)


def _keys(spec: LoRA, base: Base, weight: Weight, i: int) -> dict[str, str]:
    """{leaf: name in the file} of layer number i."""
    name, below = weight.names[i], ""
    if weight in base.fused:
        # PEFT wraps the module once for each of its parameters, the last one outermost.
        name = name.rpartition(".")[0]
        same = [w for w in base.fused if w.names[i].rpartition(".")[0] == name]
        later = same[same.index(weight) + 1 :]
        below = ".base_layer" * sum(names_match(spec.target_parameters, w.names[i]) for w in later)
    suffixes = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight"}
    if not weight.linear:
        suffixes = {"lora_a": "lora_embedding_A", "lora_b": "lora_embedding_B"}
    if spec.use_dora:
        suffixes["magnitude"] = "lora_magnitude_vector"
    if spec.lora_bias:
        suffixes["lora_bias"] = "lora_B.bias"
    return {leaf: f"{PREFIX}{name}{below}.{suffix}" for leaf, suffix in suffixes.items()}


def _take(rest: dict[str, np.ndarray], module: str, name: str) -> np.ndarray:
    if (path := f"{module}/{name}") not in rest:
        raise CheckpointError(
            f"the adapter lacks {path!r}; save it with the spec and the model that it was made for"
        )
    return rest.pop(path)


def _check_leaves(spec: LoRA, site: Site, own: Mapping[str, np.ndarray], rank: int) -> None:
    w = site.weight
    a, b = own["lora_a"], own["lora_b"]
    lead, axis = w.shape[: w.inner == 2], int(w.inner == 2)
    size = a.shape[-1]
    expected = {name: shape for name, (shape, _) in site.leaves(spec).items()}
    expected |= {"lora_a": (*w.inputs, size), "lora_b": (*lead, size, *w.outputs)}
    if any(x.shape != expected[name] for name, x in own.items()):
        raise CheckpointError(
            f"the adapter at {w.path!r} has shapes {a.shape} and {b.shape}, which do not fit its "
            f"matrix {w.shape}; save it with the model that it was made for"
        )
    padding = [a[..., rank:], np.moveaxis(b, axis, 0)[rank:]]
    padding += [x for name, x in own.items() if name not in ("lora_a", "lora_b") and not rank]
    if size < rank or any(x.any() for x in padding):
        raise CheckpointError(
            f"the adapter at {w.path!r} does not have the rank {rank} of its spec; save it with "
            "the spec that it was made from"
        )
