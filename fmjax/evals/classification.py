"""Metrics of classification and regression, over all examples of a dataset.

Everything is a fraction (1.0, not 100), and defined whatever the data: precision and F1 of a class
without examples or predictions are 0, correlations with a constant and ROC-AUC of a single class
are nan.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fmjax.core.errors import ConfigError, DataError
from fmjax.evals.arrays import (
    RATES,
    check_lengths,
    class_ids,
    class_names,
    rates,
    rates_by_name,
)


def confusion_matrix(labels: Any, predictions: Any, classes: int) -> np.ndarray:
    """i64[classes, classes]: row = label, column = prediction.

    Args:
      labels: i[B].
      predictions: i[B], or logits f[B, classes].
      classes: number of them.

    Raises:
      DataError: as `classification_metrics`.
    """
    return counts(*class_ids(labels, predictions, classes), classes)


def counts(labels: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """The confusion matrix of checked ids: fast enough for a thousand resamples."""
    flat = np.bincount(labels * classes + predictions, minlength=classes * classes)
    return flat.reshape(classes, classes)


def class_f1(matrix: np.ndarray) -> np.ndarray:
    """f64[N]: F1 of every class of a confusion matrix [N, N]; nan where it never occurs."""
    total = matrix.sum(0) + matrix.sum(1)
    return np.where(total > 0, 2 * matrix.diagonal() / np.maximum(total, 1), np.nan)


def macro_f1(matrix: np.ndarray) -> float:
    """Mean F1 of the classes that occur as a label or a prediction, as scikit-learn's."""
    return float(np.nanmean(class_f1(matrix)))


def classification_metrics(
    labels: Any, predictions: Any, names: Sequence[str] | None = None
) -> dict[str, float]:
    """Metrics of choosing one class of several.

    Args:
      labels: i[B].
      predictions: i[B], or logits f[B, N].
      names: of the N classes; default their numbers.

    Returns:
      accuracy, matthews_correlation; macro_/weighted_ precision, recall and f1 (macro: over the
      classes that occur as label or prediction); precision/NAME, recall/NAME, f1/NAME and
      support/NAME of every class; with logits roc_auc, of two classes or the mean of one class
      against the rest over the classes for which it is defined.

    Raises:
      DataError: no example, lengths that differ, a number that is none of the classes.
    """
    names = class_names(names, labels, predictions)
    truth, chosen = class_ids(labels, predictions, len(names))
    matrix = counts(truth, chosen, len(names))
    hits, predicted, actual = matrix.diagonal(), matrix.sum(0), matrix.sum(1)
    metrics = {"accuracy": float(hits.sum() / matrix.sum())}
    metrics["matthews_correlation"] = _matthews(truth, chosen)
    occurs = predicted + actual > 0
    for what, values in zip(RATES, rates(hits, predicted, actual), strict=True):
        metrics[f"macro_{what}"] = float(values[occurs].mean())
        metrics[f"weighted_{what}"] = float(np.average(values, weights=actual))
    metrics |= rates_by_name(names, hits, predicted, actual)
    scores = np.asarray(predictions)
    if scores.ndim == 2:
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        columns = [1] if len(names) == 2 else range(len(names))
        metrics["roc_auc"] = _mean(_roc_auc(truth == c, shares[:, c]) for c in columns)
    return metrics


def multi_label_metrics(
    labels: Any, predictions: Any, names: Sequence[str] | None = None, *, threshold: float = 0.5
) -> dict[str, float]:
    """Metrics of choosing any number of N classes.

    Args:
      labels: [B, N] of 0 and 1.
      predictions: logits f[B, N], or integers or bools [B, N] of 0 and 1.
      names: of the classes; default their numbers.
      threshold: probability from which on a logit chooses its class.

    Returns:
      subset_accuracy (all N right), micro_/macro_ precision, recall and f1, the same /NAME of every
      class with support/NAME; with logits roc_auc, the mean over the classes for which it is
      defined.

    Raises:
      DataError: no example, or shapes that differ.
      ConfigError: a threshold that is not between 0 and 1.
    """
    if not 0 < threshold < 1:
        raise ConfigError(f"metrics: threshold {threshold} must lie between 0 and 1")
    check_lengths(labels=labels, predictions=predictions)
    truth, scores = np.asarray(labels).astype(bool), np.asarray(predictions)
    names = class_names(names, scores)
    if truth.shape != scores.shape or truth.shape[1:] != (len(names),):
        raise DataError(
            f"metrics: labels {list(truth.shape)} and predictions {list(scores.shape)} must both "
            f"be [examples, {len(names)}]"
        )
    logits = np.issubdtype(scores.dtype, np.floating)
    chosen = scores >= math.log(threshold / (1 - threshold)) if logits else scores.astype(bool)
    metrics = {"subset_accuracy": float((truth == chosen).all(-1).mean())}
    hits, predicted, actual = (truth & chosen).sum(0), chosen.sum(0), truth.sum(0)
    micro = rates(hits.sum(), predicted.sum(), actual.sum())
    each = rates(hits, predicted, actual)
    for what, one, values in zip(RATES, micro, each, strict=True):
        metrics[f"micro_{what}"] = float(one)
        metrics[f"macro_{what}"] = float(values.mean())
    metrics |= rates_by_name(names, hits, predicted, actual)
    if logits:
        metrics["roc_auc"] = _mean(_roc_auc(truth[:, c], scores[:, c]) for c in range(len(names)))
    return metrics


def regression_metrics(labels: Any, predictions: Any) -> dict[str, float]:
    """pearson, spearman, rmse and mae of f[B] (or [B, N], all values together).

    Raises:
      DataError: no example, or shapes that differ.
    """
    check_lengths(labels=labels, predictions=predictions)
    truth, found = (np.asarray(x, np.float64) for x in (labels, predictions))
    if truth.size != found.size:
        raise DataError(
            f"metrics: labels {list(truth.shape)} and predictions {list(found.shape)} differ"
        )
    truth, found = truth.ravel(), found.ravel()
    return {
        "pearson": pearson(truth, found),
        "spearman": spearman(truth, found),
        "rmse": float(np.sqrt(np.mean((truth - found) ** 2))),
        "mae": float(np.mean(np.abs(truth - found))),
    }


def pearson(a: Any, b: Any) -> float:
    """Pearson's correlation of f[B] and f[B]; nan where one of them is constant or not finite."""
    from scipy.stats import pearsonr

    return float(pearsonr(a, b).statistic) if _vary(a, b) else math.nan


def spearman(a: Any, b: Any) -> float:
    """Spearman's rank correlation; nan where one is constant or not finite."""
    from scipy.stats import spearmanr

    return float(spearmanr(a, b).statistic) if _vary(a, b) else math.nan


def _vary(*columns: Any) -> bool:
    def varies(x: np.ndarray) -> bool:
        # Values that differ by rounding only are constant: correlations with them are noise.
        return bool(np.isfinite(x).all() and np.ptp(x) > 1e-13 * np.abs(x).max())

    return all(len(x) > 1 and varies(np.asarray(x)) for x in columns)


def _matthews(truth: np.ndarray, chosen: np.ndarray) -> float:
    from sklearn.metrics import matthews_corrcoef

    # Where everything is one class, scikit-learn warns; by convention the correlation is 0.
    return float(matthews_corrcoef(truth, chosen)) if len({*truth, *chosen}) > 1 else 0.0


def _roc_auc(truth: np.ndarray, scores: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    if len(np.unique(truth)) < 2 or not np.isfinite(scores).all():
        return math.nan
    return float(roc_auc_score(truth, scores))


def _mean(values: Any) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan
