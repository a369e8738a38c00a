"""Layouts that are fixed on TPUs change no value, and are not there elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.nn import layouts
from fmjax.nn.layouts import row_major, whole

X = jnp.asarray(np.random.RandomState(0).randn(3, 4, 5), jnp.float32)


def f(x: jax.Array) -> jax.Array:
    return jnp.sum(jnp.sin(whole(row_major(x))) ** 2)


@pytest.mark.parametrize("fixed", [True, False])
def test_values_gradients_and_batches_are_the_same(
    fixed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layouts, "platform", lambda: "tpu" if fixed else "cpu")
    text = str(jax.make_jaxpr(lambda x: f(x))(X))
    assert ("layout_constraint" in text and "optimization_barrier" in text) is fixed
    gradient = jax.jit(jax.grad(lambda x: f(x)))(X)
    np.testing.assert_allclose(gradient, jnp.sin(2 * X), rtol=1e-5, atol=1e-6)
    rows = jax.jit(jax.vmap(lambda x: f(x), in_axes=1))(X)
    np.testing.assert_allclose(rows, jnp.sum(jnp.sin(X) ** 2, (0, 2)), rtol=1e-5)


def test_outside_of_jit_and_for_vectors_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layouts, "platform", lambda: "tpu")
    assert row_major(X) is X and whole(X) is X
    assert "layout_constraint" not in str(jax.make_jaxpr(row_major)(X[0, 0]))
