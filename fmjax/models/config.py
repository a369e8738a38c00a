"""What every family's config shares: strict reading and exact writing of Hugging Face configs."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Self

from fmjax.convert.bitsandbytes_config import read_config
from fmjax.core.errors import ConfigError

# Keys of a config.json that do not change what the model computes here: bookkeeping, generation
# defaults (which `GenerationConfig` reads), and switches of the reference's own execution.
BOOKKEEPING = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _flash_attn_2_enabled _name_or_path
    architectures author auto_map chunk_size_feed_forward created_date dtype language license
    model_type name output_attentions output_hidden_states output_past return_dict
    sbert_ce_default_activation_function sentence_transformers task_specific_params torch_dtype
    torchscript transformers_version transformers.js_config use_bfloat16 use_cache use_return_dict
    finetuning_task gradient_checkpointing tokenizer_class unsloth_version unsloth_fixed
    bad_words_ids begin_suppress_tokens decoder_start_token_id diversity_penalty do_sample
    early_stopping encoder_no_repeat_ngram_size exponential_decay_length_penalty
    forced_bos_token_id forced_eos_token_id length_penalty max_length min_length
    no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_scores prefix
    remove_invalid_values repetition_penalty return_dict_in_generate sep_token_id suppress_tokens
    temperature tf_legacy_loss top_k top_p typical_p
    """.split()
)

# Fields, under the names that families give them, of which there is at least one.
SIZES = frozenset(
    """
    head_dim hidden_size intermediate_size max_position_embeddings n_embd n_head n_layer n_positions
    num_attention_heads num_hidden_layers num_key_value_heads vocab_size
    """.split()
)

# Switches of the reference that change the architecture, with the values that leave it alone.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (None,),
    "is_decoder": (False,),
    "is_encoder_decoder": (False,),
    "pruned_heads": ({}, None),
    "tie_encoder_decoder": (False,),
}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Base of the families' configs: frozen, hashable, architecture only.

    A family adds its fields under Hugging Face's names and may state:

    Attributes:
      HARMLESS: keys of its config.json that change nothing here.
      FIXED: keys whose only supported values are listed; extends and overrides `NEUTRAL`.
      head: what stands on the hidden states. Families with several have a field for it, see
        `fmjax.models.heads`.
    """

    HARMLESS: ClassVar[frozenset[str]] = frozenset()
    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    head: ClassVar[str | None] = "causal-lm"

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any]) -> Self:
        """From the contents of a config.json.

        Raises:
          ConfigError: a key that is not understood and may change the maths, or a value that is
            not supported; the message names it.
        """
        # How the weights are packed is no matter of the architecture, if they can be read at all.
        read_config(hf.get("quantization_config"))
        values = cls._read({k: v for k, v in hf.items() if k != "quantization_config"})
        fixed = {**NEUTRAL, **cls.FIXED}
        fields = {f.name for f in dataclasses.fields(cls)}
        for key in sorted(set(values) - fields):
            value = values[key]
            if key in fixed:
                if value not in fixed[key]:
                    allowed = " or ".join(repr(v) for v in fixed[key])
                    raise ConfigError(
                        f"config: {key}={value!r} is not supported by {cls.__name__}; "
                        f"only {allowed} is"
                    )
            elif key not in BOOKKEEPING | cls.HARMLESS and value is not None:
                close = difflib.get_close_matches(key, fields, 1)
                hint = f"did you mean {close[0]!r}?" if close else "remove it if it is only a note"
                raise ConfigError(
                    f"config: {cls.__name__} does not understand {key}={value!r}, which may change "
                    f"the maths; {hint}"
                )
        given = {k: v for k, v in values.items() if k in fields}
        required = {
            f.name
            for f in dataclasses.fields(cls)
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        }
        missing = sorted(required - set(given))
        if missing:
            raise ConfigError(f"config: {cls.__name__} needs {', '.join(missing)}")
        try:
            config = cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})
        except ConfigError:  # the family knows better
            raise
        except Exception:  # whatever values of another kind lead its checks to
            cls._check_types(given)
            raise
        cls._check_types(given)
        return config

    @classmethod
    def _check_types(cls, given: Mapping[str, Any]) -> None:
        """Raises a `ConfigError` for numbers that are none, or that no size can have."""
        hints = typing.get_type_hints(cls)
        for name, value in given.items():
            kinds = set(typing.get_args(hints[name]) or (hints[name],))
            if not kinds <= {int, float, types.NoneType}:
                continue  # what is no plain number is checked by its family
            if value is None and types.NoneType in kinds:
                continue
            whole = isinstance(value, int) and not isinstance(value, bool)
            fits = whole or (float in kinds and isinstance(value, float) and math.isfinite(value))
            what = "a number" if float in kinds else "a whole number"
            require(fits, f"config: {name}={value!r} must be {what}")
            require(name not in SIZES or value > 0, f"config: {name}={value} must be positive")

    def to_hf(self) -> dict[str, Any]:
        """The contents of a config.json that `from_hf` reads back to an equal config."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return self._write({k: list(v) if isinstance(v, tuple) else v for k, v in values.items()})

    @classmethod
    def _read(cls, hf: dict[str, Any]) -> dict[str, Any]:
        """Translates Hugging Face's keys into the fields where they differ."""
        return hf

    def _write(self, values: dict[str, Any]) -> dict[str, Any]:
        """The inverse of `_read`."""
        return values

    def fitted(self, tensors: Collection[str]) -> Self:
        """What the names of a checkpoint's tensors say where its config.json does not."""
        return self

    @property
    def caveat(self) -> str | None:
        """What transformers reads otherwise than it is meant here; None where they agree."""
        return None

    @property
    def position_limit(self) -> int | None:
        """Tokens of the longest sequence that has positions; None where they have no end (RoPE)."""
        return None

    @property
    def embedding_scale(self) -> float | None:
        """What the vectors of words are multiplied by when they are read; None leaves them."""
        return None

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed; raises ConfigError on a name that is no field."""
        fields = [f.name for f in dataclasses.fields(self)]
        for name in changes:
            require(
                name in fields,
                f"config: {type(self).__name__} has no field {name!r}; choose from "
                f"{', '.join(fields)}",
            )
        lists = {k: tuple(v) for k, v in changes.items() if isinstance(v, list)}
        return dataclasses.replace(self, **(changes | lists))


def require(condition: bool, message: str) -> None:
    """Raises a `ConfigError` unless the condition holds."""
    if not condition:
        raise ConfigError(message)
