"""Heads that do not fall evenly on a tensor axis."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.core import logical
from fmjax.nn.uneven_heads import repeat_kv_heads
from fmjax.parallel import DEFAULT_RULES, make_mesh

B, S, K = 2, 4, 8


@pytest.mark.parametrize(
    ("heads", "kv", "tensor", "repeated"),
    [
        (8, 2, 4, 4),  # fewer than devices
        (6, 3, 2, 6),  # more, unevenly
        (12, 6, 4, 12),
        (8, 4, 4, 4),  # even
        (8, 1, 4, 1),  # one serves all
        (6, 3, 4, 3),  # query heads do not divide either
    ],
)
def test_kv_heads_are_repeated_until_they_divide(heads, kv, tensor, repeated) -> None:
    x = np.arange(B * kv * S * K, dtype=np.float32).reshape(B, kv, S, K)
    k, v = repeat_kv_heads(x, 2 * x, heads)
    assert k is x  # outside a mesh
    mesh = make_mesh(tensor=tensor)

    @jax.jit
    def f(x):
        with logical.use(mesh, (("batch", None), *DEFAULT_RULES)):
            return repeat_kv_heads(x, 2 * x, heads)

    k, v = f(x)
    assert k.shape == (B, repeated, S, K)
    # Query head h reads key–value head h // (H / G), as before.
    for h in range(heads):
        np.testing.assert_array_equal(k[:, h * repeated // heads], x[:, h * kv // heads])
    np.testing.assert_array_equal(v, 2 * k)
    if repeated > kv:
        assert k.addressable_shards[0].data.shape[1] == repeated // tensor


@pytest.mark.optimised
@pytest.mark.parametrize(("kv", "tensor"), [(2, 4), (3, 2), (1, 4)])
def test_no_head_of_a_query_travels(kv: int, tensor: int) -> None:
    import fmjax

    heads = 12
    config = {"model_type": "llama", "vocab_size": 64, "hidden_size": 48, "intermediate_size": 48}
    config |= {"num_hidden_layers": 1, "num_attention_heads": heads, "num_key_value_heads": kv}
    model = fmjax.build(config, scan_layers=False)
    mesh = make_mesh(tensor=tensor)

    def forward(params, ids):
        with logical.use(mesh, DEFAULT_RULES):
            return model.apply({"params": params}, input_ids=ids).logits

    specs = fmjax.abstract_params(model)
    shardings = fmjax.parallel.param_shardings(specs, mesh, DEFAULT_RULES)
    params = jax.tree.map(
        lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), specs, shardings
    )
    rows = 8 // tensor
    ids = jax.ShapeDtypeStruct((rows, 32), jnp.int32)
    text = jax.jit(forward).lower(params, ids).compile().as_text()
    # Scores end in [T, S], and one row of the batch is on each device.
    scores = [math.prod(map(int, m.split(","))) for m in re.findall(r"f32\[([\d,]+),32,32\]", text)]
    assert scores
    assert max(scores) == heads // tensor
