"""Tagged words as token features, and a model's logits as tags and entities again.

T = tokens of a feature, N = labels.
"""

import dataclasses
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fmjax.core.errors import DataError
from fmjax.data.encoding import cut_words, encode_words_batch, window_spans
from fmjax.data.tasks.collate import IGNORED
from fmjax.data.tasks.schemes import Entity, entities
from fmjax.data.tasks.tagging import Tagging


@dataclasses.dataclass(frozen=True)
class TaggingFeatures:
    """Windows of sentences, in the order of the sentences.

    Attributes:
      features: of each window `input_ids` and, where there are tags, `labels`; T integers each.
      sentences: the sentence that each window is part of.
      positions: of each window, the tokens whose prediction counts: first sub-words of words.
      words: of each window, the word that each of these tokens speaks for. Every word that has a
        token is in exactly one window.
      lengths: number of words of each sentence.
      counts: "sentences in several windows", "words without a token".
    """

    features: list[dict[str, list[int]]]
    sentences: list[int]
    positions: list[list[int]]
    words: list[list[int]]
    lengths: list[int]
    counts: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.features)


def tagging_features(
    data: Tagging | Sequence[Sequence[str]],
    tokenizer: Any,
    max_length: int,
    stride: int | None = None,
    label_all_subwords: bool = False,
) -> TaggingFeatures:
    """Features for training, or of bare words for prediction.

    A sentence longer than `max_length` becomes several windows, so that no word is lost to
    training or to evaluation. Where windows overlap, a word is labelled, and predicted, in the one
    that shows most of the sentence on both sides of it.

    Args:
      data: tagged sentences, or words alone; a sentence without words has no window.
      max_length: most tokens of a window, special tokens included.
      stride: tokens that neighbouring windows share; by default a quarter of a window.
      label_all_subwords: also labels the sub-words after a word's first, with I- where the word
        has B-. By default they have −100, as special tokens do.

    Raises:
      DataError: `max_length` has no room for `stride` + 1 tokens.
    """
    words = data.words if isinstance(data, Tagging) else data
    tags = data.tags if isinstance(data, Tagging) else None
    inside = _inside(data.names) if label_all_subwords and tags is not None else None
    out = TaggingFeatures([], [], [], [], [len(sentence) for sentence in words], {})
    counts = {"sentences in several windows": 0, "words without a token": 0}
    for i, (encoding, numbers) in enumerate(encode_words_batch(tokenizer, words)):
        if not words[i]:
            continue
        own = [number for number in numbers if number is not None]
        counts["words without a token"] += len(words[i]) - len(set(own))
        room = max_length - (len(encoding) - len(own))
        step = max(room // 4, 0) if stride is None else stride
        if room < 1 or not 0 <= step < room:
            raise DataError(
                f"max_length={max_length} leaves room for {max(room, 0)} tokens of a sentence; use "
                f"a longer max_length, or a stride from 0 to less than that (it is {step})"
            )
        spans = window_spans(len(own), room, step)
        counts["sentences in several windows"] += len(spans) > 1
        firsts = [t for t, number in enumerate(own) if t == 0 or own[t - 1] != number]
        home = _home(np.array(firsts, np.int64), spans)
        for window, (start, stop) in enumerate(spans):
            cut, cut_numbers = cut_words((encoding, numbers), start, stop)
            if not cut.ids:  # not even a special token
                continue
            tokens = [t for t, number in enumerate(cut_numbers) if number is not None]
            chosen = [t for t, at in zip(firsts, home, strict=True) if at == window]
            positions = [tokens[t - start] for t in chosen]
            feature = {"input_ids": cut.ids}
            if tags is not None:
                labels = {own[t]: tags[i][own[t]] for t in chosen}
                feature["labels"] = _labels(cut_numbers, positions, labels, inside)
            out.features.append(feature)
            out.sentences.append(i)
            out.positions.append(positions)
            out.words.append([own[t] for t in chosen])
    return dataclasses.replace(out, counts=counts)


def _labels(
    numbers: Sequence[int | None],
    positions: Sequence[int],
    labels: Mapping[int, int],
    inside: Mapping[int, int] | None,
) -> list[int]:
    """Labels of a window's tokens: those of `positions`; of later sub-words if `inside` is given.

    A word whose first sub-word is labelled in another window has none here.
    """
    out = [IGNORED] * len(numbers)
    for position in positions:
        label = out[position] = labels[numbers[position]]
        rest = position + 1
        while inside is not None and rest < len(out) and numbers[rest] == numbers[position]:
            out[rest] = inside.get(label, label)
            rest += 1
    return out


def _inside(names: Sequence[str]) -> dict[int, int]:
    """Number of I-X for that of B-X."""
    number = {name: i for i, name in enumerate(names)}
    return {
        i: number["I" + name[1:]]
        for name, i in number.items()
        if name.startswith("B-") and "I" + name[1:] in number
    }


def _home(firsts: np.ndarray, spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """The window in which each of these tokens has most context on its poorer side."""
    start, stop = np.array(spans).T[:, :, None]  # [windows, 1]
    left, right = firsts - start, stop - 1 - firsts  # [windows, tokens], negative outside
    return np.minimum(left, right).argmax(0)


@dataclasses.dataclass(frozen=True)
class WordTags:
    """Of each sentence, the label of every word (an index) and its probability."""

    tags: list[list[int]]
    scores: list[list[float]]


def word_tags(
    features: TaggingFeatures, logits: Sequence[np.ndarray], outside: int = 0
) -> WordTags:
    """The best label of every word.

    Args:
      features: as `tagging_features` made them.
      logits: of each window f[≥ T, N]; rows after its tokens are not read.
      outside: the label, with probability 1, of a word that has no token: "O".

    Raises:
      DataError: logits for more or fewer windows, or too few tokens.
    """
    if len(logits) != len(features):
        raise DataError(f"logits of {len(logits)} windows for {len(features)}; predict each once")
    tags = [[outside] * length for length in features.lengths]
    scores = [[1.0] * length for length in features.lengths]
    for i, (sentence, positions, words) in enumerate(
        zip(features.sentences, features.positions, features.words, strict=True)
    ):
        if len(logits[i]) < len(features.features[i]["input_ids"]):
            raise DataError(
                f"window {i} has {len(features.features[i]['input_ids'])} tokens but logits of "
                f"{len(logits[i])}; pass the logits of all its tokens"
            )
        rows = np.asarray(logits[i], np.float64)[positions]  # [words, N]
        rows = np.exp(rows - rows.max(-1, keepdims=True))
        rows /= rows.sum(-1, keepdims=True)
        for word, best, score in zip(words, rows.argmax(-1), rows.max(-1), strict=True):
            tags[sentence][word] = int(best)
            scores[sentence][word] = float(score)
    return WordTags(tags, scores)


def split_words(text: str) -> tuple[list[str], list[tuple[int, int]]]:
    """Words of raw text and their characters (first, one past the last).

    Splits at white space, and takes punctuation and symbols off both ends of what is between, one
    character each; "don't", "U.S.A" and "3.14" stay whole. Scripts without spaces need a word
    splitter of their own.
    """
    spans: list[tuple[int, int]] = []
    start = 0
    while start < len(text):
        if text[start].isspace():
            start += 1
            continue
        stop = start
        while stop < len(text) and not text[stop].isspace():
            stop += 1
        first, last = start, stop
        while first < last and _is_mark(text[first]):
            first += 1
        while last > first and _is_mark(text[last - 1]):
            last -= 1
        spans += [(i, i + 1) for i in range(start, first)]
        spans += [(first, last)] * (first < last)
        spans += [(i, i + 1) for i in range(last, stop)]
        start = stop
    return [text[a:b] for a, b in spans], spans


def _is_mark(char: str) -> bool:
    return unicodedata.category(char)[0] in "PS"


def entity_spans(
    text: str,
    offsets: Sequence[tuple[int, int]],
    tags: Sequence[str],
    scores: Sequence[float],
    scheme: str = "BIO",
) -> list[dict[str, Any]]:
    """Entities of one text with the characters they cover.

    Args:
      text: the raw text.
      offsets: characters of each word, as `split_words` gives them.
      tags: tag of each word.
      scores: probability of each tag.
      scheme: see `entities`.

    Returns:
      For each entity `label`, `text`, `start` and `end` (`text[start:end]`) and `score`, the mean
      over its words.
    """

    def span(entity: Entity) -> dict[str, Any]:
        start, end = offsets[entity.first][0], offsets[entity.stop - 1][1]
        score = float(np.mean(scores[entity.first : entity.stop]))
        return {"label": entity.type, "text": text[start:end], "start": start, "end": end,
                "score": score}  # fmt: skip

    return [span(entity) for entity in entities(tags, scheme)]
