"""The small files around a tokenizer: its configuration, special tokens and chat templates."""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmjax.core.errors import TokenizerError

PICKLE_SUFFIXES = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib")
SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token",
           "mask_token")  # fmt: skip

# Files that only name a class (or sit beside a config.json that names a model type) rely on the
# class's own defaults for their special tokens.
_ENDOFTEXT = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>",
              "unk_token": "<|endoftext|>"}  # fmt: skip
_LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
BERT = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]",
        "mask_token": "[MASK]"}  # fmt: skip
_ROBERTA = {**_LLAMA, "sep_token": "</s>", "pad_token": "<pad>", "cls_token": "<s>",
            "mask_token": "<mask>"}  # fmt: skip
_QWEN = {"eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
_GEMMA = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>",
          "mask_token": "<mask>"}  # fmt: skip
_CLIP = {**_ENDOFTEXT, "bos_token": "<|startoftext|>", "pad_token": "<|endoftext|>"}
SIGLIP = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
_DEFAULTS = {
    "gpt2": _ENDOFTEXT, "llama": _LLAMA, "bert": BERT, "roberta": _ROBERTA, "clip": _CLIP,
    "siglip": SIGLIP, "qwen2": _QWEN, "qwen3": _QWEN, "gemma": _GEMMA, "gemma2": _GEMMA,
}  # fmt: skip


def refuse_pickle(path: Path) -> None:
    """Raises TokenizerError if `path` is a pickle, by its name or by its first bytes."""
    with open(path, "rb") as f:
        head = f.read(2)
    if path.suffix in PICKLE_SUFFIXES or (head[:1] == b"\x80" and head[1:] in b"\2\3\4\5"):
        raise TokenizerError(
            f"{path} is a pickle, which can run code when loaded and is never read; use the "
            "tokenizer.json or tokenizer.model of this tokenizer"
        )


def read_json(path: Path) -> Any:
    """Parsed JSON, or TokenizerError naming the file and the line."""
    refuse_pickle(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as e:
        raise TokenizerError(f"{path} is not UTF-8 text ({e.reason}); copy the file again") from e
    except json.JSONDecodeError as e:
        raise TokenizerError(
            f"{path}, line {e.lineno}: not valid JSON ({e.msg}); copy the file again"
        ) from e


def _read_dict(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    data = read_json(path)
    if not isinstance(data, dict):
        raise TokenizerError(f"{path} holds a {type(data).__name__}, not a JSON object")
    return data


def family(directory: Path) -> str:
    """Tokenizer class in lower case without its suffix ("gpt2", "llama"), else the model type."""
    config = _read_dict(directory / "tokenizer_config.json")
    name = str(config.get("tokenizer_class") or "").lower()
    for suffix in ("fast", "tokenizer"):
        name = name.removesuffix(suffix)
    return name or str(_read_dict(directory / "config.json").get("model_type", ""))


def read_config(directory: Path) -> dict[str, Any]:
    """`tokenizer_config.json` completed from the files beside it.

    Special tokens are plain strings under their HF names; `chat_template` is a dict from name to
    template ("default" is the usual one) and is absent if there is none.
    """
    config = _read_dict(directory / "tokenizer_config.json")
    special = _read_dict(directory / "special_tokens_map.json")
    places = (config, special, _DEFAULTS.get(family(directory), {}))
    for name in SPECIAL:
        # Empty ones, as old conversions of LLaMA have them, are none.
        config[name] = next((t for p in places if (t := _content(p.get(name)))), None)
    if not config.get("additional_special_tokens") and special.get("additional_special_tokens"):
        config["additional_special_tokens"] = special["additional_special_tokens"]
    templates = _read_templates(directory, config.pop("chat_template", None))
    if templates:
        config["chat_template"] = templates
    return config


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def _read_templates(directory: Path, inline: Any) -> dict[str, str]:
    templates = {}
    if isinstance(inline, str):
        templates["default"] = inline
    elif isinstance(inline, list):
        try:
            templates |= {entry["name"]: entry["template"] for entry in inline}
        except (TypeError, KeyError) as e:
            raise TokenizerError(
                f"{directory / 'tokenizer_config.json'}: chat_template must be a string or a list "
                'of {"name", "template"}'
            ) from e
    elif inline is not None:
        raise TokenizerError(
            f"{directory / 'tokenizer_config.json'}: chat_template is a {type(inline).__name__}, "
            "not a string"
        )
    if (directory / "chat_template.jinja").is_file():
        templates["default"] = (directory / "chat_template.jinja").read_text(encoding="utf-8")
    for path in sorted((directory / "additional_chat_templates").glob("*.jinja")):
        templates[path.stem] = path.read_text(encoding="utf-8")
    return templates


def config_files(config: Mapping[str, Any]) -> dict[str, bytes]:
    """The inverse of `read_config`: file name → contents.

    The chat template goes both inline, where older readers look, and to `chat_template.jinja`.
    """
    config = dict(config)
    templates = config.pop("chat_template", {})
    files = {}
    if set(templates) == {"default"}:
        config["chat_template"] = templates["default"]
    elif templates:
        config["chat_template"] = [{"name": k, "template": v} for k, v in templates.items()]
    if "default" in templates:
        files["chat_template.jinja"] = templates["default"].encode()
    special = {name: config[name] for name in SPECIAL if config.get(name) is not None}
    if config.get("additional_special_tokens"):
        special["additional_special_tokens"] = config["additional_special_tokens"]
    config = {k: v for k, v in config.items() if k not in SPECIAL or v is not None}
    files["tokenizer_config.json"] = _dump(config)
    files["special_tokens_map.json"] = _dump(special)
    return files


def _dump(data: Any) -> bytes:
    return (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode()


def write_files(directory: str | Path, files: Mapping[str, bytes]) -> None:
    """Writes each file whole or not at all."""
    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            fd, temporary = tempfile.mkstemp(dir=directory, prefix=f".{name}.")
            try:
                with os.fdopen(fd, "wb") as f:
                    f.write(content)
                os.chmod(temporary, 0o644)
                os.replace(temporary, directory / name)
            except BaseException:
                os.unlink(temporary)
                raise
    except OSError as e:
        raise TokenizerError(
            f"cannot write the tokenizer to {directory}: {e.strerror}; choose another directory"
        ) from e
