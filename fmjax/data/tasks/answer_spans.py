"""Windows over contexts with the tokens of the answer, and the best answers out of logits.

The recipe of BERT (Devlin et al. 2018, section 4.2 and 4.3) and of transformers' run_qa example.
T = tokens of a window, n = tokens of the context in it, L = longest answer in tokens.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fmjax.core.errors import DataError
from fmjax.data.encoding import Encoding, windows_batch
from fmjax.data.tasks.questions import Questions

_CHUNK = 1024  # questions handed to the tokenizer at a time


@dataclasses.dataclass(frozen=True)
class QuestionFeatures:
    """Windows of questions, in the order of the questions.

    Attributes:
      features: of each window `input_ids` i32[T], `token_type_ids` i32[T] where the tokenizer tells
        the question from the context by them, and `start_positions`, `end_positions` where asked
        for: the answer's first and last token, or 0 and 0 if it is not whole in this window.
      questions: the question that each window is of.
      contexts: of each window, the number of the context's first token there.
      offsets: of each window i32[n, 2]: characters (first, one past the last) of these tokens.
      counts: "windows", "windows with an answer", and "answers whole in no window".
    """

    features: list[dict[str, Any]]
    questions: list[int]
    contexts: list[int]
    offsets: list[np.ndarray]
    counts: dict[str, int]

    def __len__(self) -> int:
        return len(self.features)


def question_features(
    questions: Questions,
    tokenizer: Any,
    max_length: int = 384,
    stride: int = 128,
    *,
    with_answers: bool = True,
    token_types: bool = True,
) -> QuestionFeatures:
    """Cuts long contexts into overlapping windows, each with its question before it.

    The first of several accepted answers is the one to learn. White space before a question is
    taken off.

    Args:
      max_length: most tokens of a window, question and special tokens included.
      stride: tokens of the context that neighbouring windows share.
      with_answers: False leaves the positions out, for prediction.
      token_types: False for a model without token types, whatever its tokenizer says.

    Raises:
      DataError: a question that leaves no room for its context; names its place.
    """
    counts = {"windows": 0, "windows with an answer": 0, "answers whole in no window": 0}
    out = QuestionFeatures([], [], [], [], counts)
    typed = False
    for number, window_list in enumerate(_windows(questions, tokenizer, max_length, stride)):
        answers = questions.answers[number] if with_answers else []
        found = 0
        for window in window_list:
            first, offsets = _context(window)
            feature: dict[str, Any] = {
                "input_ids": np.array(window.ids, np.int32),
                "token_type_ids": np.array(window.type_ids, np.int32),
            }
            typed = typed or any(window.type_ids)
            if with_answers:
                span = answer_tokens(offsets, *answers[0]) if answers else None
                found += span is not None
                start, end = (0, 0) if span is None else (first + span[0], first + span[1])
                feature |= {"start_positions": start, "end_positions": end}
            out.features.append(feature)
            out.questions.append(number)
            out.contexts.append(first)
            out.offsets.append(offsets)
        counts["windows"] += len(window_list)
        counts["windows with an answer"] += found
        counts["answers whole in no window"] += bool(answers) and not found
    if not (typed and token_types):
        for feature in out.features:
            del feature["token_type_ids"]
    return out


def _windows(
    questions: Questions, tokenizer: Any, max_length: int, stride: int
) -> Iterator[list[Encoding]]:
    """Windows of each question; encodings take far more memory than what is kept of them."""
    for start in range(0, len(questions), _CHUNK):
        part = slice(start, start + _CHUNK)
        texts = [question.lstrip() for question in questions.questions[part]]
        contexts, names = questions.contexts[part], questions.places[part]
        yield from windows_batch(tokenizer, texts, contexts, max_length, stride, names)


def _context(window: Encoding) -> tuple[int, np.ndarray]:
    """Number of the context's first token, and the characters of its tokens."""
    own = [i for i, sequence in enumerate(window.sequence_ids) if sequence == 1]
    offsets = np.array([window.offsets[i] for i in own], np.int32).reshape(-1, 2)
    return own[0] if own else 0, offsets


def answer_tokens(offsets: np.ndarray, text: str, start: int) -> tuple[int, int] | None:
    """First and last of the tokens that touch the answer, or None if they do not hold all of it.

    Args:
      offsets: i[n, 2], characters of the tokens of a window.
      text: the answer.
      start: its first character.
    """
    stop = start + len(text)
    if not len(offsets) or start < offsets[0, 0] or stop > offsets[-1, 1]:
        return None
    touching = np.flatnonzero((offsets[:, 1] > start) & (offsets[:, 0] < stop))
    return (int(touching[0]), int(touching[-1])) if len(touching) else None


@dataclasses.dataclass(frozen=True)
class Span:
    """A possible answer: `text` is `context[start:end]`.

    Attributes:
      score: its probability among the question's n best.
      logit: start logit plus end logit.
    """

    text: str
    start: int
    end: int
    score: float
    logit: float


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a model answers to one question.

    Attributes:
      id: of the question.
      text: cut from the context; "" for no answer.
      start, end: its characters in the context; None for no answer.
      score: its probability (or that of no answer) among the n best.
      no_answer: how much higher the logit of no answer is than that of the best span; above the
        threshold there is no answer. SQuAD 2.0's evaluation finds its best threshold from these.
      n_best: the best spans, best first.
    """

    id: str
    text: str
    start: int | None
    end: int | None
    score: float
    no_answer: float
    n_best: list[Span]


def best_spans(
    questions: Questions,
    features: QuestionFeatures,
    start_logits: Sequence[np.ndarray],
    end_logits: Sequence[np.ndarray],
    n_best: int = 20,
    max_answer_length: int = 30,
    null_threshold: float | None = None,
) -> list[Answer]:
    """The best answer to each question over all its windows.

    Every span of the context of at most `max_answer_length` tokens is tried, and has its start's
    logit plus its end's. A span that two windows hold counts once, with its better logit. White
    space at either end of an answer is taken off. The logit of no answer is the first token's, in
    the window where that is lowest.

    Args:
      questions: those that the features were made of.
      features: as `question_features` made them.
      start_logits: of each window f[≥ T]; entries after its tokens are not read.
      end_logits: likewise.
      n_best: how many spans to keep for each question.
      max_answer_length: L, in tokens.
      null_threshold: SQuAD 2.0: no answer where `no_answer` is above this. None always answers.

    Raises:
      DataError: logits of more or fewer windows, or too short; n_best or L below 1.
    """
    _check(features, start_logits, end_logits, n_best, max_answer_length)
    candidates: list[list[tuple[float, int, int]]] = [[] for _ in range(len(questions))]
    null = np.full(len(questions), np.inf)
    for w, number in enumerate(features.questions):
        start, end = np.asarray(start_logits[w], float), np.asarray(end_logits[w], float)
        null[number] = min(null[number], start[0] + end[0])
        first, offsets = (
            features.contexts[w],
            _trim(features.offsets[w], questions.contexts[number]),
        )
        inside = slice(first, first + len(offsets))
        candidates[number] += _top(start[inside], end[inside], offsets, n_best, max_answer_length)
    return [
        _answer(*question, n_best, null_threshold)
        for question in zip(questions.ids, questions.contexts, candidates, null, strict=True)
    ]


def _check(features, start_logits, end_logits, n_best, max_answer_length) -> None:
    if n_best < 1 or max_answer_length < 1:
        raise DataError(
            f"n_best={n_best} and max_answer_length={max_answer_length} must be at least 1"
        )
    for what, logits in (("start", start_logits), ("end", end_logits)):
        if len(logits) != len(features):
            raise DataError(
                f"{what} logits of {len(logits)} windows for {len(features)}; predict each once"
            )
        for i, (row, feature) in enumerate(zip(logits, features.features, strict=True)):
            if len(row) < len(feature["input_ids"]):
                raise DataError(
                    f"window {i} has {len(feature['input_ids'])} tokens but {what} logits of "
                    f"{len(row)}; pass the logits of all its tokens"
                )


@functools.lru_cache(maxsize=8)
def _solid(context: str) -> tuple[np.ndarray, np.ndarray]:
    """Of each place between characters, the next one before and the last one after a solid one."""
    n = len(context)
    space = np.fromiter(map(str.isspace, context), bool, n)
    places = np.arange(n)
    after = np.minimum.accumulate(np.append(np.where(space, n, places), n)[::-1])[::-1]
    before = np.maximum.accumulate(np.append(0, np.where(space, 0, places + 1)))
    return after, before


def _trim(offsets: np.ndarray, context: str) -> np.ndarray:
    """Offsets without the white space at either end of a token; empty where it is all that."""
    after, before = _solid(context)
    start = np.minimum(after[offsets[:, 0]], offsets[:, 1])
    return np.stack([start, np.maximum(before[offsets[:, 1]], start)], axis=1)


def _top(
    start: np.ndarray, end: np.ndarray, offsets: np.ndarray, n_best: int, longest: int
) -> list[tuple[float, int, int]]:
    """The best (logit, first character, end) of one window, unordered.

    An answer neither begins nor ends at a token of nothing but white space.
    """
    n = len(offsets)
    if not n:
        return []
    solid = offsets[:, 1] > offsets[:, 0]
    start, end = np.where(solid, start, -np.inf), np.where(solid, end, -np.inf)
    padded = np.concatenate([end, np.full(longest - 1, -np.inf)])
    # [n, L]: entry (i, d) is the span from token i to token i + d.
    logits = start[:, None] + np.lib.stride_tricks.sliding_window_view(padded, longest)
    flat = logits.ravel()
    best = np.argpartition(-flat, min(n_best, flat.size) - 1)[:n_best]
    best = best[np.isfinite(flat[best])]
    first, more = np.divmod(best, longest)
    return list(
        zip(
            flat[best].tolist(),
            offsets[first, 0].tolist(),
            offsets[first + more, 1].tolist(),
            strict=True,
        )
    )


def _answer(
    ident: str,
    context: str,
    candidates: list[tuple[float, int, int]],
    null: np.float64,
    n_best: int,
    null_threshold: float | None,
) -> Answer:
    best: dict[tuple[int, int], float] = {}
    for logit, start, end in candidates:
        best[start, end] = max(logit, best.get((start, end), -np.inf))
    ranked = sorted(best.items(), key=lambda item: (-item[1], item[0]))[:n_best]
    if not ranked:  # a context of which the tokenizer left nothing
        return Answer(ident, "", None, None, 1.0, np.inf, [])
    logits = np.array([logit for _, logit in ranked])
    shift = logits[0] if null_threshold is None else max(logits[0], null)
    weights = np.exp(logits - shift)
    no_weight = 0.0 if null_threshold is None else float(np.exp(null - shift))
    total = weights.sum() + no_weight
    spans = [
        Span(context[start:end], start, end, float(weight / total), float(logit))
        for ((start, end), logit), weight in zip(ranked, weights, strict=True)
    ]
    difference = float(null - logits[0])
    if null_threshold is not None and difference > null_threshold:
        return Answer(ident, "", None, None, no_weight / total, difference, spans)
    top = spans[0]
    return Answer(ident, top.text, top.start, top.end, top.score, difference, spans)
