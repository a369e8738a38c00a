"""Generation defaults of a checkpoint, as in generation_config.json."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from fmjax.core.errors import ConfigError
from fmjax.generate.sampling import Sampling

# Settings of transformers that change the tokens and are not supported, with the values at which
# they have no effect. None always has none.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "bad_words_ids": ([],),
    "begin_suppress_tokens": ([],),
    "constraints": ([],),
    "diversity_penalty": (0.0,),
    "dola_layers": (),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "exponential_decay_length_penalty": (),
    "force_words_ids": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "guidance_scale": (1.0,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "no_repeat_ngram_size": (0,),
    "num_beam_groups": (1,),
    "num_beams": (1,),
    "num_return_sequences": (1,),
    "penalty_alpha": (0.0,),
    "remove_invalid_values": (False,),
    "renormalize_logits": (False,),
    "sequence_bias": ([], {}),
    "suppress_tokens": ([],),
    "token_healing": (False,),
    "top_h": (),
    "typical_p": (1.0,),
    "watermarking_config": (),
}
# Those that are read, beside the special tokens.
_READ = (
    "do_sample", "max_new_tokens", "min_p", "repetition_penalty", "temperature", "top_k", "top_p",
)  # fmt: skip
_TOP_K = 50  # what transformers samples with unless told otherwise


@dataclasses.dataclass(frozen=True)
class GenerationConfig:
    """How a checkpoint wants to be sampled.

    `generate(model, variables, ids, **GenerationConfig.from_dir(directory).arguments())` does what
    the checkpoint's authors meant.

    Attributes:
      sampling: greedy unless the file says `do_sample`.
      max_new_tokens: tokens a row; None leaves `generate`'s default.
      bos_token_id, pad_token_id: None leaves the model config's.
      eos_token_id: several ids may end a row; None leaves the model config's.
      stop: strings that end a row, which need a tokenizer (`stop_strings` in the file).
    """

    sampling: Sampling = Sampling()
    max_new_tokens: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None
    stop: tuple[str, ...] | None = None

    @classmethod
    def from_dir(cls, directory: str | Path) -> Self:
        """From the directory's generation_config.json; where there is none, from what config.json
        says of generation, as older checkpoints do.

        Raises:
          ConfigError: a file that is no JSON object, or a setting that is not supported.
        """
        directory = Path(directory)
        file = directory / "generation_config.json"
        if not directory.is_dir():
            raise ConfigError(f"{directory} is not a directory; give a model's directory")
        old = not file.is_file()
        content = in_model_config(directory) if old else _read(file)
        try:
            return cls.from_hf(content)
        except ConfigError as e:
            raise ConfigError(f"{directory / 'config.json' if old else file}: {e}") from e

    @classmethod
    def from_hf(cls, content: Mapping[str, Any]) -> Self:
        """From the contents of a generation_config.json.

        Keys that transformers does not know have no effect there, and none here. Without
        `do_sample` the temperature and the filters count for nothing, as in transformers;
        with it, `top_k` is 50 unless stated. `max_length`, which counts the prompt too, is not
        read.

        Raises:
          ConfigError: a setting that changes the tokens and is not supported.
        """
        given = {k: v for k, v in content.items() if v is not None}
        for name, neutral in _NEUTRAL.items():
            if name in given and given[name] not in neutral:
                raise ConfigError(
                    f"{name}={given[name]!r} is not supported; remove it, or set it to null"
                )
        for name in ("max_new_tokens", "bos_token_id", "pad_token_id", "eos_token_id"):
            value = given.get(name, 0)
            many = name == "eos_token_id" and isinstance(value, list)
            if not all(isinstance(i, int) for i in (value if many else [value])):
                raise ConfigError(f"{name}={value!r} must be a whole number")
        strings = given.get("stop_strings", "")
        if not all(
            isinstance(s, str) for s in (strings if isinstance(strings, list) else [strings])
        ):
            raise ConfigError(f"stop_strings={strings!r} must be a string or a list of them")
        if given.get("do_sample", False):
            names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
            defaults = {"temperature": 1.0, "top_k": _TOP_K}
            chosen = Sampling(**{**defaults, **{n: given[n] for n in names if n in given}})
            if chosen.greedy:
                raise ConfigError("do_sample with temperature=0; set do_sample to false")
        else:
            chosen = Sampling(repetition_penalty=given.get("repetition_penalty", 1.0))
        eos, stop = given.get("eos_token_id"), given.get("stop_strings")
        return cls(
            sampling=chosen,
            max_new_tokens=given.get("max_new_tokens"),
            bos_token_id=given.get("bos_token_id"),
            eos_token_id=tuple(eos) if isinstance(eos, list) else eos,
            pad_token_id=given.get("pad_token_id"),
            stop=((stop,) if isinstance(stop, str) else tuple(stop)) if stop else None,
        )

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for `generate` and `stream`: the fields that are set."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: value for name, value in fields.items() if value is not None}


def in_model_config(directory: str | Path) -> dict[str, Any]:
    """What the config.json of an older checkpoint says of generation, which newer ones have in a
    file of its own.

    Raises:
      ConfigError: a file that is no JSON object.
    """
    file = Path(directory) / "config.json"
    content = _read(file) if file.is_file() else {}
    return {name: content[name] for name in (*_READ, *_NEUTRAL) if content.get(name) is not None}


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as e:
        raise ConfigError(f"{file} is not valid JSON ({e}); copy it again") from e
    if not isinstance(content, dict):
        raise ConfigError(f"{file} holds no JSON object; copy it again")
    return content
