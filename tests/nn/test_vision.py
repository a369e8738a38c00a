"""Patches, resampled grids and stochastic depth."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.core.errors import DataError
from fmjax.nn.dropout import drop_path, drop_path_rates
from fmjax.nn.interpolate import bicubic_weights, interpolate_grid
from fmjax.nn.patches import PatchEmbeddings, patchify, unpatchify

SIZES = [
    ((4, 4), (7, 7)),
    ((7, 7), (4, 4)),
    ((3, 5), (8, 2)),
    ((14, 14), (37, 23)),
    ((16, 16), (1, 3)),
    ((2, 1), (5, 6)),
    ((5, 6), (5, 6)),
]


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(("old", "new"), SIZES)
def test_grids_are_resampled_as_in_torch(old, new, antialias):
    import torch

    table = np.random.default_rng(0).normal(size=(*old, 3)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.tensor(table).permute(2, 0, 1)[None],
        size=new,
        mode="bicubic",
        align_corners=False,
        antialias=antialias,
    )[0].permute(1, 2, 0)
    got = interpolate_grid(jnp.asarray(table).reshape(-1, 3), old, new, antialias)
    np.testing.assert_allclose(got.reshape(*new, 3), expected, rtol=0, atol=5e-6)


def test_weights_of_a_new_size_sum_to_one():
    for antialias in (False, True):
        for old, new in ((14, 37), (37, 14), (1, 4)):
            weights = bicubic_weights(old, new, antialias)
            assert weights.shape == (new, old) and weights.dtype == np.float32
            np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
    np.testing.assert_array_equal(bicubic_weights(9, 9), np.eye(9))
    np.testing.assert_array_equal(bicubic_weights(9, 9, True), np.eye(9))


def test_patches_are_cut_row_by_row():
    pixels = jnp.arange(2 * 4 * 6 * 3, dtype=jnp.float32).reshape(2, 4, 6, 3)
    patches = patchify(pixels, (2, 3))
    assert patches.shape == (2, 4, 18)
    np.testing.assert_array_equal(patches[1, 1], pixels[1, :2, 3:].reshape(-1))
    np.testing.assert_array_equal(patches[0, 2], pixels[0, 2:, :3].reshape(-1))
    np.testing.assert_array_equal(unpatchify(patches, (2, 3), (2, 2)), pixels)
    with pytest.raises(DataError, match="4 × 6 are not made of whole patches of 4 × 4"):
        patchify(pixels, (4, 4))
    with pytest.raises(DataError, match="are not a grid of 3 × 2 patches"):
        unpatchify(patches, (2, 3), (3, 2))


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((2, 3, 8, 8), "float32", r"so transpose these: x.transpose\(0, 2, 3, 1\)"),
        ((2, 8, 8, 1), "float32", "the model reads 3 channels"),
        ((8, 8, 3), "float32", r"images are \[batch, height, width, channels\]"),
        ((2, 8, 8, 3), "uint8", "uint8; normalise them first"),
        ((2, 3, 9, 3), "float32", "smaller than one patch of 4 × 4"),
    ],
)
def test_what_is_no_image_is_refused(shape, dtype, message):
    module = PatchEmbeddings(5, (4, 4), 3)
    with pytest.raises(DataError, match=message):
        jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(shape, dtype))


class Branch(nn.Module):
    rate: float

    @nn.compact
    def __call__(self, x):
        return drop_path(self, x, self.rate)


def test_whole_rows_are_dropped_and_the_mean_stays():
    x = jnp.ones((4000, 2, 3))
    rows = np.asarray(Branch(0.25).apply({}, x, rngs={"dropout": jax.random.key(0)}))
    kept = rows[:, 0, 0] != 0
    np.testing.assert_allclose(rows[kept], 4 / 3, rtol=1e-6)
    assert not rows[~kept].any()
    assert abs(kept.mean() - 0.75) < 0.03
    np.testing.assert_array_equal(Branch(0.25).apply({}, x), x)
    np.testing.assert_allclose(drop_path_rates(0.3, 4), [0, 0.1, 0.2, 0.3], atol=1e-7)
    np.testing.assert_allclose(drop_path_rates(0.3, 2, grow=False), [0.3, 0.3], atol=1e-7)
    assert drop_path_rates(0.0, 4) is None
