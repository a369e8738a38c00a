import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.core.errors import ConfigError
from fmjax.nn.pooling import sentence_embeddings

X = jnp.asarray(np.random.RandomState(0).randn(3, 4, 5), jnp.float32)
MASK = jnp.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1]])


def test_mean_of_the_tokens() -> None:
    got = sentence_embeddings(X, MASK, normalize=False)
    expected = [X[0].mean(0), X[1, :2].mean(0), X[2, 2:].mean(0)]
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    np.testing.assert_allclose(sentence_embeddings(X, normalize=False), X.mean(1), rtol=1e-6)


def test_first_token_also_behind_padding() -> None:
    got = sentence_embeddings(X, MASK, "cls", normalize=False)
    np.testing.assert_array_equal(got, [X[0, 0], X[1, 0], X[2, 2]])
    np.testing.assert_array_equal(sentence_embeddings(X, None, "cls", False), X[:, 0])


def test_last_token_also_before_padding() -> None:
    got = sentence_embeddings(X, MASK, "last", normalize=False)
    np.testing.assert_array_equal(got, [X[0, 3], X[1, 1], X[2, 3]])
    holes = jnp.array([[1, 0, 1, 0]] * 3)
    np.testing.assert_array_equal(sentence_embeddings(X, holes, "last", False), X[:, 2])
    for everything in (None, jnp.zeros_like(MASK)):
        np.testing.assert_array_equal(sentence_embeddings(X, everything, "last", False), X[:, 3])


def test_length_one_and_half_precision_in_float32() -> None:
    got = sentence_embeddings(X.astype(jnp.bfloat16), MASK)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(np.linalg.norm(got, axis=-1), 1, rtol=1e-6)


def test_a_row_without_tokens_is_zero() -> None:
    np.testing.assert_array_equal(sentence_embeddings(X, jnp.zeros_like(MASK)), np.zeros((3, 5)))


def test_unknown_pooling() -> None:
    with pytest.raises(ConfigError, match="'max' is unknown; choose mean, cls or last"):
        sentence_embeddings(X, MASK, "max")
