"""LARS against its definition, one matrix at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fmjax.core.errors import ConfigError
from fmjax.train import lars

RNG = np.random.RandomState(0)
STEPS, RATE, MOMENTUM, DECAY, TRUST = 4, 0.7, 0.9, 0.02, 0.01


def params():
    return {
        "params": {
            "layers": {"mlp": {"kernel": RNG.randn(3, 4, 5), "bias": RNG.randn(3, 5)}},
            "norm": {"scale": RNG.randn(5), "running_mean": RNG.randn(5)},
            "head": {"kernel": np.zeros((4, 2))},
        }
    }


def by_definition(w, grads, adapts):
    """One matrix, one step after the other."""
    v = np.zeros_like(w)
    for g in grads:
        rate = RATE
        if adapts:
            g = g + DECAY * w
            sizes = np.linalg.norm(w), np.linalg.norm(g)
            rate *= TRUST * sizes[0] / sizes[1] if min(sizes) > 0 else 1
        v = MOMENTUM * v + rate * g
        w = w - v
    return w


def test_each_matrix_has_a_rate_of_its_own():
    start = params()
    grads = [jax.tree.map(lambda x: RNG.randn(*x.shape), start) for _ in range(STEPS)]
    for g in grads:
        g["params"]["norm"]["running_mean"][:] = 0
    optimizer = lars(RATE, momentum=MOMENTUM, weight_decay=DECAY, trust_coefficient=TRUST)
    now = jax.tree.map(jnp.float32, start)
    state = optimizer.init(now)

    @jax.jit
    def step(now, state, g):
        updates, state = optimizer.update(g, state, now)
        return optax.apply_updates(now, updates), state

    for g in grads:
        now, state = step(now, state, jax.tree.map(jnp.float32, g))
    of = lambda t, *keys: of(t[keys[0]], *keys[1:]) if keys else t  # noqa: E731
    for keys in (("head", "kernel"), ("norm", "scale"), ("layers", "mlp", "bias")):
        path = ("params", *keys)
        expected = by_definition(of(start, *path), [of(g, *path) for g in grads], "kernel" in keys)
        np.testing.assert_allclose(of(now, *path), expected, rtol=1e-5, atol=1e-6, err_msg=path)
    path = ("params", "layers", "mlp", "kernel")
    for layer in range(3):
        each = [of(g, *path)[layer] for g in grads]
        expected = by_definition(of(start, *path)[layer], each, True)
        np.testing.assert_allclose(of(now, *path)[layer], expected, rtol=1e-5, atol=1e-6)
    # Running statistics are the step's affair.
    path = ("params", "norm", "running_mean")
    np.testing.assert_array_equal(of(now, *path), np.float32(of(start, *path)))


def test_numbers_out_of_range_are_refused():
    for options, said in (
        ({"learning_rate": -1.0}, "learning_rate -1.0 is negative"),
        ({"learning_rate": 1.0, "momentum": 1.0}, "momentum 1.0 must lie in"),
        ({"learning_rate": 1.0, "weight_decay": -0.1}, "weight_decay -0.1 must not be negative"),
        ({"learning_rate": 1.0, "trust_coefficient": 0}, "trust_coefficient 0 must be positive"),
    ):
        with pytest.raises(ConfigError, match=said):
            lars(**options)
    with pytest.raises(ConfigError, match="decay rule"):
        lars(0.1, decay=((r"kernel$", True),)).init(params())
