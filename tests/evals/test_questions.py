"""Answers, as the scripts of SQuAD 1.1 and 2.0 score them."""

import numpy as np
import pytest

from fmjax.core.errors import DataError
from fmjax.evals import best_null_threshold, question_metrics, question_scores
from fmjax.evals.questions import normalize_answer


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Cat, and a dog.", "cat and dog"),
        ("U.S.A.", "usa"),
        ("an\nanother", "another"),
        ("“quoted” – dash", "“quoted” – dash"),
        ("the", ""),
    ],
)
def test_normalization(text, expected):
    assert normalize_answer(text) == expected


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("the Eiffel Tower", ["Eiffel tower!", "Paris"], (1, 1)),
        ("Eiffel", ["the Eiffel Tower"], (0, 2 / 3)),
        ("in Paris in", ["in in Rome"], (0, 2 / 3)),
        ("no", ["yes"], (0, 0)),
        ("", [], (1, 1)),
        ("", ["the"], (1, 1)),
        ("something", [], (0, 0)),
        ("", ["something"], (0, 0)),
        ("Paris", ["", "Paris"], (1, 1)),
    ],
)
def test_scores(prediction, answers, expected):
    np.testing.assert_allclose(question_scores([prediction], [answers])[0], expected)


def test_metrics_of_both_kinds():
    found = question_metrics(["a cat", "", "dog", ""], [["cat"], [], [], ["bird"]])
    assert found == {
        "exact_match": 0.5, "f1": 0.5, "has_answer_exact_match": 0.5, "has_answer_f1": 0.5,
        "no_answer_exact_match": 0.5, "no_answer_f1": 0.5,
    }  # fmt: skip
    assert set(question_metrics(["cat"], [["cat"]])) == {"exact_match", "f1"}
    with pytest.raises(DataError, match="no example"):
        question_metrics([], [])
    with pytest.raises(DataError, match="1 predictions, 2 answers"):
        question_metrics([""], [[], []])


def test_threshold():
    predictions, answers = ["a1", "x", "a3", "y"], [["a1"], [], ["a3"], []]
    threshold, f1 = best_null_threshold(predictions, answers, [-2.0, 3.0, -1.0, 2.0])
    assert (threshold, f1) == (-1.0, 1.0)
    # Equal scores go together: both are answered, or neither.
    assert best_null_threshold(predictions, answers, [0.0] * 4) == (-np.inf, 0.5)
    assert best_null_threshold(["b"], [["b"]], [7.0]) == (7.0, 1.0)
