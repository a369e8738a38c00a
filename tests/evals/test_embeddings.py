"""Similarity and retrieval."""

import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from fmjax.core.errors import DataError
from fmjax.evals import positive_ranks, retrieval_metrics, similarity_metrics


def test_similarity():
    rng = np.random.default_rng(0)
    a, b, scores = rng.normal(size=(20, 4)), rng.normal(size=(20, 4)), rng.random(20)
    cosines = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    found = similarity_metrics(a.astype(np.float32), b, scores)
    assert found["spearman"] == pytest.approx(spearmanr(cosines, scores).statistic)
    assert math.isnan(similarity_metrics(a, a, scores)["spearman"])
    assert math.isnan(similarity_metrics(a, b, np.ones(20))["pearson"])
    assert math.isnan(similarity_metrics(np.zeros((2, 3)), np.ones((2, 3)), [0, 1])["spearman"])


def test_retrieval():
    candidates = np.eye(4)
    queries = np.array([[5.0, 1, 0, 0], [0, 1, 2, 0], [1, 1, 1, 0.5]])
    np.testing.assert_array_equal(positive_ranks(queries, candidates), [1, 2, 3])
    found = retrieval_metrics(queries, candidates, ks=(1, 2))
    assert found == pytest.approx(
        {"accuracy@1": 1 / 3, "accuracy@2": 2 / 3, "mrr": (1 + 1 / 2 + 1 / 3) / 3}
    )
    # Several positives: the nearest counts, and the others do not stand in the way.
    np.testing.assert_array_equal(
        positive_ranks(queries, candidates, [[1], [1, 2], [3, 0, 1]]), [2, 1, 2]
    )


def test_many_queries_are_compared_in_blocks(monkeypatch):
    x = np.random.default_rng(0).normal(size=(50, 3))
    whole = positive_ranks(x, x + 0.3 * x[::-1])
    monkeypatch.setattr("fmjax.evals.embeddings._BLOCK", 7)
    np.testing.assert_array_equal(positive_ranks(x, x + 0.3 * x[::-1]), whole)


def test_embeddings_that_are_all_alike_find_nothing():
    same = np.ones((5, 3))
    assert retrieval_metrics(same, same)["accuracy@1"] == 0.0
    zero = np.zeros((5, 3))
    assert positive_ranks(zero, zero).tolist() == [5] * 5


@pytest.mark.parametrize("positives", [[0, 5], [0, -1], [0, []]])
def test_bad_positives(positives):
    with pytest.raises(DataError, match="query 1 has positives"):
        positive_ranks(np.ones((2, 3)), np.ones((4, 3)), positives)


def test_errors():
    with pytest.raises(DataError, match="no example"):
        positive_ranks(np.zeros((0, 3)), np.ones((4, 3)))
    with pytest.raises(DataError, match=r"embeddings are \[3\]"):
        positive_ranks(np.ones(3), np.ones((4, 3)))
    for broken in (np.nan, np.inf):
        bad = np.ones((2, 3))
        bad[1, 2] = broken
        for pair in ((bad, np.ones((2, 3))), (np.ones((2, 3)), bad)):
            with pytest.raises(DataError, match="embedding 1 is not finite"):
                retrieval_metrics(*pair)
            with pytest.raises(DataError, match="embedding 1 is not finite"):
                similarity_metrics(*pair, [0, 1])
    with pytest.raises(DataError, match="2 queries, 1 positives"):
        positive_ranks(np.ones((2, 3)), np.ones((4, 3)), [0])
