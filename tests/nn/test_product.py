"""Products with weights: the same numbers as matrices and as they are, matrices on a CPU alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.core import logical
from fmjax.nn.product import product
from fmjax.parallel import DEFAULT_RULES, make_mesh

# Shape of x, of the weight, whether K is the weight's last dimension.
CASES = {
    "matrix": ((2, 3, 4), (4, 5), False),
    "fused": ((2, 3, 4), (4, 3, 5), False),
    "tied": ((2, 3, 4), (5, 4), True),
    "fused, K last": ((2, 3, 4), (5, 2, 4), True),
    "vector": ((4,), (4, 5), False),
    "no rows": ((0, 3, 4), (4, 5), False),
    "image": ((2, 3, 3, 4), (4, 5), False),
}


def operands(x_shape: tuple[int, ...], w_shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    x, w = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate((x_shape, w_shape)))
    return x, w


def dots(f, *args) -> list[tuple[int, int]]:
    """Ranks of the operands of each product that f and its gradient take."""
    jaxpr = jax.make_jaxpr(jax.grad(lambda *a: f(*a).sum(), argnums=(0, 1)))(*args)
    return [
        tuple(v.aval.ndim for v in eqn.invars)
        for eqn in jaxpr.eqns
        if eqn.primitive.name == "dot_general"
    ]


@pytest.mark.parametrize("case", CASES)
def test_values_and_both_modes_of_derivative_are_those_of_tensordot(case: str) -> None:
    x_shape, w_shape, last = CASES[case]
    x, w = operands(x_shape, w_shape)

    def plain(x: jax.Array, w: jax.Array) -> jax.Array:
        return jnp.tensordot(x, jnp.moveaxis(w, -1, 0) if last else w, 1)

    def ours(x: jax.Array, w: jax.Array) -> jax.Array:
        return product(x, w, last=last)

    expected, pull = jax.vjp(plain, x, w)
    got, our_pull = jax.vjp(ours, x, w)
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, atol=1e-6)
    dy = jax.random.normal(jax.random.key(2), expected.shape)
    for a, b in zip(our_pull(dy), pull(dy), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    tangents = operands(x_shape, w_shape)
    pushed = (jax.jvp(f, (x, w), tangents)[1] for f in (ours, plain))
    np.testing.assert_allclose(*pushed, atol=1e-5)


def test_sums_and_result_have_the_type_asked_for() -> None:
    x, w = (a.astype(jnp.bfloat16) for a in operands((2, 3, 4), (4, 5)))
    assert product(x, w).dtype == jnp.bfloat16
    assert product(x, w, jnp.float32).dtype == jnp.float32


@pytest.mark.parametrize("last", [False, True])
def test_on_a_cpu_alone_every_product_is_one_of_two_matrices(last: bool) -> None:
    args = operands((2, 3, 4), (5, 4) if last else (4, 3, 5))
    found = dots(functools.partial(product, last=last), *args)
    assert found == [(2, 2)] * 3


def test_a_mesh_keeps_the_dimensions_apart() -> None:
    args = operands((8, 4, 4), (4, 5))
    mesh = make_mesh(data=4, context=2)
    with logical.use(mesh, DEFAULT_RULES):
        assert (3, 2) in dots(product, *args)
    alone = make_mesh(devices=jax.devices()[:1])
    with logical.use(alone, DEFAULT_RULES):
        assert dots(product, *args) == [(2, 2)] * 3
