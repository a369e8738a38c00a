"""LoRA's adapter_config.json, read strictly and written plainly."""

from collections.abc import Mapping
from typing import Any

from fmjax.core.errors import ConfigError
from fmjax.peft.base import Base
from fmjax.peft.config import LoRA
from fmjax.peft.layout import orders
from fmjax.peft.lora_sites import sites
from fmjax.peft.tasks import modules_to_save, task_type

# What PEFT assumes where a file is silent.
_DEFAULTS = {"r": 8, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": []}

_FIELDS = {
    "r": "rank",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "target_modules": "targets",
    "exclude_modules": "exclude",
    "rank_pattern": "rank_pattern",
    "alpha_pattern": "alpha_pattern",
    "layers_to_transform": "layers_to_transform",
    "layers_pattern": "layers_pattern",
    "use_rslora": "use_rslora",
    "modules_to_save": "modules_to_save",
    "use_dora": "use_dora",
    "bias": "bias",
    "lora_bias": "lora_bias",
    "target_parameters": "target_parameters",
}

# Keys that leave the maths alone. `fan_in_fan_out` is among them: how a layer's weight lies is
# known from the layer, and PEFT corrects the key by it too. `eva_config` only picked the start.
_NOTES = frozenset(
    """
    auto_mapping base_model_name_or_path eva_config fan_in_fan_out inference_mode megatron_core
    peft_type peft_version qalora_group_size revision runtime_config task_type
    """.split()
)

# Starting values that leave the base weights as they are. Others ("pissa", "olora", "loftq", …)
# change the base, and the adapter is wrong without that change.
_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")


def from_peft(config: Mapping[str, Any], base: Base) -> LoRA:
    """Contents of an adapter_config.json → spec.

    Raises:
      ConfigError: a key whose value changes the maths and is not supported; a missing target.
    """
    for key in sorted(config.keys() - _FIELDS.keys() - _NOTES):
        value = config[key]
        if key == "init_lora_weights":
            neutral = value in _STARTS
        else:
            neutral = value in (None, False, [], {}, "")
        if not neutral:
            raise ConfigError(
                f"{key}={value!r} is not supported; remove it if it is only a note, else merge "
                "the adapter into its base in PEFT (merge_and_unload, then save_pretrained) and "
                "load the merged model"
            )
    if not config.get("target_modules") and not config.get("target_parameters"):
        raise ConfigError("target_modules is missing; add the names of the adapted layers")
    values = _DEFAULTS | {k: v for k, v in config.items() if k in _FIELDS and v is not None}
    values["modules_to_save"] = modules_to_save(config, base)
    return LoRA(**{_FIELDS[key]: value for key, value in values.items()})


def to_peft(spec: LoRA, base: Base) -> dict[str, Any]:
    """Spec → contents of an adapter_config.json that PEFT 0.7 and later read.

    Newer keys are written only where they say something, so that older versions are not puzzled.
    """
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": task_type(spec, base),
        "inference_mode": True,
        "bias": spec.bias,
        "fan_in_fan_out": any(
            orders(site.weight).inputs_first for site in sites(spec, base) if site.weight.linear
        ),
        "init_lora_weights": True,
        "modules_to_save": _listed(spec.modules_to_save) or None,
        "r": spec.rank,
        "lora_alpha": spec.alpha,
        "lora_dropout": spec.dropout,
        "target_modules": _listed(spec.targets),
        "use_rslora": spec.use_rslora,
        "rank_pattern": dict(spec.rank_pattern),
        "alpha_pattern": dict(spec.alpha_pattern),
        "layers_to_transform": _listed(spec.layers_to_transform),
        "layers_pattern": _listed(spec.layers_pattern) or None,
    }
    newer = {
        "exclude_modules": _listed(spec.exclude),
        "use_dora": spec.use_dora,
        "lora_bias": spec.lora_bias,
        "target_parameters": _listed(spec.target_parameters),
    }
    return config | {key: value for key, value in newer.items() if value}


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
