"""Families by name: how a config.json or a published size becomes a model."""

import dataclasses
import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn

from fmjax.core import tree
from fmjax.core.errors import ConfigError
from fmjax.core.execution import Execution
from fmjax.models.config import ModelConfig
from fmjax.models.heads import Architectures, HeadedConfig
from fmjax.nn.param import abstract

# model_type of a config.json → (module below fmjax.models, config class, model class).
_FAMILIES = {
    "bert": ("bert", "BertConfig", "Bert"),
    "clip": ("clip", "CLIPConfig", "CLIP"),
    "clip_text_model": ("clip", "CLIPTextConfig", "CLIPText"),
    "clip_vision_model": ("clip", "CLIPVisionConfig", "CLIPVision"),
    "dinov2": ("dinov2", "Dinov2Config", "Dinov2"),
    "dinov2_with_registers": ("dinov2", "Dinov2Config", "Dinov2"),
    "falcon": ("falcon", "FalconConfig", "Falcon"),
    "gemma": ("gemma", "GemmaConfig", "Gemma"),
    "gemma2": ("gemma", "GemmaConfig", "Gemma"),
    "gpt2": ("gpt2", "GPT2Config", "GPT2"),
    "llama": ("llama", "LlamaConfig", "Llama"),
    "mistral": ("llama", "LlamaConfig", "Llama"),
    "mixtral": ("mixtral", "MixtralConfig", "Mixtral"),
    "qwen2": ("qwen", "QwenConfig", "Qwen"),
    "qwen3": ("qwen", "QwenConfig", "Qwen"),
    "resnet": ("resnet", "ResNetConfig", "ResNet"),
    "roberta": ("bert", "BertConfig", "Bert"),
    "siglip": ("siglip", "SiglipConfig", "Siglip"),
    "siglip_text_model": ("siglip", "SiglipTextConfig", "SiglipText"),
    "siglip_vision_model": ("siglip", "SiglipVisionConfig", "SiglipVision"),
    "vit": ("vit", "ViTConfig", "ViT"),
    "vit_mae": ("vit_mae", "ViTMAEConfig", "ViTMAE"),
}


@dataclasses.dataclass(frozen=True)
class Family:
    """Everything that fmjax knows of a model_type.

    Attributes:
      name: the model_type.
      config: the config class.
      model: the Linen module class, built as `model(config, execution)`.
      architectures: head → the transformers class that reads its exports.
      stack: name of the layer stack among the parameters.
      rows: config → rows of the weights map (`fmjax.convert.Row`).
      head_tensors: names in the files of what belongs to heads.
      presets: published sizes by name.
    """

    name: str
    config: type[HeadedConfig]
    model: type[nn.Module]
    architectures: Architectures
    stack: str
    rows: Callable[[Any], Sequence[Any]]
    head_tensors: re.Pattern[str]
    presets: Mapping[str, ModelConfig]

    def architecture(self, config: HeadedConfig) -> str:
        """The transformers class that reads the exports of a model with this config."""
        return self.architectures[config.head]


def get_family(model_type: str) -> Family:
    """The family that reads this model_type.

    Raises:
      ConfigError: an unknown model_type.
    """
    if model_type not in _FAMILIES:
        known = ", ".join(sorted(_FAMILIES))
        raise ConfigError(f"model_type {model_type!r} is not supported; fmjax reads {known}")
    package, config, model = _FAMILIES[model_type]
    config_module, model_module = (
        importlib.import_module(f"fmjax.models.{package}.{part}") for part in ("config", "model")
    )

    def rows(config: ModelConfig) -> Sequence[Any]:
        return importlib.import_module(f"fmjax.models.{package}.weights").rows(config)

    config_cls: type[HeadedConfig] = getattr(config_module, config)
    return Family(
        name=model_type,
        config=config_cls,
        model=getattr(model_module, model),
        architectures=config_cls.ARCHITECTURES[model_type],
        stack=model_module.STACK,
        rows=rows,
        head_tensors=config_cls.HEAD_TENSORS,
        presets=config_module.PRESETS,
    )


def presets() -> dict[str, ModelConfig]:
    """All published sizes by name."""
    found: dict[str, ModelConfig] = {}
    for package in sorted({entry[0] for entry in _FAMILIES.values()}):
        found |= importlib.import_module(f"fmjax.models.{package}.config").PRESETS
    return found


def build(
    config: ModelConfig | Mapping[str, Any] | str,
    *,
    override: Mapping[str, Any] | None = None,
    dtype: Any = "float32",
    param_dtype: Any = None,
    **execution: Any,
) -> nn.Module:
    """A model from a config, the contents of a config.json, or the name of a published size.

    Args:
      config: for example `LlamaConfig(…)`, `{"model_type": "llama", …}` or "llama-7b".
      override: fields of the config to change, such as
        {"head": "sequence-classification", "id2label": ["negative", "positive"]}.
      dtype: compute dtype.
      param_dtype: dtype of the parameters; default float32, so that bfloat16 compute keeps
        float32 master weights.
      **execution: other fields of `fmjax.Execution` (scan_layers, remat, attention).

    Returns:
      A Linen module with `.config` and `.execution`; its parameters come from `init_params` or
      `from_pretrained`.

    Raises:
      ConfigError: an unknown name, model_type or field.
    """
    if isinstance(config, str):
        named = presets()
        if config not in named:
            raise ConfigError(f"no model size {config!r}; choose one of {', '.join(named)}")
        config = named[config]
    elif isinstance(config, Mapping):
        if "model_type" not in config:
            raise ConfigError("config: model_type is missing")
        config = get_family(config["model_type"]).config.from_hf(config)
    config = config.replace(**(override or {}))
    fields = {f.name for f in dataclasses.fields(Execution)}
    unknown = sorted(set(execution) - fields)
    if unknown:
        raise ConfigError(
            f"unknown execution option {', '.join(unknown)}; "
            f"choose from {', '.join(sorted(fields))}"
        )
    ex = Execution(dtype=dtype, param_dtype=param_dtype or "float32", **execution)
    return get_family(config.model_type).model(config, ex)


def abstract_params(model: nn.Module) -> dict[str, Any]:
    """The model's parameters as nested dicts of `ParamSpec`: shape, dtype, logical axes."""
    return abstract(model, model.dummy_inputs())


def param_count(model: nn.Module) -> int:
    """Number of parameters, from the abstract tree: nothing is allocated."""
    specs = tree.flatten(abstract_params(model))
    return tree.count([spec.struct() for spec in specs.values()])
