"""The reference attention: its own derivative against softmax's, and what it needs saved."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.nn.attention_xla import xla
from fmjax.nn.masks import Mask


def plain(q, k, v, bias, softcap, allowed):
    """softmax(q kᵀ) v, written out and left to JAX's own derivatives."""
    k, v = (jnp.repeat(x, q.shape[1] // x.shape[1], axis=1) for x in (k, v))
    scores = jnp.einsum("bhtk,bhsk->bhts", q, k)
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias
    if allowed is not None:
        scores = jnp.where(allowed, scores, jnp.finfo(jnp.float32).min)
    y = jnp.einsum("bhts,bhsk->bthk", jax.nn.softmax(scores, axis=-1), v)
    return y.reshape(*y.shape[:2], -1)


@pytest.mark.parametrize(
    ("groups", "T", "S", "biased", "softcap", "causal"),
    [
        (4, 7, 7, False, None, False),
        (2, 7, 7, False, None, True),
        (1, 5, 5, True, 3.0, True),
        (2, 1, 6, True, None, False),
    ],
)
def test_both_derivatives_are_those_of_softmax(groups, T, S, biased, softcap, causal):
    keys = jax.random.split(jax.random.key(0), 7)
    shapes = (2, 4, T, 3), (2, groups, S, 3), (2, groups, S, 3)
    qkv = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=False)]
    tangents = [jax.random.normal(key, x.shape) for key, x in zip(keys[3:6], qkv, strict=True)]
    bias = jax.random.normal(keys[6], (1, 4, T, S)) if biased else None
    allowed = jnp.tril(jnp.ones((T, S), bool)) if causal else None

    def ours(q, k, v):
        return xla(q, k, v, Mask(causal=causal), bias, softcap)

    def theirs(q, k, v):
        return plain(q, k, v, bias, softcap, allowed)

    y, pushed = jax.jvp(ours, qkv, tangents)
    y2, pushed2 = jax.jvp(theirs, qkv, tangents)
    np.testing.assert_allclose(y, y2, atol=1e-6)
    np.testing.assert_allclose(pushed, pushed2, atol=3e-6)
    dy = jax.random.normal(keys[0], y.shape)
    pulled, pulled2 = (jax.vjp(f, *qkv)[1](dy) for f in (ours, theirs))
    for own, other in zip(pulled, pulled2, strict=True):
        np.testing.assert_allclose(own, other, atol=3e-6)


def test_saved_by_name_the_result_is_not_computed_again():
    q, k, v = (
        jax.random.normal(key, (1, 2, 5, 3)) for key in jax.random.split(jax.random.key(0), 3)
    )
    save = jax.checkpoint_policies.save_only_these_names("attention")

    def loss(q, k, v):
        return (xla(q, k, v, Mask()) ** 2).sum()

    graph = jax.make_jaxpr(jax.grad(jax.checkpoint(loss, policy=save), (0, 1, 2)))(q, k, v)
    # Forward q kᵀ and p v; backward q kᵀ again, and the gradients of p, v, q and k.
    assert str(graph).count("dot_general") == 7


def test_the_result_keeps_the_dtype_of_the_values():
    q, k, v = (
        jax.random.normal(key, (1, 2, 5, 4), "bfloat16")
        for key in jax.random.split(jax.random.key(0), 3)
    )
    y, pull = jax.vjp(lambda *qkv: xla(*qkv, Mask()), q, k, v)
    assert y.dtype == "bfloat16"
    assert {x.dtype.name for x in pull(jnp.ones_like(y))} == {"bfloat16"}
