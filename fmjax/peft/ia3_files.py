"""IA³ in the PEFT library's format: adapter_config.json and tensors.

A layer has one tensor `ia3_l`: [1, in] if it is feedforward, else [out, 1], whichever way its own
weight lies.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from fmjax.core.errors import CheckpointError, ConfigError
from fmjax.peft.base import PREFIX, Base
from fmjax.peft.ia3 import DTYPE, IA3, Site, resolved, sites
from fmjax.peft.layout import orders
from fmjax.peft.tasks import modules_to_save, task_type

_FIELDS = {
    "target_modules": "targets",
    "feedforward_modules": "feedforward",
    "exclude_modules": "exclude",
    "modules_to_save": "modules_to_save",
}

# Keys that leave the maths alone; `init_ia3_weights` is only the start, and how a weight lies
# (`fan_in_fan_out`) is known from the layer.
_NOTES = frozenset(
    """
    auto_mapping base_model_name_or_path fan_in_fan_out inference_mode init_ia3_weights peft_type
    peft_version revision task_type
    """.split()
)


def from_peft(config: Mapping[str, Any], base: Base) -> IA3:
    """Contents of an adapter_config.json → spec.

    Raises:
      ConfigError: a key that is not known and says something; broken values.
    """
    for key in sorted(config.keys() - _FIELDS.keys() - _NOTES):
        if config[key] not in (None, False, [], {}, ""):
            raise ConfigError(
                f"{key}={config[key]!r} is not supported; merge the adapter into its base in PEFT "
                "(merge_and_unload, then save_pretrained) and load the merged model"
            )
    values = {_FIELDS[k]: v for k, v in config.items() if k in _FIELDS and v is not None}
    values["modules_to_save"] = modules_to_save(config, base)
    return IA3(**values)


def to_peft(spec: IA3, base: Base) -> dict[str, Any]:
    """Spec → contents of an adapter_config.json."""
    targets, feedforward = _subset(spec, base)
    config = {
        "peft_type": "IA3",
        "task_type": task_type(spec, base),
        "inference_mode": True,
        "fan_in_fan_out": any(orders(site.weight).inputs_first for site in sites(spec, base)),
        "init_ia3_weights": True,
        "modules_to_save": list(spec.modules_to_save) or None,
        "target_modules": _listed(targets),
        "feedforward_modules": _listed(feedforward),
    }
    return config | ({"exclude_modules": _listed(spec.exclude)} if spec.exclude else {})


def _subset(spec: IA3, base: Base) -> tuple[Any, Any]:
    """Targets and feedforward names of which the latter are among the former, as PEFT insists."""
    targets, feedforward = resolved(spec, base)
    if not isinstance(targets, tuple) or not isinstance(feedforward, tuple):
        return targets, feedforward
    own = tuple(name for name in feedforward if name in targets)
    found = sites(spec, base)
    if sites(dataclasses.replace(spec, targets=targets, feedforward=own), base) != found:
        # The model_type's own names meet the targets in other words: spell the layers out.
        own = tuple(name for site in found if site.feedforward for name in site.weight.names)
        targets = tuple(dict.fromkeys((*targets, *own)))
    return targets, own


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _layers(spec: IA3, base: Base) -> Iterator[tuple[Site, int, str, tuple[int, int]]]:
    """(site, layer, name in the file, shape in the file)."""
    for site in sites(spec, base):
        size = math.prod(site.shape)
        shape = (1, size) if site.feedforward else (size, 1)
        for i, name in enumerate(site.weight.names):
            yield site, i, f"{PREFIX}{name}.ia3_l", shape


def _order(site: Site) -> np.ndarray:
    """Number in the file of each of our features."""
    inputs, outputs, _ = orders(site.weight)
    return inputs if site.feedforward else outputs


def shapes(spec: IA3, base: Base) -> dict[str, tuple[int, ...]]:
    """{name in the file: shape} of an adapter with this spec."""
    return {key: shape for _, _, key, shape in _layers(spec, base)}


def pack(spec: IA3, base: Base, adapter: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Adapter {path: array} → {name in the file: array}.

    Raises:
      CheckpointError: a leaf that is missing, unexpected or of another shape.
    """
    found: dict[str, np.ndarray] = {}
    expected: set[str] = set()
    for site, i, key, shape in _layers(spec, base):
        w = site.weight
        path = f"{w.path}/{site.leaf}"
        expected.add(path)
        leaf = adapter.get(path)
        full = (len(w.names), *site.shape) if w.stacked else site.shape
        if leaf is None or leaf.shape != full:
            raise CheckpointError(
                f"the adapter lacks {path!r} {full}; save it with the spec and the model that it "
                "was made for"
            )
        own = leaf[i] if w.stacked else leaf
        flat = np.empty(own.size, own.dtype)
        flat[_order(site)] = own.reshape(-1)
        found[key] = flat.reshape(shape)
    if rest := adapter.keys() - expected:
        raise CheckpointError(
            f"adapter leaf {min(rest)!r} does not belong to its spec; save it with the spec that "
            "it was made from"
        )
    return found


def unpack(spec: IA3, base: Base, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """{name in the file: array} → adapter {path: float32 array}; the inverse of `pack`."""
    flat: dict[str, np.ndarray] = {}
    for site, i, key, _ in _layers(spec, base):
        w = site.weight
        own = tensors[key].reshape(-1)[_order(site)].reshape(site.shape)
        if not w.stacked:
            flat[f"{w.path}/{site.leaf}"] = own.astype(DTYPE)
            continue
        path = f"{w.path}/{site.leaf}"
        flat.setdefault(path, np.empty((len(w.names), *site.shape), DTYPE))[i] = own
    return flat
