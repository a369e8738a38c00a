"""Features brought to one variance along the directions in which they differ."""

import numpy as np
import pytest

from fmjax.core.errors import ConfigError, DataError
from fmjax.evals import knn, whiten


@pytest.fixture(scope="module")
def features():
    """Of two classes, which one small direction tells apart, behind a large one and an offset."""
    rng = np.random.default_rng(0)

    def draw(number):
        labels = rng.integers(2, size=number)
        x = rng.normal(size=(number, 5)) * [9, 1e-3, 1e-3, 1e-3, 1e-3]
        x[:, 3] += 0.1 * labels
        return (x + 20).astype(np.float32), labels

    return *draw(120), *draw(60)


def test_the_bank_has_no_mean_and_one_variance(features):
    bank, _, queries, _ = features
    for components in (2, 5):
        turned, others = whiten(bank, queries, components)
        assert turned.shape == (120, components) and others.shape == (60, components)
        assert turned.dtype == others.dtype == np.float32
        np.testing.assert_allclose(turned.mean(0), 0, atol=1e-3)
        np.testing.assert_allclose(np.cov(turned.T), np.eye(components), atol=1e-3)


def test_queries_are_turned_as_the_bank_is(features):
    bank = features[0]
    centred = bank.astype(np.float64) - bank.mean(0, dtype=np.float64)
    lengths, axes = np.linalg.svd(centred, full_matrices=False)[1:]
    wanted = np.abs(centred[:7] @ axes[:2].T) * np.sqrt(119) / lengths[:2]
    _, found = whiten(bank, bank[:7], 2)
    np.testing.assert_allclose(np.abs(found), wanted, rtol=1e-3, atol=1e-3)


def test_directions_without_variance_are_left_out(features):
    """What comes out of a layer norm has none along (1, 1, …)."""
    bank, labels, queries, truth = features

    def normed(x):
        return (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)

    turned, others = whiten(normed(bank), normed(queries), 5)
    assert turned.shape == (120, 4) and np.abs(others).max() < 100
    turned, others = whiten(np.ones((4, 3)), queries[:, :3], 2)
    assert turned.shape == (4, 1) and others.shape == (60, 1) and not turned.any()
    assert knn(turned, [0, 0, 1, 1], others, truth, ks=(2,))[2].value <= 1


def test_neighbours_see_what_was_hidden(features):
    bank, labels, queries, truth = features
    before = knn(bank, labels, queries, truth, ks=(5,))[5].value
    bank, queries = whiten(bank, queries, 2)
    assert before < 0.8 < 0.95 < knn(bank, labels, queries, truth, ks=(5,))[5].value


def test_what_cannot_be_whitened(features):
    bank, _, queries, _ = features
    for components in (0, 6):
        with pytest.raises(ConfigError, match="least 1 and at most 5"):
            whiten(bank, queries, components)
    with pytest.raises(ConfigError, match="3 vectors of width 5 .* at most 2"):
        whiten(bank[:3], queries, 3)
    with pytest.raises(DataError):
        whiten(bank, queries[:, :4], 2)
