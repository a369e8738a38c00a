"""The best answers out of the logits of windows.

As transformers' run_qa example has it, but every span is tried, and overlapping windows do not
count a span twice.
T = tokens of a window, n = tokens of the context in it, L = longest answer in tokens.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from fmjax.core.errors import DataError
from fmjax.data.tasks.answer_windows import QuestionFeatures
from fmjax.data.tasks.questions import Questions


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
        Infinite where the context has no token at all.
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
        offsets = _trim(features.offsets[w], questions.contexts[number])
        first = features.contexts[w]
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
        return Answer(ident, "", None, None, float(no_weight / total), difference, spans)
    top = spans[0]
    return Answer(ident, top.text, top.start, top.end, top.score, difference, spans)
