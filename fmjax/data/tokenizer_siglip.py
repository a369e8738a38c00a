"""SigLIP's tokenizer: SentencePiece on text without capitals and punctuation."""

import re
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fmjax.core.errors import TokenizerError
from fmjax.data import tokenizer_files
from fmjax.data.encoding import Encoding
from fmjax.data.tokenizer_base import TokenizerBase, check_text

_SPACE = "\u2581"  # SentencePiece writes a space as ▁
_FILE = "spiece.model"


class SiglipTokenizer(TokenizerBase):
    """A `spiece.model` file, run by the SentencePiece library itself; ids as in transformers.

    Text is brought to lower case, ASCII punctuation is taken out, and what is left is encoded; EOS
    follows. Models are trained on rows that are padded to one length (64) with `pad_token_id`, and
    attend to the padding.

    Args:
      model: contents of `spiece.model`.
      config: `tokenizer_config.json`; `do_lower_case` defaults to True.

    Raises:
      TokenizerError: the bytes are no SentencePiece model, or lack the special tokens.
    """

    def __init__(self, model: bytes, config: Mapping[str, Any] | None = None):
        import sentencepiece

        given = {k: v for k, v in (config or {}).items() if v is not None}
        super().__init__(
            {
                "tokenizer_class": "SiglipTokenizer",
                "do_lower_case": True,
                "model_max_length": 64,
                **tokenizer_files.SIGLIP,
            }
            | given
        )
        self._model = model
        try:
            self._sp = sentencepiece.SentencePieceProcessor()
            self._sp.LoadFromSerializedProto(model)
        except RuntimeError as e:
            raise TokenizerError(
                f"{_FILE} is not a SentencePiece model; copy the file again"
            ) from e
        names = ("eos_token", "unk_token", "pad_token")
        self._special = {
            token: self._sp.piece_to_id(token) for token in map(self.config.get, names)
        }
        for token, i in self._special.items():
            if self._sp.id_to_piece(i) != token:
                raise TokenizerError(
                    f"{_FILE} has no piece {token!r}, which tokenizer_config.json names; copy both "
                    "files of one tokenizer"
                )
        longest_first = sorted(self._special, key=len, reverse=True)
        self._split = re.compile("|".join(map(re.escape, longest_first)))
        # Stretches are encoded behind the text "<unk>", so that none gets a space put before it.
        self._before = self.config["unk_token"]
        self._skip = len(self._sp.encode(self._before))

    @classmethod
    def load(cls, directory: str | Path) -> "SiglipTokenizer":
        """From `spiece.model` and, where present, the JSON files beside it.

        Raises:
          TokenizerError: a file is missing, corrupt or a pickle.
        """
        path = Path(directory) / _FILE
        if not path.is_file():
            raise TokenizerError(f"{path}: no such file; give a directory with {_FILE}")
        tokenizer_files.refuse_pickle(path)
        try:
            return cls(path.read_bytes(), tokenizer_files.read_config(path.parent))
        except TokenizerError as e:
            raise TokenizerError(f"{path}: {e}") from e

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return self._sp.get_piece_size()

    def token_to_id(self, token: str) -> int | None:
        i = self._sp.piece_to_id(token)
        return i if self._sp.id_to_piece(i) == token else None

    def id_to_token(self, i: int) -> str | None:
        return self._sp.id_to_piece(i) if 0 <= i < self.vocab_size else None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Ids of `text`; special tokens written out in `text` become their own ids."""
        ids = [i for i, _ in self._tokens(text)]
        return self._with_eos(ids) if add_special_tokens else ids

    def encode_with_offsets(self, texts: Sequence[str | tuple[str, str]]) -> list[Encoding]:
        """Encodings of texts or of pairs, whole and with special tokens; all of type 0."""
        out = []
        for text in texts:
            ids: list[int] = []
            sequences: list[int | None] = []
            offsets: list[tuple[int, int]] = []
            for number, part in enumerate(text if isinstance(text, tuple) else (text,)):
                tokens = self._tokens(part)
                own = [i for i, _ in tokens]
                added = len(self._with_eos(own)) - len(own)
                ids += self._with_eos(own)
                sequences += [number] * len(own) + [None] * added
                offsets += [span for _, span in tokens] + [(0, 0)] * added
            out.append(Encoding(ids, [0] * len(ids), sequences, offsets))
        return out

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of `ids`, without the capitals and the punctuation that it may have had."""
        special = set(self._special.values())
        out, run, after_special = "", [], False
        for i in map(int, ids):
            if not 0 <= i < self.vocab_size:
                raise TokenizerError(
                    f"cannot decode id {i}: the tokenizer has {self.vocab_size} ids"
                )
            if i not in special:
                run.append(i)
                after_special = False
            elif not skip_special_tokens:
                out += ("" if after_special else " ") + self._sp.decode(run)
                out += self._sp.id_to_piece(i)
                run, after_special = [], True
        return (out + self._sp.decode(run)).strip()

    def _with_eos(self, ids: list[int]) -> list[int]:
        """EOS behind them, unless the text itself ends with it."""
        eos = self.eos_token_id
        return ids if ids[-1:] == [eos] else [*ids, eos]

    def _tokens(self, text: str) -> list[tuple[int, tuple[int, int]]]:
        """Id and characters of each token."""
        check_text(text)
        # A text begins with a space, whatever it begins with. What it calls ▁ is a space, too.
        tokens = []
        text = text.replace(_SPACE, " ")
        start = 0
        for match in [*self._split.finditer(text), None]:
            stop = len(text) if match is None else match.start()
            tokens += self._stretch(text, start, stop, _SPACE if start == 0 else "")
            if match is not None:
                tokens.append((self._special[match.group()], match.span()))
                start = match.end()
        alone = self._sp.piece_to_id(_SPACE)
        if len(tokens) > 1 and tokens[0][0] == alone and tokens[1][0] in self._special.values():
            tokens = tokens[1:]
        return tokens

    def _stretch(
        self, text: str, start: int, stop: int, first: str
    ) -> list[tuple[int, tuple[int, int]]]:
        from sentencepiece import sentencepiece_pb2

        if start == stop and not first:
            return []
        chars, places = self._canonical(text, start, stop, first)
        encoded = self._sp.encode(self._before + chars, out_type="serialized_proto")
        pieces = sentencepiece_pb2.SentencePieceText.FromString(encoded).pieces
        # SentencePiece counts bytes; what stands before the stretch has places of its own.
        place = [start] * len(self._before.encode())
        place += [p for c, p in zip(chars, places, strict=True) for _ in range(len(c.encode()))]
        tokens = []
        for piece in list(pieces)[self._skip :]:
            covered = [p for p in place[piece.begin : piece.end] if p >= 0]
            span = (covered[0], covered[-1] + 1) if covered else (start, start)
            tokens.append((piece.id, span))
        return tokens

    def _canonical(self, text: str, start: int, stop: int, first: str) -> tuple[str, list[int]]:
        """What is encoded of a stretch, and where in the text each character stands (or −1)."""
        chars, places = list(first), [-1] * len(first)
        part = text[start:stop]
        if self.config["do_lower_case"]:
            # Whole, as a sigma at the end of a word has a form of its own.
            lowered = part.lower()
            places += [i for i, c in enumerate(part, start) for _ in range(len(c.lower()))]
        else:
            lowered = part
            places += range(start, stop)
        chars += lowered
        kept: list[tuple[str, int]] = []
        for c, place in zip(chars, places, strict=True):
            if c in string.punctuation:
                continue
            c = " " if c.isspace() else c
            if c != " " or (kept and kept[-1][0] != " "):
                kept.append((c, place))
        if kept and kept[-1][0] == " ":
            kept.pop()
        return "".join(c for c, _ in kept), [place for _, place in kept]

    def _files(self) -> dict[str, bytes]:
        return {_FILE: self._model}
