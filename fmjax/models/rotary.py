"""What the configs of decoders with rotary, grouped-query attention check and read alike."""

from collections.abc import Mapping, Sequence
from typing import Any

from fmjax.core.errors import ConfigError
from fmjax.models.config import require
from fmjax.nn.rope import Rope

TokenId = int | tuple[int, ...] | None

FULL, SLIDING = "full_attention", "sliding_attention"


def settle_heads(config: Any) -> None:
    """Fills in `num_key_value_heads` and `head_dim` where they are None, and checks them.

    Call it in the `__post_init__` of a frozen config that has both, `num_attention_heads`,
    `hidden_size` and `rope`.

    Raises:
      ConfigError: heads that do not divide, or a head that RoPE cannot rotate.
    """
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    if groups is None:
        object.__setattr__(config, "num_key_value_heads", heads)
    elif groups < 1 or heads % groups:
        raise ConfigError(
            f"config: num_attention_heads={heads} is not a multiple of num_key_value_heads={groups}"
        )
    if config.head_dim is None:
        require(
            config.hidden_size % heads == 0,
            f"config: hidden_size={config.hidden_size} is not a multiple of "
            f"num_attention_heads={heads}; set head_dim",
        )
        object.__setattr__(config, "head_dim", config.hidden_size // heads)
    require(config.head_dim % 2 == 0, f"config: head_dim={config.head_dim} must be even for RoPE")
    require(
        config.rope.rope_type == "proportional" or config.rope.partial_rotary_factor in (None, 1.0),
        f"config: partial_rotary_factor={config.rope.partial_rotary_factor} needs rope_type "
        f"'proportional'; transformers' {config.model_type} otherwise rotates whole heads",
    )


def rope_dict(hf: dict[str, Any]) -> dict[str, Any]:
    """Takes `rope_parameters`, or the older `rope_scaling`, out of a config.json; {} for neither.

    Raises:
      ConfigError: no JSON object, or both with different contents: transformers takes the scaling
        then, and forgets the theta of the other.
    """
    given = {name: hf.pop(name, None) or {} for name in ("rope_parameters", "rope_scaling")}
    for name, value in given.items():
        require(isinstance(value, Mapping), f"config: {name}={value!r} must be a JSON object")
    parameters, scaling = (dict(value) for value in given.values())
    require(
        not parameters or not scaling or parameters == scaling,
        "config: there are both rope_parameters and rope_scaling, and they differ; write the "
        "scaling into rope_parameters, beside its rope_theta, and remove rope_scaling",
    )
    return parameters or scaling


def pop_rope(hf: dict[str, Any], theta: float = 10000.0) -> Rope:
    """Takes `rope_parameters`, or the older `rope_theta` and `rope_scaling`, out of a config.json.

    Args:
      hf: the contents; changed.
      theta: what the reference takes where none is given.

    Raises:
      ConfigError: as `rope_dict`, or parameters that cannot be used.
    """
    own, parameters = hf.pop("rope_theta", None), rope_dict(hf)
    partial = hf.pop("partial_rotary_factor", None)
    parameters.setdefault("rope_theta", theta if own is None else own)
    if partial is not None:
        parameters.setdefault("partial_rotary_factor", partial)
    return Rope.from_hf(parameters)


def settle_layer_types(config: Any, usual: Sequence[str]) -> None:
    """Checks `layer_types`, and replaces it with None where it only spells out the usual ones.

    Raises:
      ConfigError: not one known type a layer, or a sliding layer without `sliding_window`.
    """
    window, types = config.sliding_window, config.layer_types
    require(
        window is None or window > 0,
        f"config: sliding_window={window} must be positive or null",
    )
    if types is not None:
        require(
            len(types) == config.num_hidden_layers,
            f"config: layer_types has {len(types)} entries for "
            f"num_hidden_layers={config.num_hidden_layers}",
        )
        unknown = sorted(set(types) - {FULL, SLIDING})
        require(
            not unknown,
            f"config: layer_types {unknown} are unknown; fmjax knows {FULL!r} and {SLIDING!r}",
        )
        if tuple(types) == tuple(usual):
            object.__setattr__(config, "layer_types", None)
    require(
        window is not None or SLIDING not in (types or usual),
        f"config: layer_types has {SLIDING!r} but sliding_window is not in use; set it",
    )
