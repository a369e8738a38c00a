"""What makes a model directory one of sentence-transformers: read and written."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from fmjax.convert import read_json
from fmjax.core.errors import ConfigError

MODULES = "modules.json"
POOLING = Path("1_Pooling") / "config.json"
_LENGTH = "sentence_bert_config.json"
_PROMPTS = "config_sentence_transformers.json"
_KINDS = ("Transformer", "Pooling", "Normalize")
# sentence-transformers' names of the poolings, of old and of new files.
_MODES = {
    "mean": ("pooling_mode_mean_tokens", "mean"),
    "cls": ("pooling_mode_cls_token", "cls"),
    "last": ("pooling_mode_lasttoken", "lasttoken"),
}


@dataclasses.dataclass(frozen=True)
class SentenceModel:
    """How a directory makes a vector of a text.

    Attributes:
      pooling: "mean", "cls" or "last".
      normalize: vectors have length 1.
      max_length: tokens that are read of a text.
      prompt: stands before each text.
    """

    pooling: str
    normalize: bool = True
    max_length: int = 256
    prompt: str = ""

    @classmethod
    def of(cls, directory: Path, config: type, pooling: str = "") -> Self:
        """What a sentence-transformers directory states, else mean for encoders, last for decoders.

        Args:
          directory: of the model.
          config: the class of its config.
          pooling: that was asked for, whatever the directory states.

        Raises:
          ConfigError: a pooling or a module that fmjax does not have, or a broken file.
        """
        kinds = [_kind(module) for module in _stated(directory / MODULES, [])]
        if unknown := [kind for kind in kinds if kind not in _KINDS]:
            raise ConfigError(
                f"{directory / MODULES}: {unknown[0]} is not supported, and without it the vectors "
                f"would be others; there are {', '.join(_KINDS)}"
            )
        prompts = _stated(directory / _PROMPTS, {})
        usual = (prompts.get("prompts") or {}).get(prompts.get("default_prompt_name"))
        return cls(
            pooling or _pooling(directory / POOLING, config),
            normalize="Normalize" in kinds or not kinds,
            max_length=_max_length(directory) if kinds else cls.max_length,
            prompt=usual or "",
        )


def write_sentence_model(directory: Path, width: int, pooling: str, max_length: int) -> None:
    """The files that make a model directory one of sentence-transformers.

    Prompts of the directory that it was tuned from go: it was trained without them.
    """
    (directory / _PROMPTS).unlink(missing_ok=True)
    modules = [
        {
            "idx": i,
            "name": str(i),
            "path": f"{i}_{kind}" if i else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for i, kind in enumerate(_KINDS)
    ]
    stated = {old: name == pooling for name, (old, _) in _MODES.items()}
    content: Mapping[str, Any] = {
        MODULES: modules,
        _LENGTH: {"max_seq_length": max_length, "do_lower_case": False},
        str(POOLING): {"word_embedding_dimension": width, **stated},
    }
    for name, value in content.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _max_length(directory: Path) -> int:
    """Of texts; newer files leave it to the tokenizer, where a huge number stands for none."""
    stated = _stated(directory / _LENGTH, {}).get("max_seq_length")
    own = _stated(directory / "tokenizer_config.json", {}).get("model_max_length")
    return next((int(n) for n in (stated, own) if n and n < 1e6), SentenceModel.max_length)


def _pooling(file: Path, config: type) -> str:
    if not file.is_file():
        return "last" if config.head == "causal-lm" else "mean"
    stated = _stated(file, {})
    found = [k for k, on in stated.items() if k.startswith("pooling_mode_") and on is True]
    if (mode := stated.get("pooling_mode")) is not None:
        found += [mode] if isinstance(mode, str) else list(mode)
    ours = [name for name, theirs in _MODES.items() if set(theirs) & set(found)]
    if len(ours) != 1 or len(found) != 1:
        raise ConfigError(
            f"{file} pools by {', '.join(found) or 'nothing'}; choose one with --pooling: "
            f"{', '.join(_MODES)}"
        )
    return ours[0]


def _kind(module: Mapping[str, Any]) -> str:
    """ "Pooling" of "sentence_transformers.models.Pooling" and of newer, longer names."""
    return str(module.get("type")).rsplit(".", 1)[-1]


def _stated(file: Path, missing: Any) -> Any:
    content = read_json(file) if file.is_file() else missing
    if not isinstance(content, type(missing)):
        raise ConfigError(f"{file} holds no {type(missing).__name__}; copy it again")
    return content
