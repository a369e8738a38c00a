"""The monitors of collapse against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.objectives import collapse

RNG = np.random.RandomState(0)
X = RNG.randn(40, 6).astype(np.float32) * np.array([3, 2, 1, 1, 0.5, 0.1], np.float32) + 0.3
WEIGHT = np.ones(40, np.float32)
WEIGHT[-8:] = 0
KEPT = X[:-8].astype(np.float64)


def test_the_rank_is_that_of_the_singular_values():
    values = np.linalg.svd(KEPT, compute_uv=False)
    shares = values / values.sum()
    expected = np.exp(-(shares * np.log(shares)).sum())
    np.testing.assert_allclose(collapse.embedding_rank(X, WEIGHT), expected, rtol=1e-4)


@pytest.mark.parametrize("rank", [1, 3])
def test_the_rank_of_a_collapsed_batch_is_the_number_of_its_directions(rank):
    # Equal singular values.
    left, _ = np.linalg.qr(RNG.randn(50, rank))
    right, _ = np.linalg.qr(RNG.randn(8, rank))
    x = (left @ right.T).astype(np.float32)
    np.testing.assert_allclose(collapse.embedding_rank(x), rank, rtol=1e-4)
    np.testing.assert_allclose(collapse.embedding_rank(x[:5]), min(rank, 5), atol=0.5)


def test_the_rank_of_many_rows_around_a_far_centre():
    """Small directions beside a large one stay, however many rows there are."""
    x = np.random.RandomState(1).randn(20_000, 8).astype(np.float32)
    x[:, 0] += 30
    values = np.linalg.svd(x.astype(np.float64), compute_uv=False)
    shares = values / values.sum()
    expected = np.exp(-(shares * np.log(shares)).sum())
    np.testing.assert_allclose(collapse.embedding_rank(x), expected, rtol=1e-3)


@pytest.mark.parametrize(("rows", "noise"), [(500, 0.1), (100, 0.2)])
def test_the_rank_of_wide_embeddings_around_a_common_mean(rows, noise):
    rng = np.random.RandomState(2)
    mean = rng.randn(256)
    x = mean / np.linalg.norm(mean) + noise * rng.randn(rows, 256) / 16
    values = np.linalg.svd(x.astype(np.float32).astype(np.float64), compute_uv=False)
    shares = values / values.sum()
    expected = np.exp(-(shares * np.log(shares)).sum())
    assert expected > 30
    np.testing.assert_allclose(collapse.embedding_rank(x.astype(np.float32)), expected, rtol=1e-3)


def test_a_batch_that_is_all_filling_counts_for_nothing():
    p, none = np.full((3, 4), 0.25, np.float32), np.zeros(3, np.float32)
    found = [collapse.centre_norm(p, none), collapse.embedding_spread(p, none)]
    assert np.isfinite([*found, *collapse.teacher_entropies(p, none)]).all()


def test_centre_and_spread():
    unit = KEPT / np.linalg.norm(KEPT, axis=1, keepdims=True)
    norm = np.linalg.norm(unit.mean(0))
    spread = np.sqrt(6) * unit.std(0).mean()
    np.testing.assert_allclose(collapse.centre_norm(X, WEIGHT), norm, rtol=1e-5)
    np.testing.assert_allclose(collapse.embedding_spread(X, WEIGHT), spread, rtol=1e-5)
    point = np.tile(X[:1], (16, 1)) * np.arange(1, 17, dtype=np.float32)[:, None]
    np.testing.assert_allclose(collapse.centre_norm(point), 1, rtol=1e-6)
    np.testing.assert_allclose(collapse.embedding_spread(point), 0, atol=1e-6)
    even = np.concatenate([np.eye(6), -np.eye(6)]).astype(np.float32)
    assert collapse.centre_norm(even) < 1e-6
    np.testing.assert_allclose(collapse.embedding_spread(even), 1, rtol=1e-6)


def test_the_entropies_tell_both_collapses_of_a_teacher():
    p = np.exp(X)
    p /= p.sum(1, keepdims=True)
    kept = p[:-8].astype(np.float64)
    each, mean = collapse.teacher_entropies(p, WEIGHT)
    np.testing.assert_allclose(each, -(kept * np.log(kept)).sum(1).mean(), rtol=1e-5)
    of_mean = kept.mean(0)
    np.testing.assert_allclose(mean, -(of_mean * np.log(of_mean)).sum(), rtol=1e-5)
    one_class = np.tile(np.eye(5, dtype=np.float32)[:1], (7, 1))
    assert collapse.teacher_entropies(one_class) == (0, 0)
    uniform = np.full((7, 5), 0.2, np.float32)
    np.testing.assert_allclose(collapse.teacher_entropies(uniform), np.log(5), rtol=1e-6)


def test_none_has_a_gradient():
    def total(x):
        return collapse.embedding_rank(x) + collapse.centre_norm(x) + collapse.embedding_spread(x)

    np.testing.assert_array_equal(jax.grad(total)(jnp.asarray(X)), 0)
