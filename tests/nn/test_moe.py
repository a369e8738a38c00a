import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.core.execution import Execution
from fmjax.nn.grouped import grouped_matmul
from fmjax.nn.moe import SparseMoE, route


@pytest.mark.parametrize(
    "sizes", [[3, 0, 40, 7], [0, 0, 0, 50], [1, 1, 1, 1], [0, 2, 0, 0], [17, 16, 15, 2]]
)
def test_grouped_products_and_their_gradients(sizes):
    """Against one product a row; rows after the last group give zeros and get no gradient."""
    rows, keys = 50, jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (rows, 5))
    w = jax.random.normal(keys[1], (4, 5, 3))
    dy = jax.random.normal(keys[2], (rows, 3))
    used, group = sum(sizes), np.repeat(np.arange(4), sizes)

    def plain(x, w):
        y = jnp.einsum("nd,ndf->nf", x[:used], w[group])
        return jnp.pad(y, ((0, rows - used), (0, 0)))

    y, vjp = jax.vjp(lambda x, w: grouped_matmul(x, w, jnp.array(sizes)), x, w)
    expected, plain_vjp = jax.vjp(plain, x, w)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    for a, b in zip(vjp(dy), plain_vjp(dy), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_route_takes_the_most_probable_experts_and_renormalises():
    weights, chosen = route(jnp.log(jnp.array([[0.1, 0.5, 0.1, 0.3]])), 2)
    np.testing.assert_array_equal(chosen, [[1, 3]])
    np.testing.assert_allclose(weights, [[0.625, 0.375]], rtol=1e-6)


@pytest.mark.parametrize("skew", [0.0, 100.0])
def test_no_token_is_dropped_however_uneven_the_routing(skew):
    """Every token gets the sum of its own experts, even if all go to the same two."""
    layer = SparseMoE(experts=4, experts_per_token=2, features=6)
    x = jax.random.normal(jax.random.key(0), (3, 7, 5)).at[..., 0].set(1.0)
    params = layer.init(jax.random.key(1), x)["params"]
    params["gate"]["weight"] = params["gate"]["weight"].at[0, 2:].add(skew)
    params = jax.tree.map(lambda a: a * 10, params)
    y, logits = layer.apply({"params": params}, x)
    weights, chosen = route(logits, 2)
    if skew:
        assert set(np.unique(chosen)) == {2, 3}
    p = params["experts"]
    hidden = jax.nn.silu(jnp.einsum("btd,edf->btef", x, p["gate_proj"]["weight"]))
    hidden *= jnp.einsum("btd,edf->btef", x, p["up_proj"]["weight"])
    every = jnp.einsum("btef,efd->bted", hidden, p["down_proj"]["weight"])
    expected = jnp.einsum(
        "btkd,btk->btd", jnp.take_along_axis(every, chosen[..., None], 2), weights
    )
    assert float(jnp.abs(expected).max()) > 0.1
    np.testing.assert_allclose(y, expected, atol=1e-4, rtol=1e-5)


def test_weights_of_router_and_experts_are_cast_where_they_are_used():
    """As those of other layers, see `fmjax.nn.at_use`: no copy of the stack in bfloat16."""
    layer = SparseMoE(4, 2, 12, execution=Execution(dtype="bfloat16"))
    x = jnp.ones((2, 5, 8), jnp.bfloat16)
    variables = layer.init(jax.random.key(0), x)
    assert str(jax.make_jaxpr(layer.apply)(variables, x)).count("optimization_barrier") == 4
