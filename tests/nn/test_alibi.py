"""ALiBi's slopes, places and bias, and the bias of attention."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fmjax
from fmjax.core import logical
from fmjax.nn.alibi import alibi, slopes, token_positions
from fmjax.nn.attention import attention
from fmjax.nn.masks import Mask


def test_slopes_are_those_of_the_paper() -> None:
    np.testing.assert_allclose(slopes(8), [2.0**-i for i in range(1, 9)])
    np.testing.assert_allclose(slopes(3), [2.0**-4, 2.0**-8, 2.0**-2])
    assert slopes(1) == 2.0**-8


def test_positions_count_tokens_and_padding_has_none() -> None:
    valid = jnp.array([[1, 1, 1, 1], [0, 0, 1, 1], [1, 0, 1, 0]], bool)
    np.testing.assert_array_equal(
        token_positions(valid), [[0, 1, 2, 3], [0, 0, 0, 1], [0, 0, 1, 0]]
    )


@pytest.mark.parametrize("heads", [1, 3, 8, 12, 16, 32, 71])
def test_bfloat16_bias_has_the_bits_of_the_reference(heads: int) -> None:
    """Beyond 256 positions themselves are rounded."""
    import torch
    from transformers.models.falcon.modeling_falcon import build_alibi_tensor

    mask = np.ones((2, 1100), np.int64)
    mask[1, :37] = 0
    theirs = build_alibi_tensor(torch.tensor(mask), heads, torch.float32).numpy()
    bias = jax.jit(lambda valid: alibi(heads, token_positions(valid), jnp.bfloat16))
    ours = bias(jnp.asarray(mask, bool))
    assert ours.dtype == jnp.float32
    np.testing.assert_array_equal(ours, theirs.reshape(2, heads, 1, 1100))


def test_full_precision_is_the_product() -> None:
    positions = jnp.arange(700)[None]
    np.testing.assert_allclose(
        alibi(6, positions)[0, :, 0], slopes(6)[:, None] * np.arange(700), rtol=1e-6
    )


class Attend(nn.Module):
    @nn.compact
    def __call__(self, q, k, v, offset, bias):
        return attention(self, q, k, v, Mask(offset=offset), bias=bias)


def inputs(heads: int, groups: int, queries: int, keys: int):
    shapes = (2, queries, heads, 4), (2, keys, groups, 4), (2, keys, groups, 4)
    return [jax.random.normal(jax.random.key(i), s) for i, s in enumerate(shapes)]


@pytest.mark.parametrize("shape", [(2, 6, 1, 9), (1, 6, 1, 7), (2, 6, 3, 7)])
@pytest.mark.parametrize("queries", [1, 3])
def test_attention_adds_its_bias_to_the_scaled_scores(queries: int, shape) -> None:
    if shape[2] > queries:
        shape = (*shape[:2], queries, shape[3])
    q, k, v = inputs(6, 2, queries, 7)
    bias = jax.random.normal(jax.random.key(3), shape)
    offset = 7 - queries
    k6, v6 = (jnp.repeat(x, 3, axis=2) for x in (k, v))
    scores = jnp.einsum("bthk,bshk->bhts", q, k6) / 2 + bias[..., :7]
    seen = jnp.arange(7) <= jnp.arange(queries)[:, None] + offset
    probs = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), -1)
    expected = jnp.einsum("bhts,bshk->bthk", probs, v6).reshape(2, queries, 24)
    np.testing.assert_allclose(Attend().apply({}, q, k, v, offset, bias), expected, atol=1e-5)


def test_one_key_value_head_is_whole_on_every_device() -> None:
    mesh = fmjax.make_mesh(data=2, tensor=4)
    q, k, v = inputs(4, 1, 5, 5)
    expected = Attend().apply({}, q, k, v, 0, None)
    with logical.use(mesh, fmjax.parallel.DEFAULT_RULES):
        ours = jax.jit(lambda q, k, v: Attend().apply({}, q, k, v, 0, None))(q, k, v)
    np.testing.assert_allclose(ours, expected, atol=1e-5)
