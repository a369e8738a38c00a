"""Splash attention against the reference, in Pallas' interpreter."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.nn.attention_splash import block_size, splash
from fmjax.nn.attention_xla import xla
from fmjax.nn.masks import Mask

T, K, H = 133, 8, 2
valid = np.ones((2, T), bool)
valid[0, 100:] = False
valid[1, :9] = False
texts = jnp.asarray(np.array([[1] * 61 + [2] * 60 + [0] * 12, [1] * 3 + [2] * 3 + [3] * 127]))

MASKS = {
    "causal": Mask(),
    "everything": Mask(causal=False),
    "window": Mask(window=20),
    "both directions in a window": Mask(window=20, causal=False),
    "padding": Mask(valid=jnp.asarray(valid)),
    "padding in both directions": Mask(valid=jnp.asarray(valid), causal=False),
    "segments, window, padding": Mask(segments=(texts, texts), window=9, valid=jnp.asarray(valid)),
    "one of several windows": Mask(window=jnp.int32(20), windows=(9, 20, 2**31 - 1)),
    "the largest of several": Mask(window=jnp.int32(2**31 - 1), windows=(9, 2**31 - 1)),
    "virtual": Mask(virtual=3),
    "virtual, padding": Mask(virtual=3, valid=jnp.asarray(valid)),
    "virtual in a window": Mask(virtual=3, window=40),
}


def compare(mask, groups=1, softcap=None):
    rng = np.random.default_rng(0)
    S = T + mask.virtual
    shapes = [(2, H, T, K), (2, groups, S, K), (2, groups, S, K), (2, T, H * K)]
    q, k, v, dout = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes)
    # Nothing is to be made of queries that are padding.
    keep = jnp.ones((2, T), bool) if mask.valid is None else mask.valid
    dout = dout * keep[..., None] / T

    @functools.partial(jax.jit, static_argnums=0)
    def of(f, q, k, v):
        def loss(*a):
            out = f(*a, mask, softcap=softcap)
            return (out * dout).sum(), out

        return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(q, k, v)

    (_, expected), wanted = of(xla, q, k, v)
    (_, found), grads = of(functools.partial(splash, interpret=True), q, k, v)
    np.testing.assert_allclose(found[keep], expected[keep], rtol=0, atol=1e-5)
    for name, a, b in zip("qkv", grads, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=name)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("name", MASKS)
def test_masks(name) -> None:
    compare(MASKS[name])


def test_groups_and_softcap() -> None:
    compare(Mask(), groups=2, softcap=0.7)


def test_blocks_fit_the_length_and_the_head() -> None:
    assert [block_size(n, 128) for n in (5, 640, 768, 1000, 4096)] == [128, 128, 256, 1024, 1024]
    assert [block_size(4096, n) for n in (64, 256)] == [1024, 512]
