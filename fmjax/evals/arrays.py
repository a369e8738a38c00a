"""What the metrics share: checks, and rates from counts."""

from collections.abc import Sequence, Sized
from typing import Any

import numpy as np

from fmjax.core.errors import DataError

RATES = ("precision", "recall", "f1")


def check_lengths(**columns: Sized) -> int:
    """The number of examples that all columns have.

    Raises:
      DataError: lengths that differ (by name), or no example.
    """
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(
            "metrics: " + ", ".join(f"{n} {name}" for name, n in lengths.items())
            + "; give as many of each"
        )  # fmt: skip
    number = next(iter(lengths.values()))
    if not number:
        raise DataError("metrics: there is no example to measure; check the size of the data")
    return number


def class_ids(labels: Any, predictions: Any, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """(labels i64[B], predictions i64[B]); predictions may be logits [B, N], whose argmax it is.

    Raises:
      DataError: a label or prediction that is none of the `classes`.
    """
    check_lengths(labels=labels, predictions=predictions)
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    if predictions.ndim == 2:
        if predictions.shape[1] != classes:
            raise DataError(
                f"metrics: logits {list(predictions.shape)} are not of {classes} classes"
            )
        predictions = predictions.argmax(-1)
    for what, ids in (("label", labels), ("prediction", predictions)):
        wrong = ids[(ids < 0) | (ids >= classes)]
        if wrong.size:
            raise DataError(f"metrics: {what} {wrong[0]} is none of {classes} classes")
    return labels.astype(np.int64), predictions.astype(np.int64)


def class_names(names: Sequence[str] | None, *arrays: Any) -> tuple[str, ...]:
    """The names given, or "0", "1", … for the classes that occur or have a column."""
    if names is not None:
        return tuple(names)
    counts = [
        a.shape[1] if a.ndim == 2 else int(a.max(initial=0)) + 1 for a in map(np.asarray, arrays)
    ]
    return tuple(str(i) for i in range(max(counts)))


def rates(hits: Any, predicted: Any, actual: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(precision, recall, F1) of counts of any one shape; 0 where there is nothing to divide by."""
    hits, predicted, actual = (np.asarray(x, np.float64) for x in (hits, predicted, actual))
    return (
        hits / np.maximum(predicted, 1),
        hits / np.maximum(actual, 1),
        2 * hits / np.maximum(predicted + actual, 1),
    )


def rates_by_name(names: Sequence[str], hits: Any, predicted: Any, actual: Any) -> dict[str, float]:
    """precision/NAME, recall/NAME, f1/NAME and support/NAME of counts [N]."""
    columns = [*rates(hits, predicted, actual), np.asarray(actual)]
    return {
        f"{what}/{name}": float(column[i])
        for i, name in enumerate(names)
        for what, column in zip((*RATES, "support"), columns, strict=True)
    }
