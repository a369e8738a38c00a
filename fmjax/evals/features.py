"""Features for the evaluators of representations: arrays, or what any embed function gives.

Shapes: N examples, D width.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from fmjax.core.errors import DataError

Batch = Mapping[str, Any]


def collect(
    embed: Callable[[Batch], Any],
    batches: Iterable[Batch],
    advance: Callable[[int], None] = lambda rows: None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Features of all examples, and their labels where the batches have some.

    Args:
      embed: batch → f[B, D]; compiled by the caller, who also places the batch on a mesh.
      batches: dicts of arrays [B, …]. Rows whose "example_weight" is 0 only fill a batch up and are
        left out; "labels" are i[B].
      advance: is told the number of examples after each batch.

    Returns:
      (features f32[N, D], labels i32[N] or None), in the order of the batches.

    Raises:
      DataError: no example, or features that are no matrix.
    """
    features: list[np.ndarray] = []
    labels: list[np.ndarray] = []

    def take(values: Any, batch: Batch) -> None:
        rows = np.asarray(jax.device_get(values), np.float32)
        if rows.ndim != 2:
            raise DataError(f"features of a batch are {list(rows.shape)}; give [examples, width]")
        real = np.asarray(batch.get("example_weight", np.ones(len(rows)))) > 0
        features.append(rows[real])
        if "labels" in batch:
            labels.append(np.asarray(batch["labels"], np.int32)[real])
        advance(int(real.sum()))

    # One batch behind the device, which so always has work.
    waiting = None
    for batch in batches:
        values = embed(batch)
        if waiting is not None:
            take(*waiting)
        waiting = values, batch
    if waiting is not None:
        take(*waiting)
    if not sum(map(len, features)):
        raise DataError("features: the batches have no example; check the size of the data")
    return np.concatenate(features), np.concatenate(labels) if labels else None


def checked(features: Any, what: str) -> np.ndarray:
    """Finite f32[N, D] with at least one example.

    Raises:
      DataError: anything else, by the name `what`.
    """
    features = np.asarray(features, np.float32)
    if features.ndim != 2 or not features.size:
        raise DataError(f"{what} features are {list(features.shape)}; give [examples, width]")
    check_finite(features, f"{what} features: example")
    return features


def check_finite(rows: np.ndarray, what: str) -> None:
    """Raises a DataError for the first row of f[N, D] that is not finite; `what` is before it."""
    finite = np.isfinite(rows).all(-1)
    if not finite.all():
        raise DataError(
            f"{what} {int(np.argmin(finite))} is not finite; look for the batch in which the model "
            "gives nan, or use --dtype float32"
        )


def labelled(features: Any, labels: Any, what: str) -> tuple[np.ndarray, np.ndarray]:
    """(f32[N, D], i32[N]) of examples whose classes are numbered from 0.

    Raises:
      DataError: as `checked`; labels that are not one class number for each example.
    """
    features, labels = checked(features, what), np.asarray(labels)
    if labels.shape != features.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{what} labels are {labels.dtype}{list(labels.shape)} for {len(features)} examples; "
            "give each one class number"
        )
    if labels.min() < 0:
        raise DataError(f"{what} labels: {labels.min()} is no class; they are numbered from 0")
    if labels.max() > np.iinfo(np.int32).max:
        raise DataError(
            f"{what} labels: {labels.max()} is an identifier, not the number of a class; number "
            "them from 0, as np.unique(labels, return_inverse=True) does"
        )
    return features, labels.astype(np.int32)


def pair(
    train_features: Any, train_labels: Any, test_features: Any, test_labels: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
    """What a probe is fitted to and judged on, checked, and the number of classes of both.

    Raises:
      DataError: as `labelled`, or widths that differ.
    """
    train = labelled(train_features, train_labels, "train")
    test = labelled(test_features, test_labels, "test")
    same_width(train[0], test[0], "train", "test")
    return *train, *test, int(max(train[1].max(), test[1].max())) + 1


def same_width(a: np.ndarray, b: np.ndarray, a_name: str, b_name: str) -> None:
    """Raises DataError unless both matrices have vectors of one length."""
    if a.shape[1] != b.shape[1]:
        raise DataError(
            f"{a_name} features are {a.shape[1]} wide and {b_name} features {b.shape[1]}; take "
            "both from one model"
        )
