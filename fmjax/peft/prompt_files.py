"""Soft prompts in the PEFT library's format: one tensor and a config that states its shape.

A prompt that was computed (p-tuning) is filed as what it is, a prompt; the encoder is not kept.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fmjax.core import tree
from fmjax.core.errors import CheckpointError, ConfigError
from fmjax.peft import prompt
from fmjax.peft.base import Base
from fmjax.peft.prefix_files import TENSOR
from fmjax.peft.prompt import Prompt
from fmjax.peft.ptuning import PTuning
from fmjax.peft.tasks import modules_to_save, task_type

# Keys that leave the maths alone: how the prompt started, the encoder that is not in the file, and
# numbers of the base that a prompt does not depend on.
_NOTES = frozenset(
    """
    auto_mapping base_model_name_or_path encoder_dropout encoder_hidden_size encoder_num_layers
    encoder_reparameterization_type inference_mode modules_to_save num_attention_heads num_layers
    num_virtual_tokens peft_type peft_version prompt_tuning_init prompt_tuning_init_text revision
    task_type tokenizer_kwargs tokenizer_name_or_path
    """.split()
)


def shapes(spec: Any, base: Base) -> dict[str, tuple[int, ...]]:
    """{name in the file: shape}: one matrix [P, D]."""
    return {TENSOR: (spec.num_virtual_tokens, prompt.table(base).shape[1])}


def pack(spec: Any, base: Base, adapter: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Expanded adapter {path: array} → {name in the file: array}.

    Raises:
      CheckpointError: a leaf that is missing, unexpected or of another shape.
    """
    ((path, leaf),) = tree.flatten(prompt.abstract(spec, base)).items()
    if path not in adapter or adapter[path].shape != leaf.shape:
        raise CheckpointError(
            f"the adapter lacks {path!r} {leaf.shape}; save it with the spec and the model that it "
            "was made for"
        )
    if rest := adapter.keys() - {path}:
        raise CheckpointError(
            f"adapter leaf {min(rest)!r} does not belong to its spec; save it with the spec that "
            "it was made from"
        )
    return {TENSOR: adapter[path]}


def unpack(spec: Any, base: Base, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """{name in the file: array} → adapter {path: array}; the inverse of `pack`."""
    return tree.flatten(prompt.place(base, tensors[TENSOR]))


def to_peft(spec: Prompt, base: Base) -> dict[str, Any]:
    """Spec → contents of an adapter_config.json."""
    return stated(spec, base) | {"peft_type": "PROMPT_TUNING", "prompt_tuning_init": "RANDOM"}


def to_peft_computed(spec: PTuning, base: Base) -> dict[str, Any]:
    """Spec of p-tuning → contents of an adapter_config.json."""
    return stated(spec, base) | {
        "peft_type": "P_TUNING",
        "encoder_reparameterization_type": spec.kind.upper(),
        "encoder_hidden_size": spec.width(base),
        "encoder_num_layers": 2,
        "encoder_dropout": 0.0,
    }


def stated(spec: Any, base: Base) -> dict[str, Any]:
    """What the configs of all kinds of prompts have in common."""
    config = base.model.config
    return {
        # PEFT's class for no task in particular would leave the prompt out.
        "task_type": task_type(spec, base) or "FEATURE_EXTRACTION",
        "inference_mode": True,
        "num_virtual_tokens": spec.num_virtual_tokens,
        "token_dim": prompt.table(base).shape[1],
        "num_transformer_submodules": 1,
        "num_attention_heads": config.num_attention_heads,
        "num_layers": config.num_hidden_layers,
        "modules_to_save": list(spec.modules_to_save) or None,
    }


def from_peft(config: Mapping[str, Any], base: Base) -> Prompt:
    """Contents of an adapter_config.json → spec of the plain prompt in the file.

    Raises:
      ConfigError: a key whose value changes the maths and is not supported, a prompt for another
        model, or no length.
    """
    own = {"token_dim": prompt.table(base).shape[1], "num_transformer_submodules": 1}
    for key in sorted(config.keys() - _NOTES):
        value = config[key]
        if key in own and value not in (None, own[key]):
            raise ConfigError(
                f"{key}={value!r} where prompts of this {base.architecture} have {own[key]}; use "
                "the model that it was made for"
            )
        if key not in own and value not in (None, False, [], {}, ""):
            raise ConfigError(
                f"{key}={value!r} is not supported; train the prompt without it, or use PEFT"
            )
    return Prompt(config.get("num_virtual_tokens"), modules_to_save=modules_to_save(config, base))
