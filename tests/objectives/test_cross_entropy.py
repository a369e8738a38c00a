import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from fmjax.objectives.cross_entropy import is_top, nll_and_logsumexp, picked
from fmjax.parallel import make_mesh


@pytest.fixture
def case():
    rng = np.random.RandomState(0)
    logits = jnp.asarray(rng.randn(2, 5, 11) * 3, jnp.float32)
    labels = jnp.asarray(rng.randint(0, 11, (2, 5)), jnp.int32)
    weights = jnp.asarray(rng.rand(2, 5), jnp.float32)
    return logits, labels, weights


def test_value_and_gradient_match_optax(case):
    logits, labels, weights = case

    def ours(x):
        nll, logsumexp = nll_and_logsumexp(x, labels)
        return jnp.sum(weights * (nll + 1e-2 * logsumexp**2))

    def theirs(x):
        nll = optax.softmax_cross_entropy_with_integer_labels(x, labels)
        return jnp.sum(weights * (nll + 1e-2 * jax.nn.logsumexp(x, -1) ** 2))

    np.testing.assert_allclose(ours(logits), theirs(logits), rtol=1e-6)
    np.testing.assert_allclose(jax.grad(ours)(logits), jax.grad(theirs)(logits), atol=1e-6)


def test_extreme_logits_stay_finite():
    logits = jnp.array([[1e4, -1e4, 0.0]])
    nll, logsumexp = nll_and_logsumexp(logits, jnp.array([1]))
    assert nll[0] == 2e4 and logsumexp[0] == 1e4
    grad = jax.grad(lambda x: nll_and_logsumexp(x, jnp.array([1]))[0].sum())(logits)
    np.testing.assert_array_equal(grad, [[1, -1, 0]])


def test_arithmetic_is_f32_and_the_gradient_keeps_the_logits_dtype(case):
    logits, labels, _ = case
    low = logits.astype(jnp.bfloat16)
    nll, logsumexp = nll_and_logsumexp(low, labels)
    assert nll.dtype == logsumexp.dtype == jnp.float32
    expected = optax.softmax_cross_entropy_with_integer_labels(low.astype(jnp.float32), labels)
    np.testing.assert_allclose(nll, expected, rtol=1e-6)
    grad = jax.grad(lambda x: nll_and_logsumexp(x, labels)[0].sum())(low)
    assert grad.dtype == jnp.bfloat16


def test_ignored_labels_with_weight_zero_have_no_gradient(case):
    logits, labels, weights = case
    labels, weights = labels.at[0].set(-100), weights.at[0].set(0)
    grad = jax.grad(lambda x: jnp.sum(nll_and_logsumexp(x, labels)[0] * weights))(logits)
    assert not grad[0].any() and grad[1].any()


def test_backward_keeps_logits_and_one_scalar_a_token(case):
    logits, labels, _ = case
    _, pullback = jax.vjp(lambda x: nll_and_logsumexp(x, labels), logits)
    sizes = sorted(x.size for x in jax.tree.leaves(pullback))
    assert sizes == [10, 10, 110]


def test_top_counts_ties_as_wrong():
    logits = jnp.array([[0.0, 2, 1], [2, 2, 1], [0, 0, 0]])
    np.testing.assert_array_equal(is_top(logits, jnp.array([1, 1, 1])), [True, False, False])
    np.testing.assert_array_equal(picked(logits, jnp.array([1, 0, -100])), [2, 2, 0])


@pytest.mark.optimised
def test_vocabulary_stays_sharded(case):
    mesh = make_mesh(data=2, tensor=4)
    at = NamedSharding(mesh, PartitionSpec("data", None, "tensor"))
    logits = jax.ShapeDtypeStruct((2, 4, 64), jnp.float32, sharding=at)
    labels = jax.ShapeDtypeStruct((2, 4), jnp.int32)
    grad = jax.jit(jax.grad(lambda x, y: nll_and_logsumexp(x, y)[0].sum()), out_shardings=at)
    text = grad.lower(logits, labels).compile().as_text()
    assert "all-reduce" in text and "all-gather" not in text
