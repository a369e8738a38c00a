"""Blockwise attention against the reference: outputs, gradients, memory, and its pieces."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.nn import attention_blockwise as bw
from fmjax.nn.attention_blocks import visible_blocks
from fmjax.nn.attention_xla import xla
from fmjax.nn.masks import Mask
from fmjax.nn.prompt_port import more_slots

T, K, H = 37, 8, 4
valid = np.ones((2, T), bool)
valid[0, 30:] = False
valid[1, :5] = False
segments = np.array([[1] * 11 + [2] * 20 + [0] * 6, [1] * 3 + [2] * 3 + [3] * 31])
both = (jnp.asarray(segments), jnp.asarray(segments))
V = jnp.asarray(valid)
lengths = jnp.array([3, 20])

MASKS = {
    "causal": Mask(),
    "everything": Mask(causal=False),
    "window": Mask(window=9),
    "traced window": Mask(window=jnp.int32(9)),
    "no window": Mask(window=jnp.int32(2**31 - 1)),
    "both directions in a window": Mask(window=9, causal=False),
    "padding": Mask(valid=V),
    "padding in both directions": Mask(valid=V, causal=False),
    "segments": Mask(segments=both),
    "segments, window, padding": Mask(segments=both, window=4, valid=V),
    "segments in both directions": Mask(segments=both, causal=False),
    "prefix": Mask(prefix=lengths),
    "prefix, window, padding": Mask(prefix=lengths, window=5, valid=V),
    "virtual": Mask(virtual=3),
    "virtual, segments": Mask(virtual=3, segments=both),
    "virtual, window, padding": Mask(virtual=3, window=6, valid=V),
    "virtual, window, segments": Mask(virtual=3, window=6, segments=both),
    "shared, window, segments": more_slots(3, Mask(window=6, segments=both)),
    "later queries": Mask(offset=jnp.int32(20), valid=jnp.ones((2, 64), bool)),
}


def inputs(mask, groups=2, dtype=jnp.float32):
    """q (scaled), k, v and an output cotangent, zero in rows that see nothing."""
    P = mask.virtual
    queries = T + mask.shared if mask.shared else T
    keys = 64 if mask.valid is not None and mask.valid.shape[1] == 64 else queries + P
    rng = np.random.default_rng(0)
    shapes = [(2, H, queries, K), (2, groups, keys, K), (2, groups, keys, K), (2, queries, H * K)]
    q, k, v, dout = (jnp.asarray(rng.normal(size=s), dtype) for s in shapes)
    dense = mask.dense(queries, keys)
    if dense is not None:
        sees = jnp.broadcast_to(dense.any(-1)[:, 0], (2, queries))
        dout = dout * sees[..., None]
    return q, k, v, dout


def compare(mask, bias=None, softcap=None, groups=2, blocks=(8, 16)):
    q, k, v, dout = inputs(mask, groups)
    arrays = (q, k, v) if bias is None else (q, k, v, bias)

    def of(f):
        def loss(*a):
            out = f(*a[:3], mask, a[3] if bias is not None else None, softcap)
            return (out * dout).sum(), out

        return jax.jit(jax.value_and_grad(loss, tuple(range(len(arrays))), has_aux=True))

    def ours(q, k, v, mask, bias, softcap):
        return bw.blockwise(q, k, v, mask, bias, softcap, blocks)

    (_, expected), wanted = of(xla)(*arrays)
    (_, found), grads = of(ours)(*arrays)
    keep = (dout != 0).any(-1)
    np.testing.assert_allclose(found[keep], expected[keep], rtol=0, atol=1e-5)
    for name, a, b in zip("qkvb", grads, wanted, strict=False):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=name)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("name", MASKS)
def test_masks(name) -> None:
    compare(MASKS[name])


@pytest.mark.parametrize("groups", [1, 4])
def test_groups(groups) -> None:
    compare(Mask(valid=V), groups=groups)


@pytest.mark.parametrize("blocks", [None, (37, 5), (5, 37), (64, 64)])
def test_blocks_of_any_size(blocks) -> None:
    compare(Mask(segments=both), blocks=blocks)


@pytest.mark.parametrize("shape", [(1, H, 1, T), (2, H, 1, T + 4), (1, H, T, T), (2, H, T, T)])
def test_bias(shape) -> None:
    compare(Mask(valid=V), jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32))


def test_a_bias_whose_exponential_overflows() -> None:
    # Falcon's ALiBi grows with the position. T is no multiple of the blocks.
    compare(Mask(), jnp.broadcast_to(2.5 * jnp.arange(T), (1, H, 1, T)))


def test_softcap() -> None:
    compare(Mask(), softcap=0.7)
    compare(Mask(window=5), jnp.ones((1, H, 1, T)), softcap=2.0)


def test_rows_that_see_nothing_are_zero() -> None:
    mask = Mask(valid=V)
    q, k, v, _ = inputs(mask)
    grads = jax.grad(lambda *a: bw.blockwise(*a, mask).sum(), (0, 1, 2))(q, k, v)
    assert not np.asarray(bw.blockwise(q, k, v, mask))[1, :5].any()
    assert all(np.isfinite(g).all() for g in grads) and not np.asarray(grads[0])[1, :, :5].any()


def test_bfloat16_is_as_close_as_the_reference() -> None:
    q, k, v, _ = inputs(Mask(), dtype=jnp.bfloat16)
    exact = xla(*(x.astype(jnp.float32) for x in (q, k, v)), Mask())
    ours, theirs = bw.blockwise(q, k, v, Mask(), blocks=(8, 8)), xla(q, k, v, Mask())
    assert ours.dtype == jnp.bfloat16
    error = [np.abs(x.astype(jnp.float32) - exact).max() for x in (ours, theirs)]
    assert error[0] <= 1.1 * error[1]


def test_attention_to_two_sets_of_keys_joins() -> None:
    """What a ring of devices does: shuffled queries and keys, one set of keys after the other."""
    mask = Mask(segments=both)
    q, k, v, dout = inputs(mask)
    q, dout = q.reshape(2, 2, 2, T, K), jnp.moveaxis(dout.reshape(2, T, 2, 2, K), 1, 3)
    whole = mask.sight(T, T)
    out, lse = bw.forward(q, k, v, whole)
    delta = (out * dout).sum(-1)
    expected = bw.backward(q, k, v, whole, None, None, lse, delta, dout)
    rng = np.random.default_rng(3)
    mine, keys = rng.permutation(T), np.split(rng.permutation(T), [9])
    parts, sights = [], []
    for their in keys:
        sight = whole.queries(lambda x: x[:, mine]).keys(lambda x, at=their: x[:, at])
        sights.append(sight)
        part = bw.forward(q[..., mine, :], k[:, :, their], v[:, :, their], sight, blocks=(8, 8))
        parts.append(part)
    joined = bw.join(*parts)
    np.testing.assert_allclose(joined[0], out[..., mine, :], atol=1e-5)
    np.testing.assert_allclose(joined[1], lse[..., mine], atol=1e-5)
    dq = 0
    for their, sight in zip(keys, sights, strict=True):
        some = (q[..., mine, :], k[:, :, their], v[:, :, their], sight, None, None)
        grads = bw.backward(*some, joined[1], delta[..., mine], dout[..., mine, :])
        dq += grads[0]
        np.testing.assert_allclose(grads[1], expected[1][:, :, their], atol=1e-5)
        np.testing.assert_allclose(grads[2], expected[2][:, :, their], atol=1e-5)
    np.testing.assert_allclose(dq, expected[0][..., mine, :], atol=1e-5)


def temporaries(length: int, f) -> int:
    x = jax.ShapeDtypeStruct((1, 2, length, 16), jnp.float32)
    grad = jax.jit(jax.grad(lambda q, k, v: f(q, k, v, Mask()).sum(), (0, 1, 2)))
    return grad.lower(x, x, x).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.optimised
def test_temporaries_grow_with_the_length_not_its_square() -> None:
    short, long = (temporaries(n, bw.blockwise) for n in (2048, 8192))
    assert long < 4.5 * short
    assert 20 * long < temporaries(8192, xla)


def test_blocks_that_nobody_sees_are_skipped() -> None:
    def visited(mask, n=64):
        return int(visible_blocks(mask.sight(n, n), 8, 8).sum())

    assert visited(Mask(causal=False)) == 64
    assert visited(Mask()) == 36
    assert visited(Mask(window=jnp.int32(8))) == 15
    texts = jnp.repeat(jnp.arange(4), 16)[None]
    assert visited(Mask(segments=(texts, texts))) == 4 * 3
    assert visited(Mask(valid=jnp.arange(64)[None] < 16)) == 15
