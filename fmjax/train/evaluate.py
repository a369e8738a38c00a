"""Means of an objective over a dataset."""

import math
from collections.abc import Iterable
from typing import Any

import jax

from fmjax.core.errors import DataError
from fmjax.train.state import TrainState
from fmjax.train.step import Batch, Step


def evaluate(step: Step, state: TrainState, batches: Iterable[Batch]) -> dict[str, float]:
    """Weighted means over all batches, without dropout; a language model's include `perplexity`.

    Sums are added on the host in double precision, one batch behind the device.

    Raises:
      DataError: no batch, or only batches of weight zero.
    """
    totals: dict[str, list[float]] = {}

    def add(sums: Any) -> None:
        for name, (total, weight) in jax.device_get(sums).items():
            pair = totals.setdefault(name, [0.0, 0.0])
            pair[0] += float(total)
            pair[1] += float(weight)

    pending = None
    for batch in batches:
        sums = step.evaluate(state, batch)
        if pending is not None:
            add(pending)
        pending = sums
    if pending is None:
        raise DataError("evaluation: there is no batch; check the size of the evaluation data")
    add(pending)
    if not totals["loss"][1]:
        raise DataError("evaluation: no batch has a target; check labels and masks")
    means = {name: t / w if w else math.nan for name, (t, w) in totals.items()}
    return getattr(step.objective, "summarize", dict)(means)
