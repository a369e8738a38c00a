"""What cuDNN is asked for, computed by the other implementation of the same function of JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.nn.attention_cudnn import cudnn, plain
from fmjax.nn.attention_xla import xla
from fmjax.nn.masks import Mask

B, H, G, T, K = 2, 4, 2, 12, 8
texts = jnp.asarray(np.repeat([[1, 2, 3]], B, 0).repeat(4, 1))
valid = jnp.arange(T)[None] < jnp.array([[12], [9]])

MASKS = {
    "causal": (Mask(), True),
    "everything": (Mask(causal=False), True),
    "window": (Mask(window=5), True),
    "window over all": (Mask(window=2**31 - 1), True),
    "moving window": (Mask(window=jnp.int32(5)), False),
    "window in both directions": (Mask(window=5, causal=False), False),
    "packed and padded": (Mask(segments=(texts, texts), valid=valid), False),
    "padding in both directions": (Mask(valid=valid, causal=False), False),
    "virtual": (Mask(virtual=2), False),
}


@pytest.mark.parametrize("name", MASKS)
def test_arguments_mean_what_the_reference_means(name, monkeypatch) -> None:
    mask, known = MASKS[name]
    asked = []
    other = jax.nn.dot_product_attention

    def call(*args, implementation, **options):
        asked.append((implementation, options["mask"] is None))
        return other(*args, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", call)
    rng = np.random.default_rng(0)
    S = T + mask.virtual
    shapes = [(B, H, T, K), (B, G, S, K), (B, G, S, K)]
    q, k, v = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes)
    np.testing.assert_allclose(cudnn(q, k, v, mask), xla(q, k, v, mask), atol=1e-5)
    assert asked == [("cudnn", known)] and plain(mask, T, S) == known
