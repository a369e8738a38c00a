"""What is said to the compiler about memory changes no number."""

import jax
import jax.numpy as jnp
import numpy as np

from fmjax.nn.at_use import at_use
from fmjax.nn.backward import together
from fmjax.nn.rope import rotate


def test_a_weight_is_cast_forward_and_its_gradient_back() -> None:
    w = jax.random.normal(jax.random.key(0), (5, 7))
    low = at_use(w, jnp.bfloat16)
    np.testing.assert_array_equal(low, w.astype(jnp.bfloat16))
    assert at_use(w, jnp.float32) is w
    grad = jax.grad(lambda w: jnp.sum(at_use(w, jnp.bfloat16).astype(jnp.float32) * 3))(w)
    assert grad.dtype == jnp.float32 and np.all(grad == 3)
    half = w.astype(jnp.float16)
    np.testing.assert_array_equal(at_use(half, jnp.bfloat16), half.astype(jnp.bfloat16))


def test_gradients_wait_for_each_other_only_where_both_are_wanted() -> None:
    x, w = jnp.arange(3.0), jnp.full(3, 2.0)

    def loss(x: jax.Array, w: jax.Array) -> jax.Array:
        x, w = together(x, w)
        return jnp.sum(jnp.sin(x * w))

    both = jax.grad(loss, (0, 1))
    for got, want in zip(both(x, w), (w * jnp.cos(x * w), x * jnp.cos(x * w)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)
    assert "optimization_barrier" in str(jax.make_jaxpr(both)(x, w))
    for argument in (0, 1):
        one = jax.grad(loss, argument)
        np.testing.assert_allclose(one(x, w), both(x, w)[argument], rtol=1e-6)
        assert "optimization_barrier" not in str(jax.make_jaxpr(one)(x, w))


def test_the_gradient_of_a_rotation_is_rotated_back() -> None:
    keys = jax.random.split(jax.random.key(1), 3)
    x, dy = (jax.random.normal(key, (2, 4, 3, 10)) for key in keys[:2])
    angle = jax.random.normal(keys[2], (2, 4, 1, 4))  # 8 of 10 dimensions turn.
    tables = jnp.cos(angle), jnp.sin(angle)

    def plain(x: jax.Array) -> jax.Array:
        x1, x2, rest = x[..., :4], x[..., 4:8], x[..., 8:]
        cos, sin = tables
        return jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin, rest], -1)

    y, pull = jax.vjp(lambda x: rotate(x, *tables), x)
    want, expected = jax.vjp(plain, x)
    np.testing.assert_allclose(y, want, atol=1e-6)
    np.testing.assert_allclose(pull(dy)[0], expected(dy)[0], atol=1e-6)
    low = jax.grad(lambda x: rotate(x, *tables).astype(jnp.float32).sum())(x.astype(jnp.bfloat16))
    assert low.dtype == jnp.bfloat16
