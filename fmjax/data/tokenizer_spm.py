"""SentencePiece tokenizers, as LLaMA and Mistral use them."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fmjax.core.errors import TokenizerError
from fmjax.data import tokenizer_files
from fmjax.data.encoding import Encoding, WordEncoding
from fmjax.data.tokenizer_base import TokenizerBase, check_text, check_words

_SPACE = "\u2581"  # SentencePiece writes a space as ▁


class SentencePieceTokenizer(TokenizerBase):
    """A `tokenizer.model` file, run by the SentencePiece library itself.

    Special tokens written out in the text (`<s>`, chat markers) become their own ids; each stretch
    between them is encoded alone. Saving a byte-fallback BPE model also writes an exactly
    equivalent `tokenizer.json`; other models are saved as `tokenizer.model` only.

    Args:
      model: contents of `tokenizer.model`.
      config: `tokenizer_config.json`; `add_bos_token` defaults to True where the model has a BOS
        piece, `add_eos_token` to False.
      added: tokens beyond the model's own pieces, to their ids.

    Raises:
      TokenizerError: the bytes are no SentencePiece model.
    """

    def __init__(
        self,
        model: bytes,
        config: Mapping[str, Any] | None = None,
        added: Mapping[str, int] | None = None,
    ):
        import sentencepiece

        config = {k: v for k, v in (config or {}).items() if v is not None}
        self._model = model
        try:
            self._sp = sp = sentencepiece.SentencePieceProcessor()
            sp.LoadFromSerializedProto(model)
        except RuntimeError as e:
            raise TokenizerError(
                "tokenizer.model is not a SentencePiece model; copy the file again"
            ) from e
        pieces = {"bos_token": sp.bos_id(), "eos_token": sp.eos_id(), "unk_token": sp.unk_id(),
                  "pad_token": sp.pad_id()}  # fmt: skip
        special = {name: sp.id_to_piece(i) for name, i in pieces.items() if i >= 0}
        super().__init__({"add_bos_token": sp.bos_id() >= 0, "add_eos_token": False}
                         | special | config)  # fmt: skip
        ids = range(sp.get_piece_size())
        self._special = {
            sp.id_to_piece(i): i for i in ids if sp.is_control(i) or sp.is_unknown(i)
        } | dict(added or {})
        self._text = {i: token for token, i in self._special.items()}
        longest_first = sorted(self._special, key=len, reverse=True)
        self._split = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._added_size = 1 + max((added or {}).values(), default=-1)
        # A model trained without the dummy prefix keeps its leading spaces.
        self._dummy_prefix = sp.encode("a", out_type=str)[0].startswith(_SPACE)

    @classmethod
    def load(cls, directory: str | Path) -> "SentencePieceTokenizer":
        """From `tokenizer.model` and, where present, the JSON files beside it.

        Raises:
          TokenizerError: a file is missing, corrupt or a pickle.
        """
        directory = Path(directory)
        path = directory / "tokenizer.model"
        if not path.is_file():
            raise TokenizerError(f"{path}: no such file; give a directory with tokenizer.model")
        tokenizer_files.refuse_pickle(path)
        config = tokenizer_files.read_config(directory)
        added = {
            token["content"]: int(i)
            for i, token in (config.get("added_tokens_decoder") or {}).items()
        }
        if (directory / "added_tokens.json").is_file():
            added |= tokenizer_files.read_json(directory / "added_tokens.json")
        try:
            return cls(path.read_bytes(), config, added)
        except TokenizerError as e:
            raise TokenizerError(f"{path}: {e}") from e

    @property
    def vocab_size(self) -> int:
        """One more than the largest id, added tokens included."""
        return max(self._sp.get_piece_size(), self._added_size)

    def token_to_id(self, token: str) -> int | None:
        if token in self._special:
            return self._special[token]
        i = self._sp.piece_to_id(token)
        return None if self._sp.is_unknown(i) else i

    def id_to_token(self, i: int) -> str | None:
        if i in self._text:
            return self._text[i]
        return self._sp.id_to_piece(i) if 0 <= i < self._sp.get_piece_size() else None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Ids of `text`; special tokens written out in `text` become their own ids."""
        check_text(text)
        ids, start = [], 0
        for match in self._split.finditer(text):
            ids += self._sp.encode(text[start : match.start()])
            ids.append(self._special[match.group()])
            start = match.end()
        ids += self._sp.encode(text[start:])
        if not add_special_tokens:
            return ids
        bos = [self.bos_token_id] if self.config["add_bos_token"] else []
        eos = [self.eos_token_id] if self.config["add_eos_token"] else []
        return bos + ids + eos

    def encode_with_offsets(self, texts: Sequence[str | tuple[str, str]]) -> list[Encoding]:
        """Encodings of texts or of pairs, whole and with special tokens; all of type 0."""
        out = []
        for text in texts:
            parts = text if isinstance(text, tuple) else (text,)
            out.append(self._frame([self._tokens(part) for part in parts]))
        return out

    def encode_words_with_offsets(self, sentences: Sequence[Sequence[str]]) -> list[WordEncoding]:
        """Encodings of sentences given as words, and the word number of each token."""
        space = "" if self._dummy_prefix else " "
        bare = (" ", *self._special)
        out = []
        for words in map(check_words, sentences):
            tokens, numbers = [], []
            for number, word in enumerate(words):
                added = space if word and not word.startswith(bare) else ""
                shift = len(added)
                for i, (start, stop) in self._tokens(added + word):
                    # The added space counts as part of the word's first character.
                    tokens.append((i, (max(start - shift, 0), max(stop - shift, shift))))
                    numbers.append(number)
            encoding = self._frame([tokens])
            own = iter(numbers)
            out.append(
                (encoding, [None if s is None else next(own) for s in encoding.sequence_ids])
            )
        return out

    def _frame(self, texts: Sequence[list[tuple[int, tuple[int, int]]]]) -> Encoding:
        """Each text between BOS and EOS, where those are added."""
        rows: list[tuple[int, int | None, tuple[int, int]]] = []
        for number, tokens in enumerate(texts):
            if self.config["add_bos_token"]:
                rows.append((self.bos_token_id, None, (0, 0)))
            rows += [(i, number, span) for i, span in tokens]
            if self.config["add_eos_token"]:
                rows.append((self.eos_token_id, None, (0, 0)))
        ids, sequences, spans = (list(column) for column in zip(*rows, strict=True)) if rows else (
            [], [], []
        )  # fmt: skip
        return Encoding(ids, [0] * len(ids), sequences, spans)

    def _tokens(self, text: str) -> list[tuple[int, tuple[int, int]]]:
        """Id and characters of each token."""
        check_text(text)
        tokens, start = [], 0
        for match in self._split.finditer(text):
            tokens += self._stretch(text, start, match.start())
            tokens.append((self._special[match.group()], match.span()))
            start = match.end()
        return tokens + self._stretch(text, start, len(text))

    def _stretch(self, text: str, start: int, stop: int) -> list[tuple[int, tuple[int, int]]]:
        from sentencepiece import sentencepiece_pb2

        part = text[start:stop]
        encoded = self._sp.encode(part, out_type="serialized_proto")
        # SentencePiece counts bytes.
        char = [i for i, c in enumerate(part, start) for _ in range(len(c.encode()))] + [stop]
        tokens = []
        for piece in sentencepiece_pb2.SentencePieceText.FromString(encoded).pieces:
            first, last = char[piece.begin], char[piece.end]
            if first == last:  # all but the last byte of a character; a lone dummy prefix
                last = min(first + 1, stop)
            tokens.append((piece.id, (first, last)))
        return tokens

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of `ids`; a run of byte pieces that is not UTF-8 becomes one U+FFFD a byte."""
        out: list[str] = []
        run = bytearray()

        def flush() -> None:
            try:
                out.append(run.decode("utf-8"))
            except UnicodeDecodeError:
                out.append("\ufffd" * len(run))
            run.clear()

        for i in map(int, ids):
            if i not in self._text and not 0 <= i < self._sp.get_piece_size():
                raise TokenizerError(
                    f"cannot decode id {i}: the tokenizer has {self.vocab_size} ids"
                )
            if i in self._text:
                if not skip_special_tokens:
                    flush()
                    out.append(self._text[i])
            elif self._sp.is_byte(i):
                run.append(int(self._sp.id_to_piece(i)[3:5], 16))  # "<0x0A>"
            else:
                flush()
                out.append(self._sp.id_to_piece(i).replace(_SPACE, " "))
        flush()
        text = "".join(out)
        return text.removeprefix(" ") if self._dummy_prefix else text

    def _files(self) -> dict[str, bytes]:
        from fmjax.data.spm_export import tokenizer_json

        files = {"tokenizer.model": self._model}
        exported = tokenizer_json(self._model, self.config, self._special)
        if exported is not None:
            files["tokenizer.json"] = exported
        return files
