"""A figure with the interval in which it lies."""

from typing import Any, NamedTuple

import numpy as np

from fmjax.evals.bootstrap import mean_interval, sums_interval


class Figure(NamedTuple):
    """A metric, and the middle 95 % of what it is on other examples of the same kind."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f}–{self.high:.3f})"


def mean_figure(values: Any, groups: Any = None, *, seed: int = 0) -> Figure:
    """The mean of f[N], such as of 1 for each example that is right and 0 for the others.

    Args:
      values: of the examples.
      groups: i[N], which of them belong together (captions of one image) and are drawn together;
        default each alone.
      seed: of the samples that the interval is from.

    Raises:
      DataError: no example.
    """
    values = np.asarray(values, np.float64)
    if groups is None:
        low, high = mean_interval(values, seed=seed)
    else:
        members = np.unique(groups, return_inverse=True)[1]
        sums = np.stack([np.bincount(members, weights=values), np.bincount(members)], -1)
        low, high = sums_interval(lambda s: s[:, 0] / s[:, 1], sums, seed=seed)
    return Figure(float(values.mean()), low, high)
