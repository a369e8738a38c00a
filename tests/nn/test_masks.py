import jax.numpy as jnp
import numpy as np

from fmjax.nn.masks import Mask
from fmjax.nn.prompt_port import more_slots


def brute(T, S, *, offset=0, causal=True, window=None, valid=None, segments=None, prefix=None):
    """The definition, one pair at a time."""
    B = next(len(x) for x in (valid, segments and segments[0], prefix, [0]) if x is not None)
    out = np.zeros((B, 1, T, S), bool)
    for b in range(B):
        for t in range(T):
            for s in range(S):
                q = t + offset
                ok = s <= q if causal else True
                ok = ok and (window is None or q - s < window)
                ok = ok or (prefix is not None and s < prefix[b])
                ok = ok and (valid is None or bool(valid[b][s]))
                ok = ok and (segments is None or segments[0][b][t] == segments[1][b][s])
                out[b, 0, t, s] = ok
    return out


def check(T, S, **kw) -> None:
    fields = {k: jnp.asarray(v) if k in ("valid", "prefix") else v for k, v in kw.items()}
    if "segments" in kw:
        fields["segments"] = tuple(jnp.asarray(x) for x in kw["segments"])
    if "valid" in fields:
        fields["valid"] = fields["valid"].astype(bool)
    expected = brute(T, S, **kw)
    found = np.broadcast_to(Mask(**fields).dense(T, S), expected.shape)
    np.testing.assert_array_equal(found, expected)


def test_each_part_and_their_conjunctions() -> None:
    valid = [[1, 1, 1, 0, 0], [0, 0, 1, 1, 1]]
    segments = [[1, 1, 2, 2, 0], [1, 2, 2, 3, 3]]
    check(5, 5)
    check(5, 5, window=2)
    check(2, 5, offset=3, window=3)
    check(5, 5, valid=valid)
    check(5, 5, segments=(segments, segments))
    check(5, 5, prefix=[2, 4])
    check(5, 5, causal=False, valid=valid)
    check(5, 5, window=2, valid=valid, segments=(segments, segments))
    check(5, 5, prefix=[2, 4], valid=valid)


def test_no_restriction_is_no_array() -> None:
    assert Mask(causal=False).dense(3, 3) is None


def test_valid_may_be_longer_than_the_keys() -> None:
    mask = Mask(valid=jnp.array([[True, False, True, True]]))
    assert mask.dense(2, 2).shape == (1, 1, 2, 2)


def test_virtual_keys_stand_before_the_first_token_of_every_text() -> None:
    valid = np.array([[1, 1, 1, 1, 0], [0, 0, 1, 1, 1]], bool)
    segments = np.array([[1, 1, 1, 2, 2], [1, 2, 2, 2, 0]])
    own = {"none": [range(5)] * 2, "valid": [[0, 1, 2, 3, 4], [0, 0, 0, 1, 2]]}
    own["segments"] = [[0, 1, 2, 0, 1], [0, 0, 1, 2, 0]]
    fields = {"none": {}, "valid": {"valid": jnp.asarray(valid)}}
    fields["segments"] = {"segments": (jnp.asarray(segments), jnp.asarray(segments))}
    for kind, field in fields.items():
        for window in (None, 3):
            plain = np.broadcast_to(Mask(window=window, **field).dense(5, 5), (2, 1, 5, 5))
            found = np.broadcast_to(
                Mask(window=window, virtual=2, **field).dense(5, 7), (2, 1, 5, 7)
            )
            np.testing.assert_array_equal(found[..., 2:], plain)
            token = valid if kind == "valid" else np.ones_like(valid)
            if kind == "segments":
                token = segments > 0
            for b, t in zip(*np.nonzero(token), strict=True):
                near = [own[kind][b][t] + 2 - p < (window or 99) for p in range(2)]
                assert found[b, 0, t, :2].tolist() == near, (kind, window, b, t)


def test_virtual_keys_before_a_cache() -> None:
    valid = jnp.array([[False, True, True, True, True, True]])
    mask = Mask(window=4, virtual=2, valid=valid, offset=jnp.int32(3))
    found = mask.dense(2, 8)[0, 0]
    # The queries at slots 3 and 4 are the third and fourth token.
    expected = [[0, 1, 0, 1, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1, 1, 0]]
    np.testing.assert_array_equal(found, np.array(expected, bool))
    assert Mask(causal=False, virtual=2).dense(3, 5) is None


def test_shared_slots_are_seen_like_virtual_keys() -> None:
    segments = jnp.array([[1, 1, 1, 2, 2], [1, 2, 2, 2, 0]])
    valid = jnp.array([[1, 1, 1, 1, 0], [0, 0, 1, 1, 1]], bool)
    for field in ({}, {"valid": valid}, {"segments": (segments, segments)}):
        for window in (None, 3):
            plain = Mask(window=window, **field)
            expected = np.broadcast_to(plain.replace(virtual=2).dense(5, 7), (2, 1, 5, 7))
            found = np.broadcast_to(more_slots(2, plain).dense(7, 7), (2, 1, 7, 7))
            real = np.asarray(field.get("valid", np.ones((2, 5), bool)))
            for b, t in zip(*np.nonzero(real), strict=True):
                np.testing.assert_array_equal(found[b, :, t + 2], expected[b, :, t])
            # The shared slots themselves see what stands before them, and nothing of a text.
            own = np.tril(np.ones((2, 7), bool))
            np.testing.assert_array_equal(found[:, :, :2], np.broadcast_to(own, (2, 1, 2, 7)))
    # One query behind a cache whose first two slots are shared.
    cache = more_slots(2, Mask(window=4, valid=jnp.array([[False, True, True, True, True]])))
    found = cache.replace(offset=jnp.int32(5)).dense(1, 7)
    np.testing.assert_array_equal(found[0, 0, 0], np.array([0, 1, 0, 1, 1, 1, 0], bool))
