"""Ring attention against the reference, which holds all scores."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import QUICK

from fmjax.core import logical
from fmjax.nn import prefix_port, sequence
from fmjax.nn.attention_xla import xla
from fmjax.nn.masks import Mask
from fmjax.nn.ring_attention import ring_attention
from fmjax.parallel import DEFAULT_RULES, make_mesh

B, H, G, T, K = 2, 4, 2, 48, 8


def reference(q, k, v, prefix, bias, mask, softcap):
    if prefix is not None:
        k, v = (prefix_port.join(p, x) for p, x in zip(prefix, (k, v), strict=True))
    return xla(q, k, v, mask, bias, softcap, lambda p: p)


def arrays(T=T, H=H, G=G, seed=0):
    rng = np.random.RandomState(seed)
    q, k, v = (jnp.asarray(rng.randn(B, h, T, K), jnp.float32) for h in (H, G, G))
    return q, k, v, jnp.asarray(rng.randn(B, T, H * K), jnp.float32)


def in_zigzag(x, axis):
    return jnp.swapaxes(sequence.zigzag(jnp.swapaxes(x, 1, axis)), 1, axis)


def ring(q, k, v, prefix, bias, mask, softcap, side):
    """In zigzag order inside, in the order of the text outside."""
    slots = sequence.balanced_slots(mask, q.shape[2], cached=False)
    if slots is None:
        return ring_attention(q, k, v, mask, prefix, bias, softcap, side)
    q, k, v = (in_zigzag(x, 2) for x in (q, k, v))
    if bias is not None:
        P = mask.virtual
        moved = jnp.broadcast_to(bias[..., P:], (B, *bias.shape[1:3], q.shape[2]))
        virtual = jnp.broadcast_to(bias[..., :P], (B, *bias.shape[1:3], P))
        bias = jnp.concatenate([virtual, in_zigzag(moved, 3)], 3)
    mask = sequence.balanced(mask, slots)
    out = ring_attention(q, k, v, mask, prefix, bias, softcap, side)
    return sequence.zigzag(out, inverse=True)


def agree(mesh, mask, T=T, H=H, G=G, softcap=None, side=None, bias=None):
    *qkv, weight = arrays(T, H, G)
    prefix = tuple(arrays(mask.virtual, G=G, seed=1)[1:3]) if mask.virtual else None
    prefix = prefix and tuple(x[0] for x in prefix)
    # A query that sees nothing has no meaning; the two differ there.
    seen = mask.dense(T, T + mask.virtual)
    alive = True if seen is None else jnp.any(seen, -1)[:, 0, :, None]
    weight = jnp.where(alive, weight, 0)

    def loss(attend, q, *others):
        out = attend(q * 0.3, *others, mask, softcap)
        return jnp.sum(out * weight), jnp.where(weight != 0, out, 0)

    def run(attend):
        f = functools.partial(loss, attend)
        f = jax.value_and_grad(f, argnums=(0, 1, 2, 3, 4), has_aux=True)
        return jax.jit(f, compiler_options=QUICK)(*qkv, prefix, bias)

    expected = run(reference)
    with logical.use(mesh, DEFAULT_RULES):
        found = run(functools.partial(ring, side=side))
    found, expected = jax.tree.leaves(found), jax.tree.leaves(expected)
    assert len(found) == 5 + 2 * (prefix is not None) + (bias is not None)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def padding(T=T):
    valid = np.ones((B, T), bool)
    valid[0, -11:] = False
    valid[1, :7] = False
    return jnp.asarray(valid)


def packed(T=T):
    ids = np.zeros((B, T), np.int32)
    ids[0, :20], ids[0, 20:33], ids[0, 33:] = 1, 2, 3
    ids[1, :5], ids[1, 5:40] = 1, 2
    return jnp.asarray(ids), jnp.asarray(ids)


MASKS = {
    "causal": Mask(),
    "both sides": Mask(causal=False),
    "padding": Mask(valid=padding()),
    "both sides, padding": Mask(causal=False, valid=padding()),
    "packed": Mask(segments=packed()),
    "packed and padding": Mask(segments=packed(), valid=padding()),
    "both sides, packed": Mask(causal=False, segments=packed()),
    "window": Mask(window=9),
    "window, traced": Mask(window=jnp.int32(9)),
    "window, packed": Mask(window=9, segments=packed()),
    "prefix": Mask(prefix=jnp.asarray([13, 0])),
    "prefix, window": Mask(prefix=jnp.asarray([13, 0]), window=9),
    "virtual keys": Mask(virtual=3, valid=padding()),
    "virtual keys, packed": Mask(virtual=3, segments=packed()),
    "virtual keys, window, packed": Mask(virtual=3, window=9, segments=packed()),
    "virtual keys, window, padding": Mask(virtual=3, window=9, valid=padding()),
    "prompt": Mask(shared=6, segments=tuple(x.at[:, :6].set(-1) for x in packed())),
    "prompt, window": Mask(shared=6, window=9, valid=padding().at[:, :6].set(True)),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks(name):
    agree(make_mesh(data=2, context=4), MASKS[name])


@pytest.mark.parametrize("context", [2, 4, 8])
def test_sizes_of_the_ring(context):
    agree(make_mesh(context=context, devices=jax.devices()[:context]), MASKS["packed"])


@pytest.mark.parametrize("side", [1, 2, 4, 5])
def test_sides_of_a_block(side):
    agree(make_mesh(data=2, context=4), MASKS["packed and padding"], side=side)


def test_a_length_that_zigzag_does_not_divide():
    agree(make_mesh(data=2, context=4), Mask(), T=36)


def test_softcap():
    agree(make_mesh(data=2, context=4), MASKS["padding"], softcap=1.5)


@pytest.mark.parametrize("rows", [1, B])
@pytest.mark.parametrize("virtual", [0, 3])
def test_bias_of_each_key(rows, virtual):
    bias = jnp.asarray(np.random.RandomState(3).randn(rows, H, 1, virtual + T), jnp.float32)
    mask = Mask(virtual=virtual, valid=padding())
    agree(make_mesh(data=2, tensor=2, context=2), mask, bias=bias)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1), (8, 2)])
def test_heads_over_the_tensor_axis(heads):
    """Where key–value heads are fewer than devices, each device gets those that it needs."""
    agree(make_mesh(tensor=4, context=2), MASKS["packed"], H=heads[0], G=heads[1])


@pytest.mark.parametrize("context", [2, 4, 8])
def test_zigzag_is_what_slots_say_and_goes_back(context):
    x = jnp.arange(2 * 32 * 3).reshape(2, 32, 3)
    with logical.use(make_mesh(context=context, devices=jax.devices()[:context]),
                     DEFAULT_RULES):  # fmt: skip
        slots = sequence.balanced_slots(Mask(), 32, cached=False)
        y = sequence.zigzag(x)
        np.testing.assert_array_equal(y, x[:, slots[0]])
        np.testing.assert_array_equal(sequence.zigzag(y, inverse=True), x)


@pytest.mark.parametrize("n", [2, 3, 4, 8])
def test_zigzag_gives_all_devices_the_same_work_at_every_step(n):
    with logical.use(make_mesh(context=n, devices=jax.devices()[:n]), DEFAULT_RULES):
        slots = sequence.balanced_slots(Mask(), 8 * n, cached=False).reshape(n, 8)
    for step in range(n):
        pairs = {int(np.sum(slots[(i - step) % n][None] <= slots[i][:, None])) for i in range(n)}
        assert len(pairs) == 1


def test_order_stays_where_nothing_is_gained():
    assert sequence.balanced_slots(Mask(), 32, cached=False) is None
    with logical.use(make_mesh(context=4), DEFAULT_RULES):
        assert sequence.balanced_slots(Mask(causal=False), 32, cached=False) is None
        assert sequence.balanced_slots(Mask(), 32, cached=True) is None
        assert sequence.balanced_slots(Mask(), 36, cached=False) is None
