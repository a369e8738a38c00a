"""Windows over long contexts, with the tokens of the answer.

The recipe of BERT (Devlin et al. 2018, sections 4.2 and 4.3) and of transformers' run_qa example.
T = tokens of a window, n = tokens of the context in it.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

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
