"""What the tokenizers share: special tokens by name, chat templates, saving."""

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fmjax.core.errors import TokenizerError
from fmjax.data import chat, tokenizer_files


class TokenizerBase:
    """Subclasses give `encode`, `decode`, `token_to_id`, `id_to_token` and `_files`.

    `config` is `tokenizer_config.json` as `tokenizer_files.read_config` completes it; it is what
    `save` writes back.
    """

    def __init__(self, config: Mapping[str, Any]):
        self.config = dict(config)

    def token_to_id(self, token: str) -> int | None:
        raise TypeError(f"{type(self).__name__} must define token_to_id")

    def id_to_token(self, i: int) -> str | None:
        """The token as the vocabulary writes it ("##ing", "▁go"); None where there is no id i."""
        raise TypeError(f"{type(self).__name__} must define id_to_token")

    def _files(self) -> dict[str, bytes]:
        raise TypeError(f"{type(self).__name__} must define _files")

    def _special_id(self, name: str) -> int | None:
        token = self.config.get(name)
        return None if token is None else self.token_to_id(token)

    @property
    def bos_token(self) -> str | None:
        return self.config.get("bos_token")

    @property
    def eos_token(self) -> str | None:
        return self.config.get("eos_token")

    @property
    def pad_token(self) -> str | None:
        return self.config.get("pad_token")

    @property
    def bos_token_id(self) -> int | None:
        return self._special_id("bos_token")

    @property
    def eos_token_id(self) -> int | None:
        return self._special_id("eos_token")

    @property
    def pad_token_id(self) -> int | None:
        return self._special_id("pad_token")

    @property
    def unk_token_id(self) -> int | None:
        return self._special_id("unk_token")

    @property
    def cls_token_id(self) -> int | None:
        return self._special_id("cls_token")

    @property
    def sep_token_id(self) -> int | None:
        return self._special_id("sep_token")

    @property
    def mask_token_id(self) -> int | None:
        return self._special_id("mask_token")

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Ids of all special tokens that have a name or are listed as additional, ascending."""
        tokens = [self.config.get(name) for name in tokenizer_files.SPECIAL]
        tokens += self.config.get("additional_special_tokens") or []
        ids = {self.token_to_id(_content(token)) for token in tokens if token is not None}
        return tuple(sorted(ids - {None}))

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tokenize: bool = True,
        add_generation_prompt: bool = False,
        chat_template: str | None = None,
        **variables: Any,
    ) -> list[int] | str:
        """A conversation as ids, or as text with `tokenize=False`.

        Args:
          messages: `{"role", "content", …}` in order.
          add_generation_prompt: ends with the header of the assistant's next turn.
          chat_template: Jinja source, or the name of one of the tokenizer's templates; default
            "tool_use" where the tokenizer has one and `tools` are given, else "default".
          **variables: passed to the template (`tools`, `documents`, …).

        Raises:
          TokenizerError: there is no template, or it refuses the messages.
        """
        template, variables = self._chat(chat_template, variables)
        text = chat.render(
            template, messages, add_generation_prompt=add_generation_prompt, **variables
        )
        # The template writes the special tokens itself.
        return self.encode(text, add_special_tokens=False) if tokenize else text

    def chat_answers(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        chat_template: str | None = None,
        **variables: Any,
    ) -> tuple[str, list[chat.Span]]:
        """A conversation as text, and where the assistant's answers are; see `chat.answers`."""
        template, variables = self._chat(chat_template, variables)
        return chat.answers(template, messages, **variables)

    def _chat(self, name: str | None, variables: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """The template's source, and the variables with the special tokens."""
        templates = self.config.get("chat_template", {})
        if name is None:
            name = "tool_use" if variables.get("tools") else "default"
            if name not in templates:
                name = "default"
            if name not in templates:
                raise TokenizerError(
                    "this tokenizer has no chat template (neither chat_template.jinja nor "
                    "chat_template in tokenizer_config.json); pass chat_template=, or prompt with "
                    "plain text"
                )
        special = {k: self.config[k] for k in tokenizer_files.SPECIAL if self.config.get(k)}
        return templates.get(name, name), {**special, **variables}

    def save(self, directory: str | Path) -> None:
        """Writes the tokenizer's files to `directory`, for fmjax and for transformers.

        Raises:
          TokenizerError: the directory cannot be written.
        """
        tokenizer_files.write_files(
            directory, {**self._files(), **tokenizer_files.config_files(self.config)}
        )


def _content(token: str | Mapping[str, Any]) -> str:
    """Of a token that may be written out with its options."""
    return token if isinstance(token, str) else token["content"]


def check_text(text: Any) -> None:
    """Raises TokenizerError if `text` is not a string."""
    if not isinstance(text, str):
        raise TokenizerError(f"cannot tokenize a {type(text).__name__}; give a string")


def vocabulary_checksum(tokenizer: Any) -> int:
    """Of the tokens by number: under another tokenizer the ids of a run's data mean other words."""
    tokens = (str(tokenizer.id_to_token(i)) for i in range(tokenizer.vocab_size))
    return zlib.crc32("\n".join(tokens).encode(errors="surrogatepass"))


def check_words(words: Any) -> list[str]:
    """The words as a list; raises TokenizerError if they are anything but strings."""
    if isinstance(words, str):
        raise TokenizerError("cannot take a string for a list of words; split it first")
    words = list(words)
    for word in words:
        check_text(word)
    return words
