"""Exact match and F1 of extracted answers, as SQuAD 1.1 and 2.0 define them.

A question may have several right answers, of which the nearest counts; or none, in which case the
empty answer is right. Scores are fractions, where the official scripts print percentages.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

from fmjax.evals.arrays import check_lengths

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalize_answer(text: str) -> str:
    """Lower case without ASCII punctuation, English articles and superfluous white space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def answer_scores(prediction: str, answers: Sequence[str]) -> tuple[float, float]:
    """(exact match, F1 over words) of one answer against the nearest of the right ones."""
    right = [normal for normal in map(normalize_answer, answers) if normal] or [""]
    given = normalize_answer(prediction)
    return float(given in right), max(_f1(given.split(), normal.split()) for normal in right)


def _f1(given: list[str], right: list[str]) -> float:
    if not given or not right:
        return float(given == right)
    shared = sum((Counter(given) & Counter(right)).values())
    return 2 * shared / (len(given) + len(right))


def question_scores(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> np.ndarray:
    """f64[questions, 2]: exact match and F1 of each question.

    Raises:
      DataError: no question, or lengths that differ.
    """
    check_lengths(predictions=predictions, answers=answers)
    return np.array([answer_scores(p, a) for p, a in zip(predictions, answers, strict=True)])


def question_metrics(
    predictions: Sequence[str], answers: Sequence[Sequence[str]]
) -> dict[str, float]:
    """exact_match and f1, and where some questions have no answer, also those of the two kinds.

    Args:
      predictions: texts; "" says that there is no answer.
      answers: the right ones of each question; none where it has no answer.

    Returns:
      exact_match and f1; if both kinds occur, has_answer_/no_answer_ exact_match and f1.

    Raises:
      DataError: no question, or lengths that differ.
    """
    scores = question_scores(predictions, answers)
    has = np.array([any(map(normalize_answer, a)) for a in answers])
    metrics = dict(zip(("exact_match", "f1"), scores.mean(0).tolist(), strict=True))
    if has.any() and not has.all():
        for kind, mask in (("has_answer", has), ("no_answer", ~has)):
            exact, f1 = scores[mask].mean(0).tolist()
            metrics |= {f"{kind}_exact_match": exact, f"{kind}_f1": f1}
    return metrics


def best_null_threshold(
    predictions: Sequence[str], answers: Sequence[Sequence[str]], null_scores: Sequence[float]
) -> tuple[float, float]:
    """(threshold, F1): answer "" where the score of no answer is above the threshold.

    To be chosen on data other than those reported, unlike SQuAD 2.0's best_f1.

    Args:
      predictions: the best answer of each question that is not "".
      answers: as in `question_metrics`.
      null_scores: of each question, how much rather it has no answer: the score of the first
        token as start and end, less the score of the prediction.

    Raises:
      DataError: no question, or lengths that differ.
    """
    check_lengths(predictions=predictions, answers=answers, null_scores=null_scores)
    answered = question_scores(predictions, answers)[:, 1]
    silent = question_scores([""] * len(predictions), answers)[:, 1]
    scores = np.asarray(null_scores, np.float64)
    order = np.argsort(scores, kind="stable")
    # Entry k: the k questions with the lowest scores are answered.
    totals = silent.sum() + np.concatenate(([0.0], np.cumsum((answered - silent)[order])))
    ranked = scores[order]
    # Equal scores cannot be told apart: only the last of them may end the answered ones.
    possible = np.append(True, np.append(ranked[1:] > ranked[:-1], True))
    k = int(np.argmax(np.where(possible, totals, -np.inf)))
    threshold = -np.inf if k == 0 else ranked[k - 1]
    return float(threshold), float(totals[k] / len(scores))
