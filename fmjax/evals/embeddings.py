"""Metrics of embeddings: do near vectors mean alike, and is the right text found?"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fmjax.core.errors import DataError
from fmjax.evals.arrays import check_lengths
from fmjax.evals.classification import pearson, spearman
from fmjax.evals.features import check_finite

_BLOCK = 1024
"""Queries compared at once, which bounds memory to this many rows of similarities."""


def cosines(a: Any, b: Any) -> np.ndarray:
    """f64[N]: cosine of every pair of rows of [N, D]; 0 where a vector is zero."""
    return np.sum(_normalized(a) * _normalized(b), -1)


def similarity_metrics(a: Any, b: Any, scores: Any) -> dict[str, float]:
    """spearman and pearson of the cosines of N pairs with the scores that people gave.

    Args:
      a, b: f[N, D].
      scores: f[N].

    Returns:
      Both nan where cosines or scores are constant.

    Raises:
      DataError: no pair, or lengths that differ.
    """
    check_lengths(a=a, b=b, scores=scores)
    found, scores = cosines(a, b), np.asarray(scores, np.float64)
    return {"spearman": spearman(found, scores), "pearson": pearson(found, scores)}


def positive_ranks(queries: Any, candidates: Any, positives: Any = None) -> np.ndarray:
    """i64[N]: place of each query's first positive among the candidates by cosine, from 1.

    Ties count against the positive, so that embeddings which are all alike find nothing.

    Args:
      queries: f[N, D].
      candidates: f[M, D].
      positives: i[N], or a list of N lists of candidates that are right, in which case a query's
        other positives do not stand in the way; default i for query i.

    Raises:
      DataError: no query, a query without a positive, a number that is no candidate, or embeddings
        that are not finite.
    """
    queries, candidates = _normalized(queries), _normalized(candidates)
    if positives is None:
        positives = range(len(queries))
    check_lengths(queries=queries, positives=positives)
    sets = [np.atleast_1d(np.asarray(p, np.int64)) for p in positives]
    for number, right in enumerate(sets):
        if not right.size or right.min() < 0 or right.max() >= len(candidates):
            raise DataError(
                f"retrieval: query {number} has positives {right.tolist()}, and there are "
                f"{len(candidates)} candidates"
            )
    ranks = np.empty(len(queries), np.int64)
    for start in range(0, len(queries), _BLOCK):
        similarities = queries[start : start + _BLOCK] @ candidates.T
        for i, row in enumerate(similarities, start):
            best = row[sets[i]].max()
            row[sets[i]] = -np.inf
            # Rounding must not decide between equal vectors.
            ranks[i] = 1 + np.count_nonzero(row >= best - 1e-9)
    return ranks


def retrieval_metrics(
    queries: Any, candidates: Any, positives: Any = None, *, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """accuracy@k (a positive is among the first k) and mrr (mean of 1/rank).

    Arguments and errors are those of `positive_ranks`.
    """
    ranks = positive_ranks(queries, candidates, positives)
    found = {f"accuracy@{k}": float(np.mean(ranks <= k)) for k in ks}
    return found | {"mrr": float(np.mean(1 / ranks))}


def _normalized(x: Any) -> np.ndarray:
    x = np.asarray(x, np.float64)
    if x.ndim != 2:
        raise DataError(f"embeddings are {list(x.shape)}; give a matrix [texts, width]")
    check_finite(x, "embedding")
    norms = np.linalg.norm(x, axis=-1, keepdims=True)
    return x / np.where(norms > 0, norms, 1)
