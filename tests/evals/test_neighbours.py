"""Nearest neighbours, and features from any embed function."""

import jax
import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from fmjax.core.errors import ConfigError, DataError
from fmjax.evals import collect, knn, knn_votes, nearest
from fmjax.evals.neighbours import _merge


@pytest.fixture(scope="module")
def clouds():
    """Train and test examples of four overlapping classes."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 6))

    def draw(number):
        labels = rng.integers(4, size=number)
        return (centres[labels] + rng.normal(size=(number, 6))).astype(np.float32), labels

    return *draw(230), *draw(90)


def test_chunks_find_what_numpy_finds(clouds):
    bank, _, queries, _ = clouds
    unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (queries, bank)]
    cosines = unit[0] @ unit[1].T
    order = np.argsort(-cosines, -1, kind="stable")[:, :7]
    for chunks in ({}, {"query_chunk": 32, "bank_chunk": 50}, {"bank_chunk": 3}):
        found = nearest(queries, bank, 7, **chunks)
        np.testing.assert_array_equal(found.indices, order)
        np.testing.assert_allclose(
            found.cosines, np.take_along_axis(cosines, order, -1), rtol=0, atol=2e-6
        )


def test_equally_near_vectors_come_in_their_order():
    bank = np.tile([[1.0, 0.0]], (9, 1))
    for chunk in (4, 9):
        assert nearest([[2.0, 0.0]], bank, 6, bank_chunk=chunk).indices.tolist() == [[*range(6)]]
    assert nearest(np.zeros((1, 2)), bank, 2).cosines.tolist() == [[0, 0]]


def test_memory_is_that_of_the_chunks():
    """A bank of 8 chunks runs the same program as one of 2: nothing grows with it."""
    _merge.clear_cache()
    x = np.random.default_rng(0).normal(size=(800, 16)).astype(np.float32)
    nearest(x[:64], x[:200], 3, query_chunk=64, bank_chunk=100)
    assert _merge._cache_size() == 1
    nearest(x[:300], x, 3, query_chunk=64, bank_chunk=100)
    assert _merge._cache_size() == 1
    best = (jax.ShapeDtypeStruct((64, 3), np.float32), jax.ShapeDtypeStruct((64, 3), np.int32))
    chunks = [jax.ShapeDtypeStruct((n, 16), np.float32) for n in (64, 100)]
    taken = _merge.lower(best, *chunks, 0, 100).compile().memory_analysis()
    # Cosines of the chunks, sorted with their places, and little else.
    assert taken.temp_size_in_bytes < 8 * 64 * 100 * 4


@pytest.mark.parametrize("temperature", [0.07, np.inf])
def test_knn_is_that_of_scikit_learn(clouds, temperature):
    train, labels, test, truth = clouds
    figures = knn(train, labels, test, truth, ks=(1, 5, 20), temperature=temperature)
    for k, figure in figures.items():
        reference = KNeighborsClassifier(
            k, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / temperature)
        ).fit(train, labels)
        found = nearest(test, train, k)
        votes = knn_votes(found.cosines, labels[found.indices], 4, temperature=temperature)
        np.testing.assert_allclose(votes, reference.predict_proba(test), rtol=0, atol=1e-4)
        assert figure.value == reference.score(test, truth)
        assert figure.low < figure.value < figure.high


def test_features_from_an_embed_function():
    batches = [
        {"x": np.arange(6.0).reshape(3, 2), "labels": np.array([4, 5, 6]),
         "example_weight": np.array([1.0, 1.0, 1.0])},
        {"x": np.arange(6.0).reshape(3, 2), "labels": np.array([7, 0, 0]),
         "example_weight": np.array([1.0, 0.0, 0.0])},
    ]  # fmt: skip
    seen = []
    features, labels = collect(jax.jit(lambda batch: batch["x"] * 2), batches, seen.append)
    assert features.tolist() == [[0, 2], [4, 6], [8, 10], [0, 2]] and features.dtype == np.float32
    assert labels.tolist() == [4, 5, 6, 7] and seen == [3, 1]
    assert collect(lambda batch: batch["x"], [{"x": np.ones((2, 3))}])[1] is None
    with pytest.raises(DataError, match="the batches have no example"):
        collect(lambda batch: batch["x"], [])
    with pytest.raises(DataError, match=r"features of a batch are \[3\]"):
        collect(lambda batch: batch["x"][:, 0], batches)


def test_errors(clouds):
    train, labels, test, truth = clouds
    with pytest.raises(DataError, match="k 231: there are 230 vectors"):
        knn(train, labels, test, truth, ks=(231,))
    with pytest.raises(ConfigError, match="temperature 0 must be more"):
        knn(train, labels, test, truth, temperature=0)
    with pytest.raises(ConfigError, match="at least one k"):
        knn(train, labels, test, truth, ks=())
    with pytest.raises(ConfigError, match="k 0 must be at least 1"):
        knn(train, labels, test, truth, ks=(0, 1))
    with pytest.raises(ConfigError, match="chunks of 0"):
        nearest(test, train, 1, query_chunk=0)
    with pytest.raises(DataError, match="train features are 6 wide and test features 5"):
        knn(train, labels, test[:, :5], truth)
    with pytest.raises(DataError, match=r"train labels are float64\[230\] for 230 examples"):
        knn(train, labels * 1.0, test, truth)
    with pytest.raises(DataError, match="-1 is no class"):
        knn(train, labels - 1, test, truth)
    with pytest.raises(DataError, match=f"{2**31 + labels.max()} is an identifier"):
        knn(train, labels.astype(np.int64) + 2**31, test, truth)
    far = 10**8  # Votes for every number up to the last would take terabytes.
    assert knn(train, labels * far, test, truth * far) == knn(train, labels, test, truth)
    with pytest.raises(DataError, match="example 3 is not finite"):
        knn(np.where(np.arange(230)[:, None] == 3, np.nan, train), labels, test, truth)
    with pytest.raises(DataError, match=r"query features are \[0, 6\]"):
        nearest(test[:0], train, 1)
