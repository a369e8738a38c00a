"""Texts as tokens that know where they came from: for pairs, labelled words and answer spans.

A tokenizer encodes a whole text; cutting to a length happens here, by leaving tokens out of the
finished encoding. Special tokens do not depend on what they enclose, so this gives what the
tokenizers library gives when it truncates first, without switching its truncation on and off.
Ids, types and offsets equal those of transformers' fast tokenizers (tested).
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from fmjax.core.errors import DataError, TokenizerError


@dataclasses.dataclass(frozen=True)
class Encoding:
    """One row of tokens, special tokens included; all lists have one entry a token.

    Attributes:
      ids: token ids.
      type_ids: what BERT calls token types: 0, or 1 in the second text where the tokenizer says so.
      sequence_ids: 0 in the first text, 1 in the second, None for a special token.
      offsets: first character and one past the last, in the token's own text (for words given
        as such: in its own word); (0, 0) for a special token.
    """

    ids: list[int]
    type_ids: list[int]
    sequence_ids: list[int | None]
    offsets: list[tuple[int, int]]

    def __len__(self) -> int:
        return len(self.ids)


# An encoding, and the word number of each of its tokens (None where there are no words).
WordEncoding = tuple[Encoding, list[int | None]]


def encode(
    tokenizer: Any, text: str, pair: str | None = None, max_length: int | None = None
) -> Encoding:
    """One text, or a pair, with the special tokens that the tokenizer adds.

    Args:
      tokenizer: an HFTokenizer or a SentencePieceTokenizer.
      text: first text.
      pair: second text. SentencePiece tokenizers frame it as they do the first: `<s> A <s> B`.
      max_length: most tokens of the result. The longer text loses tokens first, at its end.

    Raises:
      TokenizerError: not strings, or a tokenizer without offsets.
      DataError: `max_length` has no room for a token beside the special ones.
    """
    return encode_batch(tokenizer, [text], None if pair is None else [pair], max_length)[0]


def encode_batch(
    tokenizer: Any,
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    max_length: int | None = None,
) -> list[Encoding]:
    """`encode` of each text (with the pair of the same number), in parallel where it can be.

    Raises:
      DataError: as `encode`, and for texts and pairs that are not equally many.
    """
    if pairs is not None and len(pairs) != len(texts):
        raise DataError(f"{len(texts)} texts but {len(pairs)} pairs; give one pair to each text")
    items = texts if pairs is None else list(zip(texts, pairs, strict=True))
    encoded = _method(tokenizer, "encode_with_offsets")(items)
    if max_length is None:
        return encoded
    return [_truncate(e, max_length) for e in encoded]


def encode_words(
    tokenizer: Any, words: Sequence[str], max_length: int | None = None
) -> WordEncoding:
    """A sentence given as words: tokens, and the number of the word that each belongs to.

    Every word becomes the tokens that it has after a space; where a tokenizer does not see to
    that itself (byte-level BPE such as RoBERTa's or GPT-2's), a space is put before each word,
    the first one too. That is transformers' `is_split_into_words=True` with
    `add_prefix_space=True`, an option that it has for byte-level BPE only; here LLaMA 3's and
    Gemma's tokenizers, which need the space as well, get it too. A word that the tokenizer drops,
    such as a control character, has no token.

    Returns:
      The encoding, whose offsets count characters within the word, and a word number for each of
      its tokens (None for special tokens).

    Raises:
      As `encode`.
    """
    return encode_words_batch(tokenizer, [words], max_length)[0]


def encode_words_batch(
    tokenizer: Any, sentences: Iterable[Sequence[str]], max_length: int | None = None
) -> list[WordEncoding]:
    """`encode_words` of each sentence, in parallel where it can be."""
    encoded = _method(tokenizer, "encode_words_with_offsets")(list(sentences))
    if max_length is None:
        return encoded
    return [cut_words(e, *_room(e[0], max_length)) for e in encoded]


def cut_words(encoded: WordEncoding, start: int, stop: int) -> WordEncoding:
    """Of the text's own tokens only number `start` to `stop` − 1, with all special tokens."""
    encoding, words = encoded
    kept = _kept(encoding, {0: (start, stop)})
    return _take(encoding, kept), [words[i] for i in kept]


def windows(
    tokenizer: Any, question: str, context: str, max_length: int, stride: int
) -> list[Encoding]:
    """A question with each of the overlapping windows that its context is cut into.

    As transformers' `truncation="only_second", return_overflowing_tokens=True`, but every window
    is treated as the first one is. There, in later windows, a byte-level tokenizer with
    `add_prefix_space` leaves a space in the offsets of the context's first token, and a template
    that names no types (LLaMA's) gives the context type 1.

    Args:
      max_length: most tokens of a window, the question and the special tokens included.
      stride: how many tokens of the context neighbouring windows share.

    Raises:
      DataError: the question leaves less room than `stride` + 1 tokens of the context need.
    """
    return windows_batch(tokenizer, [question], [context], max_length, stride)[0]


def windows_batch(
    tokenizer: Any,
    questions: Sequence[str],
    contexts: Sequence[str],
    max_length: int,
    stride: int,
    names: Sequence[str] | None = None,
) -> list[list[Encoding]]:
    """`windows` of each question; errors begin with the question's entry in `names`."""
    if stride < 0:
        raise DataError(f"stride={stride} must not be negative; neighbours share that many tokens")
    encoded = encode_batch(tokenizer, questions, contexts)
    out = []
    for number, encoding in enumerate(encoded):
        length = encoding.sequence_ids.count(1)
        taken = len(encoding) - length
        room = max_length - taken
        if room <= stride and room < length:
            name = "" if names is None else f"{names[number]}: "
            raise DataError(
                f"{name}the question and the special tokens take {taken} of max_length="
                f"{max_length} tokens, which leaves no window wider than stride={stride}; raise "
                "max_length, lower stride or shorten the question"
            )
        out.append(
            [
                _take(encoding, _kept(encoding, {1: span}))
                for span in window_spans(length, room, stride)
            ]
        )
    return out


def window_spans(length: int, room: int, stride: int) -> list[tuple[int, int]]:
    """(start, stop) of windows of at most `room` tokens that cover `length` tokens.

    Each but the first repeats the last `stride` < `room` tokens of the one before; the last may
    be shorter.
    """
    if length <= room:
        return [(0, length)]
    steps = -(-(length - room) // (room - stride))  # windows after the first
    starts = [i * (room - stride) for i in range(steps + 1)]
    return [(start, min(start + room, length)) for start in starts]


def _method(tokenizer: Any, name: str) -> Any:
    try:
        return getattr(tokenizer, name)
    except AttributeError as e:
        raise TokenizerError(
            f"a {type(tokenizer).__name__} does not tell where its tokens are in the text; use a "
            "tokenizer that load_tokenizer gives"
        ) from e


def _room(encoding: Encoding, max_length: int) -> tuple[int, int]:
    """(0, most tokens of a single text that `max_length` leaves)."""
    special = encoding.sequence_ids.count(None)
    if max_length <= special:
        raise DataError(
            f"max_length={max_length} has no room beside {special} special tokens; use "
            f"{special + 1} or more"
        )
    return 0, max_length - special


def _truncate(encoding: Encoding, max_length: int) -> Encoding:
    """The longer text shrinks to the length of the other; then both shrink alike."""
    _, room = _room(encoding, max_length)
    if len(encoding) <= max_length:
        return encoding
    first, second = encoding.sequence_ids.count(0), encoding.sequence_ids.count(1)
    short = min(first, second, room // 2)
    # The tokens that halving leaves over go to the text that is longer.
    lengths = (short, room - short) if first <= second else (room - short, short)
    return _take(encoding, _kept(encoding, {0: (0, lengths[0]), 1: (0, lengths[1])}))


def _kept(encoding: Encoding, spans: dict[int, tuple[int, int]]) -> list[int]:
    """Indices of the tokens whose number within their text lies in its span, if it has one."""
    seen = dict.fromkeys(spans, -1)
    kept = []
    for index, sequence in enumerate(encoding.sequence_ids):
        if sequence in spans:
            seen[sequence] += 1
            start, stop = spans[sequence]
            if not start <= seen[sequence] < stop:
                continue
        kept.append(index)
    return kept


def _take(encoding: Encoding, kept: Sequence[int]) -> Encoding:
    if len(kept) == len(encoding):
        return encoding
    rows = (encoding.ids, encoding.type_ids, encoding.sequence_ids, encoding.offsets)
    return Encoding(*([row[i] for i in kept] for row in rows))
