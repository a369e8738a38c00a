"""Intervals of metrics: how much would they move on other examples of the same kind?

Percentile bootstrap (Efron 1979): the metric of many samples that are drawn from the examples with
replacement, and the range in which the middle 95 % of them lie. It tells the uncertainty that comes
from the examples, not that of another training run.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fmjax.core.errors import ConfigError
from fmjax.evals.arrays import check_lengths, class_ids, class_names, rates
from fmjax.evals.classification import class_f1, counts, macro_f1
from fmjax.evals.tagging import Tags, entity_counts

Interval = tuple[float, float]


def interval(
    metric: Callable[..., Any],
    *data: Any,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[Any, Any]:
    """(low, high) of any metric.

    Args:
      metric: called with resampled data; a float, or an array of floats.
      data: arrays whose first axis, or lists whose entries, are the examples; aligned.
      resamples: number of samples; each is as large as the data.
      confidence: share of the samples between low and high.
      seed: of the samples.

    Returns:
      Two floats or arrays, as the metric gives. Samples where it is nan do not count; where it is
      in all of them, so are low and high.

    Raises:
      DataError: no example, or lengths that differ.
      ConfigError: a number out of range.
    """
    number = _check(data, resamples, confidence)
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(resamples):
        chosen = rng.integers(number, size=number)
        values.append(metric(*(_take(column, chosen) for column in data)))
    return _range(np.asarray(values, np.float64), confidence)


def sums_interval(
    metric: Callable[[np.ndarray], Any],
    examples: Any,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[Any, Any]:
    """(low, high) of a metric of sums over the examples, all samples at once.

    Args:
      metric: sums f64[resamples, …] of each sample → values f64[resamples, …].
      examples: what each example adds, [examples, …].
      resamples, confidence, seed: as for `interval`.

    Raises:
      DataError, ConfigError: as `interval`.
    """
    number = _check([examples], resamples, confidence)
    flat = np.asarray(examples, np.float64).reshape(number, -1)
    rng = np.random.default_rng(seed)
    sums = np.empty((resamples, flat.shape[1]))
    # How often each example is drawn, for so many samples at a time as take 32 MB.
    block = max(1, (4 << 20) // number)
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        drawn = rng.integers(number, size=(size, number)) + number * np.arange(size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=size * number).reshape(size, number)
        sums[start : start + size] = times @ flat
    return _range(np.asarray(metric(sums.reshape(resamples, *np.shape(examples)[1:]))), confidence)


def mean_interval(values: Any, **options: Any) -> Interval:
    """(low, high) of the mean of f[examples]: accuracy, exact match, F1 of answers, 1/rank.

    Options and errors are those of `interval`.
    """
    values = np.asarray(values, np.float64)
    return sums_interval(lambda sums: sums / len(values), values, **options)


def classification_intervals(
    labels: Any, predictions: Any, names: Sequence[str] | None = None, **options: Any
) -> dict[str, Interval]:
    """Of accuracy, macro_f1 and f1/NAME; arguments as `classification_metrics` and `interval`.

    f1/NAME is taken over the samples in which the class occurs as label or prediction.
    """
    names = class_names(names, labels, predictions)
    pair = class_ids(labels, predictions, len(names))

    def metric(truth: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        matrix = counts(truth, chosen, len(names))
        return np.array([matrix.trace() / matrix.sum(), macro_f1(matrix), *class_f1(matrix)])

    low, high = interval(metric, *pair, **options)
    keys = ("accuracy", "macro_f1", *(f"f1/{name}" for name in names))
    return _pairs(keys, low, high)


def tagging_intervals(labels: Tags, predictions: Tags, **options: Any) -> dict[str, Interval]:
    """Of precision, recall, f1 and f1/TYPE of entities, by drawing sentences.

    Arguments and errors are those of `tagging_metrics` and `interval`.
    """
    types, examples = entity_counts(labels, predictions)

    def metric(sums: np.ndarray) -> np.ndarray:  # [resamples, types, 3]
        by_type = rates(*np.moveaxis(sums, -1, 0))[2]
        return np.column_stack([*rates(*sums.sum(1).T), by_type])

    keys = ("precision", "recall", "f1", *(f"f1/{kind}" for kind in types))
    return _pairs(keys, *sums_interval(metric, examples, **options))


def _check(data: Sequence[Any], resamples: int, confidence: float) -> int:
    if resamples < 1 or not 0 < confidence < 1:
        raise ConfigError(
            f"interval: {resamples} resamples must be at least 1, and confidence {confidence} "
            "between 0 and 1"
        )
    return check_lengths(**{f"examples in column {i}": column for i, column in enumerate(data)})


def _take(column: Any, chosen: np.ndarray) -> Any:
    return column[chosen] if isinstance(column, np.ndarray) else [column[i] for i in chosen]


def _range(values: np.ndarray, confidence: float) -> tuple[Any, Any]:
    """Percentiles along the first axis, leaving out nan."""
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    known = ~np.isnan(values).all(0)
    # A column of nan would warn; it is nan in any case.
    low, high = np.where(known, np.nanquantile(np.where(known, values, 0.0), tails, axis=0), np.nan)
    return (float(low), float(high)) if values.ndim == 1 else (low, high)


def _pairs(keys: Sequence[str], low: Any, high: Any) -> dict[str, Interval]:
    return {k: (float(a), float(b)) for k, a, b in zip(keys, low, high, strict=True)}
