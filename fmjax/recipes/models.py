"""Models by name: what `--model`, `--override`, `--mesh` and `--dtype` understand."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax

from fmjax import peft
from fmjax.convert import read_json
from fmjax.core.errors import ConfigError, ShardingError, TokenizerError
from fmjax.data import Tokenizer, check_fits, load_tokenizer
from fmjax.hub import from_pretrained, parse_config, read_config
from fmjax.models.config import ModelConfig
from fmjax.models.registry import get_family, presets
from fmjax.parallel import AXES, make_mesh


@dataclasses.dataclass(frozen=True)
class Start:
    """Where a model begins.

    Attributes:
      config: the architecture.
      tokenizer: that fits it.
      directory: whose weights to start from; None starts from random ones.
    """

    config: ModelConfig
    tokenizer: Tokenizer
    directory: Path | None


CAUSAL = (ModelConfig.head,)


def resolve(
    model: str,
    tokenizer: str = "",
    override: Sequence[str] = (),
    heads: Sequence[str] = CAUSAL,
) -> Start:
    """The architecture, tokenizer and weights that the settings name.

    Args:
      model: the name of a published size or a config.json, for random weights; or a model
        directory, for the weights in it.
      tokenizer: its directory; "" looks beside the model's config.
      override: "field=value" changes of the architecture.
      heads: those that the caller can use.

    A published size gets the vocabulary and special token ids of the tokenizer, unless overridden;
    a config.json is taken as it is, but for special token ids that it does not state.

    Raises:
      ConfigError: an unknown name or field, a change to a model that has weights, another head, or
        special token ids outside the vocabulary.
      TokenizerError: no tokenizer, or one with ids that the model lacks.
    """
    changes = parse_override(override)
    path = Path(model)
    if path.is_dir():
        if changes:
            raise ConfigError(
                f"--override changes the architecture, which the weights in {path} would not fit; "
                f"start from random weights with --model {path / 'config.json'}"
            )
        return resolve_directory(path, tokenizer, heads)
    raw, home = (_read(path), path.parent) if path.suffix == ".json" else (_published(model), "")
    if not tokenizer and not home:
        raise TokenizerError(
            f"--model {model} has no tokenizer of its own; train one with `fmjax tokenizer` and "
            "pass --tokenizer DIR"
        )
    found = load_tokenizer(tokenizer or home)
    own = special_ids(found)
    if home:
        raw = {name: i for name, i in own.items() if name != "vocab_size"} | dict(raw)
    else:
        changes = own | changes
    config = _config(raw, changes, model, heads)
    check_fits(found, config.vocab_size)
    _check_special_ids(config, found)
    return Start(config, found, None)


def architecture(model: str, override: Sequence[str] = ()) -> ModelConfig:
    """What `--model` names, with changes, as `resolve` but without tokenizer and weights.

    Raises:
      ConfigError: an unknown name or field.
    """
    path = Path(model)
    if path.is_dir():
        raw = read_config(path)
    else:
        raw = _read(path) if path.suffix == ".json" else _published(model)
    return _changed(raw, parse_override(override), model)


def resolve_directory(
    directory: str | Path, tokenizer: str = "", heads: Sequence[str] | None = CAUSAL
) -> Start:
    """The same of a directory with weights, which are not read yet; `heads` None takes any."""
    directory = Path(directory)
    config = _config(read_config(directory), {}, str(directory), heads)
    found = load_tokenizer(tokenizer or directory)
    check_fits(found, config.vocab_size)
    return Start(config, found, directory)


def open_model(
    directory: str | Path,
    adapter: str | Path | None = None,
    *,
    dtype: str = "auto",
    mesh: jax.sharding.Mesh | None = None,
    quantize: str = "none",
) -> tuple[nn.Module, dict[str, Any], Tokenizer]:
    """A model to use as it is: module, variables (with the adapter, if one is named), tokenizer.

    A tokenizer beside the adapter counts, as it has the chat template that the adapter learnt.
    `quantize` ("nf4", "int8") packs the weights of linear layers while they are read.

    Raises:
      FmjaxError: what cannot be read or does not fit.
    """
    tokenizer = resolve_directory(directory).tokenizer
    if adapter is not None:
        tokenizer = tokenizer_beside(adapter) or tokenizer
    model, params = from_pretrained(
        directory,
        dtype=compute_dtype(dtype),
        mesh=mesh,
        quantize=None if quantize == "none" else quantize,
    )
    variables = {"params": params}
    if adapter is not None:
        variables["adapter"] = peft.load(adapter, model, params)[1]
    return model, variables, tokenizer


def tokenizer_beside(adapter: str | Path) -> Tokenizer | None:
    """The tokenizer in an adapter's directory, if there is one."""
    there = (Path(adapter) / "tokenizer_config.json").is_file()
    return load_tokenizer(adapter) if there else None


def _published(name: str) -> dict[str, Any]:
    named = presets()
    if name not in named:
        raise ConfigError(
            f"--model {name}: no such directory or config.json, nor a published size "
            f"({', '.join(named)})"
        )
    return named[name].to_hf()


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ConfigError(f"{file}: no such file; give the config.json of a model")
    raw = read_json(file)
    if not isinstance(raw, dict) or not isinstance(raw.get("model_type"), str):
        raise ConfigError(f"{file} states no model_type; give the config.json of a model")
    return raw


def special_ids(tokenizer: Tokenizer) -> dict[str, Any]:
    """The fields of a config that follow from its tokenizer."""
    names = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
    return {name: getattr(tokenizer, name) for name in names}


def _check_special_ids(config: ModelConfig, tokenizer: Tokenizer) -> None:
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        stated, own = getattr(config, name, None), getattr(tokenizer, name)
        ids = stated if isinstance(stated, list | tuple) else [stated]
        if not all(i is None or i < config.vocab_size for i in ids):
            raise ConfigError(
                f"{name}={stated} is outside the vocabulary of {config.vocab_size}; the "
                f"tokenizer's is {own}: --override {name}={'null' if own is None else own}"
            )


def parse_override(override: Sequence[str]) -> dict[str, Any]:
    """["hidden_size=256", "rope_theta=1e4"] → {"hidden_size": 256, "rope_theta": 10000.0}.

    Values are JSON; what is not is a string.
    """
    changes: dict[str, Any] = {}
    for item in override:
        name, equals, value = item.partition("=")
        if not (name and equals):
            raise ConfigError(f"--override {item}: write field=value, as in hidden_size=256")
        try:
            changes[name] = json.loads(value)
        except json.JSONDecodeError:
            changes[name] = value
    return changes


def _config(
    raw: Mapping[str, Any], changes: Mapping[str, Any], model: str, heads: Sequence[str] | None
) -> ModelConfig:
    config = _changed(raw, changes, model)
    if heads is None or config.head in heads:
        return config
    family = get_family(config.model_type)
    if heads == CAUSAL and ModelConfig.head not in family.architectures:
        raise ConfigError(
            f"--model {model} is an encoder ({config.model_type}), which does not predict the next "
            "token; give a decoder such as gpt2, or train the encoder with `fmjax train`"
        )
    fitting = [family.architectures[head] for head in heads if head in family.architectures]
    what = "does not predict the next token" if heads == CAUSAL else "is no language model"
    raise ConfigError(
        f"--model {model} is a {family.architecture(config)}, which {what}; "
        f"give a {' or '.join(fitting)}"
    )


def _changed(raw: Mapping[str, Any], changes: Mapping[str, Any], model: str) -> ModelConfig:
    base = parse_config(raw, Path(model) / "config.json" if Path(model).is_dir() else model)
    if not changes:
        return base
    values = dict(raw)
    # What followed from a field that changes follows from its new value.
    heads = getattr(base, "num_attention_heads", None)
    if heads and values.get("num_key_value_heads") == heads:
        del values["num_key_value_heads"]
    if heads and values.get("head_dim") == base.hidden_size // heads:
        del values["head_dim"]
    return get_family(raw["model_type"]).config.from_hf(values | changes)


def parse_mesh(text: str, devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
    """ "data=2,fsdp=4" → a mesh of all devices; what no axis takes goes on `data`.

    Args:
      text: sizes by axis, of which one may be −1; "" puts all devices on `data`.
      devices: default `jax.devices()`.

    Raises:
      ShardingError: an unknown axis, a size that is no number, or sizes that do not divide.
    """
    sizes: dict[str, int] = {}
    for item in filter(None, text.split(",")):
        axis, _, size = (part.strip() for part in item.partition("="))
        if axis not in AXES:
            raise ShardingError(f"--mesh {text}: no axis {axis!r}; there are {', '.join(AXES)}")
        if not size.removeprefix("-").isdecimal():
            raise ShardingError(f"--mesh {text}: write axis=number, as in data=2,fsdp=4")
        sizes[axis] = int(size)
    return make_mesh(**sizes, devices=devices)


def compute_dtype(name: str) -> str:
    """ "auto" → float32 on CPUs, whose bfloat16 is slow, and bfloat16 on accelerators."""
    if name != "auto":
        return name
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"
