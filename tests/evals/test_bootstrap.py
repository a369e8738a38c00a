"""Intervals by resampling."""

import math

import numpy as np
import pytest
from scipy import stats

from fmjax.core.errors import ConfigError, DataError
from fmjax.evals import (
    classification_intervals,
    classification_metrics,
    interval,
    mean_interval,
    sums_interval,
    tagging_intervals,
)
from fmjax.evals.classification import pearson


def test_of_a_mean_it_is_the_normal_one():
    right = np.arange(2000) % 5 > 0
    low, high = mean_interval(right)
    spread = 1.96 * math.sqrt(0.8 * 0.2 / 2000)
    assert (low, high) == pytest.approx((0.8 - spread, 0.8 + spread), abs=2e-3)
    slow = interval(lambda x: x.mean(), right)
    assert slow == pytest.approx((low, high), abs=3e-3)
    assert mean_interval(right) == (low, high) != mean_interval(right, seed=1)
    wide = mean_interval(right, confidence=0.99)
    assert wide[0] < low and high < wide[1]


def test_blocks_do_not_change_the_samples_much():
    # 5 M examples in one sample exceed a block, and are drawn one sample at a time.
    low, high = mean_interval(np.arange(5 << 20) % 2, resamples=2)
    assert 0.499 < low <= high < 0.501


def test_coverage():
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        low, high = mean_interval(rng.random(100) < 0.7, resamples=300, seed=seed)
        hits += low <= 0.7 <= high
    assert 0.9 <= hits / 200 <= 0.99


def test_lists_and_arrays_are_resampled_together():
    a, b = np.arange(50.0), [str(i) for i in range(50)]
    low, high = interval(lambda x, y: float(np.mean(x == np.array(y, float))), a, b, resamples=20)
    assert (low, high) == (1.0, 1.0)


def test_against_scipy():
    rng = np.random.default_rng(0)
    x = rng.normal(size=300)
    y = x + rng.normal(size=300)
    expected = stats.bootstrap(
        (x, y), lambda a, b: stats.pearsonr(a, b).statistic, paired=True, vectorized=False,
        n_resamples=1000, method="percentile", rng=rng,
    ).confidence_interval  # fmt: skip
    assert interval(pearson, x, y) == pytest.approx(tuple(expected), abs=1e-2)


def test_samples_where_the_metric_is_nan_do_not_count():
    assert all(map(math.isnan, interval(pearson, np.ones(5), np.ones(5), resamples=10)))
    low, high = interval(pearson, np.array([0.0, 0.0, 1.0]), np.array([0.0, 0.0, 1.0]))
    assert (low, high) == pytest.approx((1.0, 1.0))


def test_classification():
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=300)
    chosen = np.where(rng.random(300) < 0.8, labels, rng.integers(3, size=300))
    names = ("a", "b", "c", "never")
    found = classification_intervals(labels, chosen, names, resamples=200)
    metrics = classification_metrics(labels, chosen, names)
    for key in ("accuracy", "macro_f1", "f1/a", "f1/b", "f1/c"):
        low, high = found[key]
        assert low < metrics[key] < high and high - low < 0.2, key
    assert all(map(math.isnan, found["f1/never"]))


def test_tagging_draws_sentences():
    labels = [["B-A", "O"], ["B-A", "B-B"], ["O", "O"]] * 30
    predictions = [["B-A", "O"], ["B-A", "B-A"], ["B-B", "O"]] * 30
    found = tagging_intervals(labels, predictions)
    low, high = found["f1"]
    assert low < 2 * 60 / (90 + 120) < high
    assert found["f1/B"] == (0.0, 0.0)
    assert tagging_intervals([["O"]], [["O"]])["f1"] == (0.0, 0.0)


def test_errors():
    with pytest.raises(DataError, match="no example"):
        mean_interval([])
    with pytest.raises(DataError, match="3 examples in column 0, 2 examples in column 1"):
        interval(pearson, np.ones(3), np.ones(2))
    with pytest.raises(ConfigError, match="0 resamples"):
        mean_interval([1.0], resamples=0)
    with pytest.raises(ConfigError, match="confidence 95"):
        sums_interval(lambda x: x, [1.0], confidence=95)
