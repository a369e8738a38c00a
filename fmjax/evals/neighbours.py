"""Nearest neighbours by cosine, and the classifier that they make.

Shapes: Q queries, M vectors of the bank, D width, N classes.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fmjax.core.errors import ConfigError, DataError
from fmjax.evals.features import checked, pair, same_width
from fmjax.evals.figure import Figure, mean_figure


class Neighbours(NamedTuple):
    """The nearest first; of equally near ones, that with the lower number.

    Attributes:
      cosines: f32[Q, k].
      indices: i32[Q, k], rows of the bank.
    """

    cosines: np.ndarray
    indices: np.ndarray


def nearest(
    queries: Any, bank: Any, k: int, *, query_chunk: int = 1024, bank_chunk: int = 32768
) -> Neighbours:
    """The k vectors of a bank with the largest cosine to each query.

    Queries and bank stay on the host and visit the device chunk by chunk, so that its memory is
    that of query_chunk × bank_chunk cosines and the two chunks, however large the bank.

    Args:
      queries: f[Q, D].
      bank: f[M, D].
      k: 1 to M.
      query_chunk: queries compared at once.
      bank_chunk: vectors of the bank that they are compared with at once.

    Raises:
      DataError: no vector, vectors of different lengths, or k out of range.
      ConfigError: a chunk smaller than 1.
    """
    queries, bank = checked(queries, "query"), checked(bank, "bank")
    same_width(queries, bank, "query", "bank")
    if not 1 <= k <= len(bank):
        raise DataError(f"k {k}: there are {len(bank)} vectors to choose from")
    if query_chunk < 1 or bank_chunk < 1:
        raise ConfigError(f"chunks of {query_chunk} × {bank_chunk} must be at least 1")
    query_chunk, bank_chunk = min(query_chunk, len(queries)), min(bank_chunk, len(bank))
    starts = range(0, len(queries), query_chunk)
    empty = (
        jnp.full((query_chunk, k), -jnp.inf, jnp.float32),
        jnp.zeros((query_chunk, k), jnp.int32),
    )
    best = {start: empty for start in starts}
    for first in range(0, len(bank), bank_chunk):
        chunk = jax.device_put(_rows(bank, first, bank_chunk))
        real = min(bank_chunk, len(bank) - first)
        for start in starts:
            best[start] = _merge(
                best[start], _rows(queries, start, query_chunk), chunk, first, real
            )
    parts = zip(*(jax.device_get(best[start]) for start in starts), strict=True)
    return Neighbours(*(np.concatenate(part)[: len(queries)] for part in parts))


def _rows(x: np.ndarray, start: int, number: int) -> np.ndarray:
    """x[start : start + number], with zeros after the end: one shape for all chunks."""
    rows = x[start : start + number]
    return rows if len(rows) == number else np.pad(rows, ((0, number - len(rows)), (0, 0)))


@jax.jit
def _merge(
    best: tuple[jax.Array, jax.Array],
    queries_QD: jax.Array,
    bank_MD: jax.Array,
    first: jax.Array,
    real: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The best of those found so far and of a chunk whose rows from `real` on do not count."""
    k, rows = best[0].shape[1], bank_MD.shape[0]
    cosines_QM = jnp.matmul(
        _unit(queries_QD), _unit(bank_MD).T, precision=jax.lax.Precision.HIGHEST
    )
    cosines_QM = jnp.where(jnp.arange(rows) < real, cosines_QM, -jnp.inf)
    cosines, places = jax.lax.top_k(cosines_QM, min(k, rows))
    # What was found before has lower numbers, and stands first where cosines are equal.
    both = jnp.concatenate([best[0], cosines], -1)
    indices = jnp.concatenate([best[1], first + places], -1)
    cosines, order = jax.lax.top_k(both, k)
    return cosines, jnp.take_along_axis(indices, order, -1)


def _unit(x: jax.Array) -> jax.Array:
    norms = jnp.linalg.norm(x, axis=-1, keepdims=True)
    return x / jnp.where(norms > 0, norms, 1)


def knn_votes(cosines: Any, labels: Any, classes: int, *, temperature: float = 0.07) -> np.ndarray:
    """f64[Q, N]: the share of each class in the votes exp(cosine / temperature) of k neighbours.

    DINO's weighting (Caron et al. 2021, after Wu et al. 2018).

    Args:
      cosines: f[Q, k].
      labels: i[Q, k], of the neighbours.
      classes: N.
      temperature: inf lets all neighbours count alike.

    Raises:
      ConfigError: a temperature that is not above 0.
    """
    if not temperature > 0:
        raise ConfigError(f"temperature {temperature} must be more than 0")
    cosines = np.asarray(cosines, np.float64)
    weights = np.exp((cosines - cosines.max(-1, keepdims=True)) / temperature)
    cells = np.asarray(labels, np.int64) + classes * np.arange(len(cosines))[:, None]
    votes = np.bincount(cells.ravel(), weights.ravel(), minlength=classes * len(cosines))
    return votes.reshape(len(cosines), classes) / weights.sum(-1, keepdims=True)


def knn(
    train_features: Any,
    train_labels: Any,
    test_features: Any,
    test_labels: Any,
    *,
    ks: Sequence[int] = (10, 20),
    temperature: float = 0.07,
    **chunks: int,
) -> dict[int, Figure]:
    """Accuracy by k of the class that the k nearest training examples vote for.

    Args:
      train_features, test_features: f[·, D].
      train_labels, test_labels: i[·].
      ks: numbers of neighbours; DINO's is 20.
      temperature: of the votes, see `knn_votes`.
      **chunks: of `nearest`.

    Raises:
      DataError, ConfigError: features and labels that do not fit, or a number out of range.
    """
    bank, classes_of, queries, truth, _ = pair(
        train_features, train_labels, test_features, test_labels
    )
    # Numbered without gaps, as there are votes for each class.
    numbers = np.unique(np.concatenate([classes_of, truth]), return_inverse=True)[1]
    classes_of, truth = np.split(numbers, [len(classes_of)])
    classes = int(numbers.max()) + 1
    if not ks:
        raise ConfigError("kNN: give at least one k")
    found = nearest(queries, bank, max(ks), **chunks)
    figures = {}
    for k in ks:
        if k < 1:
            raise ConfigError(f"kNN: k {k} must be at least 1")
        labels = classes_of[found.indices[:, :k]]
        votes = knn_votes(found.cosines[:, :k], labels, classes, temperature=temperature)
        figures[k] = mean_figure(votes.argmax(-1) == truth)
    return figures
