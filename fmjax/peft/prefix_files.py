"""Prefixes in the PEFT library's format: one tensor, and a config that states the layout."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fmjax.core import tree
from fmjax.core.errors import CheckpointError, ConfigError
from fmjax.peft.base import Base
from fmjax.peft.prefix import Prefix, abstract, gather, layout, spread
from fmjax.peft.tasks import modules_to_save, task_type

TENSOR = "prompt_embeddings"

# What PEFT puts before the names of modules that are trained whole: it does not wrap the base.
ROOT = "base_model."

# Keys that leave the maths alone. `init_weights` only picked the start; `prefix_projection` and
# `encoder_hidden_size` speak of a network that the file does not hold any more.
_NOTES = frozenset(
    """
    auto_mapping base_model_name_or_path encoder_hidden_size inference_mode init_weights
    modules_to_save peft_type peft_version prefix_projection revision task_type
    """.split()
)


def shapes(spec: Prefix, base: Base) -> dict[str, tuple[int, ...]]:
    """{name in the file: shape}: one matrix [P, 2 · L · G · K]."""
    where = layout(base)
    return {TENSOR: (spec.num_virtual_tokens, 2 * where.layers * where.token_dim)}


def pack(spec: Prefix, base: Base, adapter: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Expanded adapter {path: array} → {name in the file: array}.

    Raises:
      CheckpointError: a leaf that is missing, unexpected, or of another shape than the spec says.
    """
    plain = Prefix(spec.num_virtual_tokens)
    expected = tree.flatten(abstract(plain, base))
    for path, leaf in expected.items():
        if path not in adapter or adapter[path].shape != leaf.shape:
            found = adapter[path].shape if path in adapter else "nothing"
            raise CheckpointError(
                f"the adapter has {found} at {path!r} where its spec asks for {leaf.shape}; save "
                "it with the spec and the model that it was made for"
            )
    if rest := adapter.keys() - expected.keys():
        raise CheckpointError(
            f"adapter leaf {min(rest)!r} does not belong to its spec; save it with the spec that "
            "it was made from"
        )
    table = gather(layout(base), dict(adapter))
    return {TENSOR: table.reshape(spec.num_virtual_tokens, -1)}


def unpack(spec: Prefix, base: Base, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """{name in the file: array} → adapter {path: array}; the inverse of `pack`."""
    where = layout(base)
    table = tensors[TENSOR].reshape(where.table_shape(spec))
    return {k: np.ascontiguousarray(x) for k, x in tree.flatten(spread(where, table)).items()}


def _stated(base: Base) -> dict[str, int]:
    where = layout(base)
    return {
        "token_dim": where.token_dim,
        "num_attention_heads": where.heads,
        "num_layers": where.layers,
        "num_transformer_submodules": 1,
    }


def to_peft(spec: Prefix, base: Base) -> dict[str, Any]:
    """Spec → contents of an adapter_config.json."""
    stated = _stated(base)
    return stated | {
        "peft_type": "PREFIX_TUNING",
        "task_type": task_type(spec, base),
        "inference_mode": True,
        "num_virtual_tokens": spec.num_virtual_tokens,
        "prefix_projection": spec.projection,
        "encoder_hidden_size": spec.hidden_size or stated["token_dim"],
        "modules_to_save": list(spec.modules_to_save) or None,
    }


def from_peft(config: Mapping[str, Any], base: Base) -> Prefix:
    """Contents of an adapter_config.json → spec of the plain prefix in the file.

    Raises:
      ConfigError: a key whose value changes the maths and is not supported, a layout that is not
        the model's, or no length.
    """
    stated = _stated(base)
    for key in sorted(config.keys() - _NOTES - {"num_virtual_tokens"}):
        value = config[key]
        if key not in stated and value not in (None, False, [], {}, ""):
            raise ConfigError(
                f"{key}={value!r} is not supported; train the prefix without it, or use PEFT"
            )
        if key in stated and value not in (None, stated[key]):
            raise ConfigError(
                f"{key}={value!r} where the prefixes of this {base.architecture} have "
                f"{stated[key]}; use the model that it was made for"
            )
    return Prefix(
        num_virtual_tokens=config.get("num_virtual_tokens"),
        modules_to_save=modules_to_save(config, base),
    )
