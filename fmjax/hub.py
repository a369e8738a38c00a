"""Directories in the Hugging Face layout: read a model from one, write a model to one.

Nothing here touches the network: directories are local. `hf download NAME --local-dir DIR` gets
one, and what `save_pretrained` writes loads with transformers' `AutoModel…` classes.
"""

import dataclasses
import json
import re
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax import convert as files
from fmjax import quant, quantization
from fmjax.core import tree
from fmjax.core.errors import CheckpointError, ConfigError
from fmjax.core.logical import Rules
from fmjax.core.tree import combine, flatten, unflatten
from fmjax.generate.config import in_model_config
from fmjax.initialize import init_params
from fmjax.models.config import ModelConfig
from fmjax.models.registry import abstract_params, build, get_family
from fmjax.parallel import DEFAULT_RULES, param_shardings

if TYPE_CHECKING:
    from fmjax.data.images import ImageProcessor
    from fmjax.data.tokenizer import Tokenizer

# Files beside the weights that a conversion or a fine-tuning run hands on as they are.
CARRIED = (
    "*_Dense/*",
    "*_Normalize/*",
    "*_Pooling/*",
    "added_tokens.json",
    "chat_template.*",
    "config_sentence_transformers.json",
    "generation_config.json",
    "merges.txt",
    "*.model",
    "modules.json",
    "preprocessor_config.json",
    "processor_config.json",
    "sentence_*_config.json",
    "special_tokens_map.json",
    "tokenizer*",
    "vocab.*",
)


def from_pretrained(
    directory: str | Path,
    dtype: Any = None,
    mesh: jax.sharding.Mesh | None = None,
    rules: Rules | None = None,
    override: Mapping[str, Any] | None = None,
    new_head: jax.Array | None = None,
    quantize: Any = None,
    **execution: Any,
) -> tuple[nn.Module, dict[str, Any]]:
    """A model and its weights, read straight into their place on the devices.

    Args:
      directory: holds config.json and safetensors weights.
      dtype: of parameters and computation ("bfloat16", jnp.float32, …); None takes the one that
        config.json states, else float32. Pass `param_dtype="float32"` as well to keep float32
        master weights under bfloat16 computation.
      mesh: lays the parameters out; None puts them on the default device.
      rules: logical axes → mesh axes; default `fmjax.parallel.DEFAULT_RULES`.
      override: fields of the config to change, such as {"head": "sequence-classification",
        "id2label": ["negative", "positive"]}. Weights of another head are then left unread.
      new_head: a key, `jax.random.key(seed)`: the head's parameters that the weights lack, or have
        for another number of labels, start from random values. None: that is an error.
      quantize: "nf4", "nf4-single", "int8" or a format of `fmjax.quant`: packs the kernels at
        `fmjax.quantization.packed_paths` while they are read, one layer's matrix at a time. As in
        transformers, a matrix is cast to the dtype of the parameters first, so "nf4" from float32
        weights differs with `dtype`. A directory that bitsandbytes packed needs no `quantize`: its
        kernels come packed as they are, and stand for the dtype that they were packed from.
      **execution: other fields of `fmjax.Execution` (param_dtype, scan_layers, remat, attention).

    Returns:
      (model, params): a Linen module, and nested dicts of arrays for `{"params": params}`; packed
      kernels are `fmjax.quant.Packed` nodes.

    Raises:
      CheckpointError: no such directory, or weights that are missing, damaged or do not fit.
      ConfigError: a config.json that fmjax does not understand, an unknown format, or `quantize`
        for weights that are packed already.
      ShardingError: a parameter that does not divide over the mesh.
    """
    directory = Path(directory)
    raw = read_config(directory)
    dtype = dtype or _stated_dtype(raw)
    model = _build(directory, raw, override, **({"dtype": dtype, "param_dtype": dtype} | execution))
    stored = files.open_directory(directory)
    if new_head is None:
        model = model.clone(config=model.config.fitted(stored))
    family = get_family(model.config.model_type)
    rows = family.rows(model.config)
    tensors, abstract = _open(directory, stored, raw, model, rows, quantize)
    sharding = None if mesh is None else param_shardings(abstract, mesh, rules or DEFAULT_RULES)
    params = files.load_params(
        tensors,
        rows,
        abstract,
        sharding,
        head_tensors=family.head_tensors,
        new_head=new_head is not None,
    )
    if lacking := flatten(abstract).keys() - flatten(params).keys():
        # Without a key they are constants of a new model (`Row.optional`).
        key = jax.random.key(0) if new_head is None else new_head
        new = init_params(model, key, mesh=mesh, rules=rules, paths=lacking)
        params = combine(params, new)
    return model, params


def save_pretrained(
    directory: str | Path,
    model: nn.Module,
    params: Mapping[str, Any],
    tokenizer: "Tokenizer | None" = None,
    dtype: Any = None,
    max_shard_size: int = files.MAX_SHARD_SIZE,
    generation_config: Mapping[str, Any] | None = None,
    carry_from: str | Path | None = None,
    image_processor: "ImageProcessor | None" = None,
) -> None:
    """Writes a directory that transformers loads: all of it or nothing.

    Several processes all call this; the first one writes. It warns where transformers would compute
    something else from the same files (`ModelConfig.caveat`).

    Args:
      directory: made if needed. Weights of an earlier export in it are replaced; files that this
        function does not write stay.
      model: from `build` or `from_pretrained`.
      params: its parameters, sharded or not. Packed kernels are written as bitsandbytes packs
        them, and config.json says so.
      tokenizer: saved along.
      dtype: of the weights in the files; None keeps each as it is, bit for bit. Packed kernels
        stay packed.
      max_shard_size: bytes per weights file.
      generation_config: contents of generation_config.json; default what `carry_from` has there or,
        if it is older, in its config.json, and the special tokens of the model's config.
      carry_from: a directory (usually the one that the model came from) whose tokenizer files,
        chat template, image processor and generation_config.json are copied, unless given here.
      image_processor: saved along, as preprocessor_config.json.

    Raises:
      CheckpointError: params that do not belong to the model, or a directory that cannot be
        written; an earlier export is then as it was.
      ConfigError: packed kernels in several formats, or of a family that transformers does not
        pack (Falcon).
    """
    config = model.config
    _check_params(model, params)
    packing = quantization.config(model, flatten(params))
    items = files.param_items(get_family(config.model_type).rows(config), params, dtype)
    if jax.process_index():
        return files.contribute(items, max_shard_size)
    if config.caveat is not None:
        warnings.warn(f"{directory}: {config.caveat}", stacklevel=2)
    with files.replacing(directory, files.OWNED) as staging:
        if carry_from is not None:
            carry(carry_from, staging)
        if tokenizer is not None:
            tokenizer.save(staging)
        if image_processor is not None:
            image_processor.save(staging)
        generation = staging / "generation_config.json"
        default = config.head == "causal-lm" and not generation.exists()
        if generation_config is not None or default:
            older = {} if carry_from is None else in_model_config(carry_from)
            _write_json(generation, generation_config or older | _special_tokens(config))
        files.write_weights(staging, items, max_shard_size)
        _write_config(staging, config, config.to_hf() | packing, items)


@dataclasses.dataclass(frozen=True)
class Converted:
    """What `convert` wrote.

    Attributes:
      tensors: number of tensors.
      parameters: number of their elements.
      nbytes: of the weights.
      dtype: the widest of the tensors.
    """

    tensors: int
    parameters: int
    nbytes: int
    dtype: str


def convert(
    source: str | Path,
    target: str | Path,
    dtype: Any = None,
    max_shard_size: int = files.MAX_SHARD_SIZE,
    quantize: Any = None,
) -> Converted:
    """Rewrites a checkpoint in another dtype, packing or file size, one tensor at a time.

    Every tensor is checked against the model that config.json describes. The result has canonical
    names and no tied copies or buffers; tokenizer files and generation_config.json come along.

    Args:
      source: directory with config.json and safetensors weights.
      target: directory to write; may be `source`.
      dtype: of floating tensors; None keeps each as it is, bit for bit. What is packed is then
        dequantised.
      max_shard_size: bytes per weights file.
      quantize: "nf4", "nf4-single", "int8" or a format of `fmjax.quant`: packs the linear layers,
        from `dtype`, else from the dtype that config.json states, as `from_pretrained` would.

    Raises:
      CheckpointError: weights that are missing, damaged or do not fit, or a target that cannot be
        written; what was in the target is then as it was.
      ConfigError: a config.json that fmjax does not understand, or `quantize` for weights that are
        packed already.
    """
    source = Path(source)
    raw = read_config(source)
    stated = dtype or _stated_dtype(raw)
    model = _build(source, raw, None, dtype=stated, param_dtype=stated)
    stored = files.open_directory(source)
    model = model.clone(config=model.config.fitted(stored))
    rows = get_family(model.config.model_type).rows(model.config)
    unpack = dtype is not None and quantize is None
    tensors, abstract = _open(source, stored, raw, model, rows, quantize, unpack)
    flat = flatten(abstract)
    packed = {p: x for p, x in flat.items() if isinstance(x, quant.Packed)} if quantize else {}
    items = files.tensor_items(files.match(tensors, rows, flat), dtype, packed)
    raw.pop("quantization_config", None)
    raw |= quantization.config(model, flat)
    with files.replacing(target, files.OWNED) as staging:
        carry(source, staging)
        files.write_weights(staging, items, max_shard_size)
        raw.pop("torch_dtype", None)
        _write_config(staging, model.config, raw, items)
    return Converted(
        tensors=len(items),
        parameters=tree.count([*flat.values()]),
        nbytes=sum(item.nbytes for item in items),
        dtype=_widest(items),
    )


def read_config(directory: str | Path) -> dict[str, Any]:
    """The contents of a directory's config.json.

    Raises:
      CheckpointError: no such directory or file.
      ConfigError: not a JSON object with a model_type.
    """
    directory = Path(directory)
    if not directory.is_dir():
        hint = "give the directory of a model"
        if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(directory)):
            hint += f", or download one by its name: hf download {directory} --local-dir DIR"
        raise CheckpointError(f"{directory}: no such directory; {hint}")
    file = directory / "config.json"
    if not file.is_file():
        raise CheckpointError(f"{directory} has no config.json; give the model's own directory")
    raw = files.read_json(file)
    if not isinstance(raw, dict) or not isinstance(raw.get("model_type"), str):
        raise ConfigError(f"{file} states no model_type; give the config.json of a model")
    return raw


def parse_config(raw: Mapping[str, Any], file: str | Path) -> ModelConfig:
    """The config that the contents of a config.json stand for.

    Raises:
      ConfigError: an unknown model_type, key or value; begins with the name of the file.
    """
    try:
        return get_family(raw["model_type"]).config.from_hf(raw)
    except ConfigError as e:
        raise ConfigError(f"{file}: {str(e).removeprefix('config: ')}") from e


def carry(source: str | Path, target: Path) -> None:
    """Copies tokenizer files, chat templates, image processors, generation_config.json and what
    sentence-transformers does after the model.

    Raises:
      CheckpointError: `source` is not a directory.
    """
    source = Path(source)
    if not source.is_dir():
        raise CheckpointError(f"cannot carry files from {source}: it is not a local directory")
    for pattern in CARRIED:
        for file in source.glob(pattern):
            if file.is_file():
                copy = target / file.relative_to(source)
                copy.parent.mkdir(exist_ok=True)
                shutil.copyfile(file, copy)


def _open(
    directory: Path,
    stored: Mapping[str, files.Tensor],
    raw: Mapping[str, Any],
    model: nn.Module,
    rows: Sequence[files.Row],
    fmt: Any,
    unpack: bool = False,
) -> tuple[dict[str, files.Tensor], dict[str, Any]]:
    """A directory's tensors, and the abstract parameters with what is packed or is to be."""
    abstract = quantization.abstract(model, fmt) if fmt else abstract_params(model)
    kind = files.read_config(raw.get("quantization_config"))
    if kind is not None and fmt is not None:
        raise ConfigError(
            f"{directory} is packed already ({kind}); leave quantize out, or give the original"
        )
    dtype = model.execution.param_dtype
    tensors = files.gather(stored, kind, dtype)
    if kind is None:
        return tensors, abstract
    tensors, flat = files.survey(tensors, rows, flatten(abstract), unpack)
    return tensors, unflatten(flat)


def _build(
    directory: Path, raw: Mapping[str, Any], override: Mapping[str, Any] | None, **execution: Any
) -> nn.Module:
    override = dict(override or {})
    if "head" in override:
        raw = {k: v for k, v in raw.items() if k != "architectures"}
    if "model_type" in override:  # an autoencoder's encoder as the model that it is
        raw = {**raw, "model_type": override.pop("model_type")}
    return build(parse_config(raw, directory / "config.json"), override=override, **execution)


def _stated_dtype(raw: Mapping[str, Any]) -> str:
    dtype = raw.get("dtype") or raw.get("torch_dtype") or "float32"
    return str(dtype).removeprefix("torch.")


def _check_params(model: nn.Module, params: Mapping[str, Any]) -> None:
    given = flatten(params)
    for path, spec in flatten(abstract_params(model)).items():
        if path not in given:
            raise CheckpointError(
                f"params lack {path!r} of the model; pass the tree of from_pretrained or "
                "init_params (merge adapters first, and mind scan_layers)"
            )
        if tuple(given[path].shape) != spec.shape:
            raise CheckpointError(
                f"parameter {path!r} has shape {tuple(given[path].shape)}, the model's is "
                f"{spec.shape}; pass the parameters of this model"
            )


def _special_tokens(config: Any) -> dict[str, Any]:
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    tokens = {name: getattr(config, name, None) for name in names}
    return {name: token for name, token in tokens.items() if token is not None}


def _write_config(
    directory: Path, config: ModelConfig, content: Mapping[str, Any], items: Sequence[files.Item]
) -> None:
    extra = {
        "architectures": [get_family(config.model_type).architecture(config)],
        "dtype": _widest(items),
        "model_type": config.model_type,
    }
    _write_json(directory / "config.json", {**content, **extra})


def _widest(items: Sequence[files.Item]) -> str:
    whole = [item for item in items if not item.name.endswith(files.SCALES)]
    floats = [item.dtype for item in whole if jnp.issubdtype(item.dtype, jnp.floating)]
    return max(floats, key=lambda dtype: dtype.itemsize).name


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
