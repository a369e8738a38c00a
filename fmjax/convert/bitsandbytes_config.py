"""What config.json says of weights that bitsandbytes packed."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fmjax import quant
from fmjax.core.errors import ConfigError

# What a quantization_config may say. Most of it says nothing here, because the tensors themselves
# tell whether they are packed and how.
_KNOWN = frozenset(
    """
    _load_in_4bit _load_in_8bit bnb_4bit_compute_dtype bnb_4bit_quant_storage bnb_4bit_quant_type
    bnb_4bit_use_double_quant llm_int8_enable_fp32_cpu_offload llm_int8_has_fp16_weight
    llm_int8_skip_modules llm_int8_threshold load_in_4bit load_in_8bit quant_method
    """.split()
)


def read_config(raw: Mapping[str, Any] | None) -> str | None:
    """The kind of packing that a config.json's `quantization_config` declares.

    `llm_int8_skip_modules` needs no reading: which matrices are packed the files say themselves.
    Nor does the compute dtype: it is the `dtype` that the model is loaded with.

    Returns:
      "nf4", "int8", or None without a quantization_config.

    Raises:
      ConfigError: a method other than bitsandbytes' NF4 and int8; the message names it.
    """
    if raw is None:
        return None
    if not isinstance(raw, Mapping):
        raise ConfigError("config: quantization_config is no JSON object; download it again")
    method = raw.get("quant_method")  # which the first of bitsandbytes' files do not name
    four, eight = (
        bool(raw.get(key, raw.get(f"_{key}"))) for key in ("load_in_4bit", "load_in_8bit")
    )
    if method not in (None, "bitsandbytes") or four is eight:
        raise ConfigError(
            f"config: the weights are quantised by {method or 'an unnamed method'} "
            "(quantization_config), which is not supported; fmjax reads bitsandbytes' nf4 and int8"
        )
    if unknown := sorted(set(raw) - _KNOWN):
        raise ConfigError(
            f"config: quantization_config does not understand {unknown[0]!r}, which may change "
            "the maths; remove it if it is only a note"
        )
    if four and raw.get("bnb_4bit_quant_type", "fp4") != "nf4":
        raise ConfigError(
            f"config: bnb_4bit_quant_type {raw.get('bnb_4bit_quant_type', 'fp4')!r} is not "
            "supported, only 'nf4'; quantise the original weights with quantize='nf4'"
        )
    if eight and raw.get("llm_int8_has_fp16_weight"):
        raise ConfigError(
            "config: llm_int8_has_fp16_weight keeps whole weights beside their codes, which is not "
            "supported; load the original weights"
        )
    return "nf4" if four else "int8"


def write_config(fmt: Any, skip: Sequence[str], compute_dtype: np.dtype) -> dict[str, Any]:
    """The `quantization_config` with which transformers loads what this library packs.

    Args:
      fmt: of the packed matrices.
      skip: names of the linear layers that are not packed. transformers would otherwise choose
        them itself, and not skip classifiers and poolers that have a bias.
      compute_dtype: of the products.
    """
    four = isinstance(fmt, quant.NF4)
    return {
        "_load_in_4bit": four,
        "_load_in_8bit": not four,
        "bnb_4bit_compute_dtype": np.dtype(compute_dtype).name if four else "float32",
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": "nf4" if four else "fp4",
        "bnb_4bit_use_double_quant": four and fmt.double,
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
        "llm_int8_skip_modules": list(skip),
        "llm_int8_threshold": 6.0,
        "load_in_4bit": four,
        "load_in_8bit": not four,
        "quant_method": "bitsandbytes",
    }
