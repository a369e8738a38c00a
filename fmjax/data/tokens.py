"""A corpus tokenised once and held as two arrays."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from fmjax.core.errors import DataError, TokenizerError
from fmjax.data.sources import Source, text_of
from fmjax.data.tokenizer import Tokenizer, encode_batch

_CHUNK = 1024  # documents handed to the tokenizer at a time
_COUNTED = 2**24  # tokens counted at a time


@dataclasses.dataclass(frozen=True)
class Marks:
    """The ids put around each document, and the one that fills rows."""

    bos: tuple[int, ...]
    eos: tuple[int, ...]
    pad: int

    @classmethod
    def of(cls, tokenizer: Tokenizer, add_bos: bool = True, add_eos: bool = True) -> "Marks":
        """BOS is left out where the tokenizer has none or uses one token for both (GPT-2).

        An encoder's tokenizer that has neither (BERT's) marks documents with [CLS] and [SEP].

        Raises:
          TokenizerError: EOS is wanted and the tokenizer has none.
        """
        bos, eos, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
        if bos is None and eos is None:
            bos = getattr(tokenizer, "cls_token_id", None)
            eos = getattr(tokenizer, "sep_token_id", None)
        if add_eos and eos is None:
            raise TokenizerError(
                "the tokenizer has no EOS token to end documents with; set eos_token in "
                "tokenizer_config.json, or pass add_eos=False"
            )
        use_bos = add_bos and bos is not None and not (add_eos and bos == eos)
        # Padding is masked out by its segment id 0, so that any id would do.
        return cls((bos,) * use_bos, (eos,) * add_eos, 0 if pad is None else pad)


@dataclasses.dataclass(frozen=True)
class TokenizedDocuments:
    """Documents end to end: document i is `tokens[offsets[i]:offsets[i + 1]]`, never empty.

    Attributes:
      tokens: uint16 or uint32 [N], with the marks.
      offsets: int64 [documents + 1].
      pad_id: the id that fills rows.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    pad_id: int = 0

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> np.ndarray:
        return self.tokens[self.offsets[i] : self.offsets[i + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each document, int64 [documents]."""
        return np.diff(self.offsets)

    def counts(self, vocab_size: int) -> np.ndarray:
        """How often each id occurs, i64[V]."""
        # In parts, as bincount makes every token eight bytes wide.
        parts = range(0, len(self.tokens), _COUNTED)
        return sum(np.bincount(self.tokens[i : i + _COUNTED], None, vocab_size) for i in parts)


def tokenize(
    sources: Source | Sequence[Source],
    tokenizer: Tokenizer,
    *,
    add_bos: bool = True,
    add_eos: bool = True,
    text_field: str = "text",
) -> TokenizedDocuments:
    """Tokenises sources, one after the other, leaving out empty texts.

    Args:
      sources: a source, or a list of them; an example is a string or a dict with `text_field`.

    Raises:
      DataError: nothing but empty texts, or an example without the field.
      TokenizerError: EOS is wanted and the tokenizer has none.
    """
    marks = Marks.of(tokenizer, add_bos, add_eos)
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    pieces, lengths = [], []
    for source in as_sources(sources):
        for start in range(0, len(source), _CHUNK):
            indices = range(start, min(start + _CHUNK, len(source)))
            texts = [text_of(source[i], text_field, i) for i in indices]
            texts = [text for text in texts if text]
            for ids in encode_batch(tokenizer, texts, add_special_tokens=False):
                pieces.append(np.array([*marks.bos, *ids, *marks.eos], dtype))
                lengths.append(len(pieces[-1]))
    if not sum(lengths):
        raise DataError("an empty corpus: no document has any text; check the source")
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    return TokenizedDocuments(np.concatenate(pieces), offsets, marks.pad)


def as_sources(sources: Source | Sequence[Source]) -> list[Source]:
    """A list of sources; a list of texts or of examples is a single source.

    Raises:
      DataError: not a source, or a list of none.
    """
    if isinstance(sources, (str, bytes)) or not hasattr(sources, "__getitem__"):
        raise DataError(
            f"a {type(sources).__name__} is no source; give a TextSource(path), a list of texts, "
            "or another object with len() and source[i]"
        )
    if len(sources) == 0:
        raise DataError("an empty corpus: the source has no examples; check the source")
    if not isinstance(sources, (list, tuple)) or isinstance(sources[0], (str, dict)):
        return [sources]
    for i, source in enumerate(sources):
        if isinstance(source, (str, dict)) or not hasattr(source, "__getitem__"):
            raise DataError(
                f"source {i} of {len(sources)} is a {type(source).__name__}; give objects with "
                "len() and source[i], such as a TextSource or a list of texts"
            )
    return list(sources)
