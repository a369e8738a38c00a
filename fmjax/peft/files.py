"""Adapters on disk, in the PEFT library's format: written whole or not at all, read strictly."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from safetensors import safe_open

from fmjax.convert import (
    Item,
    Tensor,
    cast,
    read_header,
    read_json,
    replacing,
    targets,
    to_host,
    write_file,
)
from fmjax.core import logical, tree
from fmjax.core.adapter import ENCODER
from fmjax.core.errors import CheckpointError, ConfigError
from fmjax.peft import biases, saved
from fmjax.peft.adapter import abstract_on, shardings
from fmjax.peft.base import PREFIX, Base
from fmjax.peft.expand import expand_on
from fmjax.peft.fingerprint import fingerprint
from fmjax.peft.methods import METHODS, Method, Spec, method_of

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
# In the safetensors metadata, where PEFT keeps silent about it; an unknown key in its config
# would make it warn.
BASE_KEY = "fmjax_base"


def save(
    directory: str | Path,
    spec: Spec,
    adapter: tree.Tree,
    model: nn.Module,
    *,
    base: str | None = None,
    params: tree.Tree | None = None,
) -> None:
    """Writes adapter_config.json and adapter_model.safetensors, which `peft.PeftModel` loads.

    With several processes all must call this; the first one writes.

    Args:
      directory: made if needed; an adapter that lies there is replaced at the end.
      spec: that the adapter was made from.
      adapter: the "adapter" collection, sharded or not. It is expanded first: the file has what
        the encoder of a re-parametrised method computes, not the encoder.
      model: under the adapter.
      base: path or name of the base model, for the reader's information.
      params: of the base. Given, their fingerprint is stored, and `load` refuses another base.
        Modules that the adapter has copies of do not count: their values in the base are free.

    Raises:
      CheckpointError: an adapter that does not fit its spec, or a directory that cannot be
        written.
      ConfigError: a spec that does not fit the model.
    """
    survey = Base.of(model)
    method = method_of(spec)
    config = method.to_peft(spec, survey) | {"base_model_name_or_path": base, "revision": None}
    metadata = {"format": "pt"}
    if params is not None:
        metadata[BASE_KEY] = fingerprint(survey, params, saved.abstract(spec, survey))
    if ENCODER in adapter:
        adapter = jax.jit(lambda adapter: expand_on(spec, survey, adapter))(adapter)
    host = {path: to_host(leaf) for path, leaf in tree.flatten(adapter).items()}
    copies = saved.pack(spec, survey, host, method.root)
    tensors = method.pack(spec, survey, host) | copies
    if jax.process_index():
        return
    items = [Item(k, v.shape, v.dtype, lambda v=v: v) for k, v in tensors.items()]
    with replacing(directory, (WEIGHTS, CONFIG)) as staging:
        write_file(staging / WEIGHTS, items, metadata)
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (staging / CONFIG).write_text(text, encoding="utf-8")


def load(
    directory: str | Path,
    model: nn.Module,
    params: tree.Tree | None = None,
    *,
    mesh: jax.sharding.Mesh | None = None,
    rules: logical.Rules | None = None,
    any_base: bool = False,
) -> tuple[Spec, dict[str, Any]]:
    """Reads an adapter that `save` or the PEFT library wrote.

    Args:
      directory: holds adapter_config.json and adapter_model.safetensors. Of several adapters that
        PEFT saved together, those not called "default" have a folder of their own: give that.
      model: to put the adapter on.
      params: of the base. Given, the base is checked to be the one that the adapter was made for
        where the file says so, and the adapter is laid out like them unless `mesh` says how.
      mesh, rules: as for `init`.
      any_base: accept another base than the file's.

    Returns:
      (spec, float32 adapter).

    Raises:
      CheckpointError: files that are missing, damaged, pickled, for another base, of a method or
        variant that fmjax does not have; tensors that are missing, unexpected or of another shape.
      ConfigError: a spec that matches no layer of the model.
    """
    directory = Path(directory)
    survey = Base.of(model)
    spec, method = _read_spec(directory, survey)
    file = directory / WEIGHTS
    tensors = {k: t for k, t in _open(directory).items() if not biases.repeated(spec, survey, k)}
    expected = method.shapes(spec, survey) | saved.shapes(spec, survey, method.root)
    copies = {k: t for k, t in tensors.items() if k not in expected and _original(k, survey)}
    _match(file, {k: t for k, t in tensors.items() if k not in copies}, expected)
    for key, tensor in copies.items():
        _check_copy(_original(key, survey), tensor, survey, params)
    if params is not None and not any_base:
        _check_base(file, spec, survey, params)
    arrays = {key: cast(tensors[key].view(), np.dtype("float32"), key) for key in expected}
    flat = method.unpack(spec, survey, arrays) | saved.unpack(spec, survey, arrays, method.root)
    adapter = tree.unflatten(flat)
    where = shardings(abstract_on(spec, survey), survey, params, mesh, rules)
    if where is None:
        return spec, jax.tree.map(jnp.asarray, adapter)
    return spec, jax.tree.map(_place, adapter, where)


def _read_spec(directory: Path, survey: Base) -> tuple[Spec, Method]:
    file = directory / CONFIG
    if not file.is_file():
        below = sorted(p.parent.name for p in directory.glob(f"*/{CONFIG}"))
        raise CheckpointError(
            f"{directory} has no {CONFIG}; "
            + (f"give one of its adapters: {', '.join(below)}" if below else "give its folder")
        )
    config = read_json(file)
    if not isinstance(config, Mapping):
        raise CheckpointError(f"{file} is not a JSON object; save the adapter again")
    kind = config.get("peft_type")
    if kind not in METHODS:
        raise CheckpointError(
            f"{file}: peft_type {kind!r} is not supported; fmjax reads {', '.join(METHODS)}"
        )
    method = METHODS[kind][1]
    try:
        spec = method.from_peft(config, survey)
        return spec, method_of(spec)
    except ConfigError as e:
        raise CheckpointError(f"{file}: {e}") from e


def _open(directory: Path) -> dict[str, Tensor]:
    if (directory / WEIGHTS).is_file():
        return read_header(directory / WEIGHTS)
    if (directory / PICKLE).is_file():
        raise CheckpointError(
            f"{directory} has only {PICKLE}, a pickle, which can run code when loaded and is never "
            "opened; load it in PEFT where you trust it and save_pretrained writes safetensors"
        )
    raise CheckpointError(f"{directory} has no {WEIGHTS}; copy or download it too")


def _match(
    file: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]
) -> None:
    if missing := sorted(expected.keys() - tensors.keys()):
        raise CheckpointError(
            f"{file} lacks {missing[0]!r}{_more(missing)}, which {CONFIG} asks for on this model; "
            "use the config and the model that belong to these weights"
        )
    if unexpected := sorted(tensors.keys() - expected.keys()):
        raise CheckpointError(
            f"{file} holds {unexpected[0]!r}{_more(unexpected)}, which {CONFIG} does not ask for "
            "on this model; use the config and the model that belong to these weights"
        )
    for key, shape in expected.items():
        if tensors[key].shape != shape:
            raise CheckpointError(
                f"{file}: {key!r} has shape {list(tensors[key].shape)} where {CONFIG} and the "
                f"model ask for {list(shape)}; use those that belong to these weights"
            )


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _original(key: str, survey: Base) -> str | None:
    """Name of the base tensor that a key holds a copy of: PEFT adds embeddings to some files."""
    name = key.removeprefix(PREFIX).replace(".base_layer.", ".")
    module = name.removesuffix(".weight")
    known = module in survey.tied or any(module in w.names for w in survey.weights)
    return name if known and name.endswith(".weight") and key.startswith(PREFIX) else None


def _check_copy(name: str, tensor: Tensor, survey: Base, params: tree.Tree | None) -> None:
    if params is None:
        raise CheckpointError(
            f"{tensor.file} holds a copy of the base weight {name!r}; pass params= so that it can "
            "be compared, or save it in PEFT with save_embedding_layers=False"
        )
    flat = tree.flatten(params)
    module, _, leaf = name.rpartition(".")
    target = next(
        t
        for t in targets(survey.rows, flat)
        if module in t.modules and t.row.hf.endswith(f".{leaf}")
    )
    own = flat[target.path]
    own = target.row.transform.inverse(to_host(own[target.index(target.modules.index(module))]))
    theirs = tensor.view()
    # Equal at the precision of the coarser of the two.
    if own.shape != theirs.shape or not (
        np.array_equal(own.astype(theirs.dtype), theirs)
        or np.array_equal(own, theirs.astype(own.dtype))
    ):
        raise CheckpointError(
            f"{tensor.file} replaces the base weight {name!r} by another one (trained or "
            "resized), which is not supported; merge the adapter in PEFT (merge_and_unload, then "
            "save_pretrained) and load the merged model"
        )


def _check_base(file: Path, spec: Spec, survey: Base, params: tree.Tree) -> None:
    with safe_open(file, framework="numpy") as f:
        stored = (f.metadata() or {}).get(BASE_KEY)
    if stored is None:
        return
    own = fingerprint(survey, params, saved.abstract(spec, survey))
    if stored != own:
        raise CheckpointError(
            f"{file} was made for another base model (fingerprint {stored[:8]}…, these params have "
            f"{own[:8]}…); load its own base, packed or whole as it was, or pass any_base=True to "
            "use it on this one, such as the 16-bit base of an adapter trained on the 4-bit one"
        )


def _place(array: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
