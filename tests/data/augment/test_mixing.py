"""Mixup, CutMix and masks of blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import QUICK

from fmjax.core.errors import ConfigError, DataError
from fmjax.data.augment import OneView, View, block_masks, cutmix, mix, mixup
from fmjax.data.augment.mixing import soft_labels

B, N = 6, 4


@pytest.fixture(scope="module")
def rows():
    x = jnp.asarray(np.random.RandomState(0).rand(B, 9, 12, 3), jnp.float32)
    return x, soft_labels(jnp.array([0, 1, 2, 3, 1, 0]), N)


def test_mixup_is_the_weighted_sum(rows):
    x, labels = rows
    share = np.linspace(0, 1, B, dtype=np.float32)
    images, mixed = mixup(x, labels, jnp.asarray(share))
    for i, s in enumerate(share):
        np.testing.assert_allclose(images[i], s * x[i] + (1 - s) * x[i - 1], atol=1e-6)
        np.testing.assert_allclose(mixed[i], s * labels[i] + (1 - s) * labels[i - 1], atol=1e-6)


def test_cutmix_pastes_a_box_and_counts_it(rows):
    x, labels = rows
    share = jnp.array([0.0, 0.2, 0.5, 0.7, 0.9, 1.0])
    images, mixed = cutmix(jax.random.key(3), x, labels, share)
    for i in range(B):
        other = np.all(np.asarray(images[i] != x[i]), -1)
        np.testing.assert_array_equal(images[i], np.where(other[..., None], x[i - 1], x[i]))
        r, c = np.nonzero(other)
        if len(r):
            assert other[r.min() : r.max() + 1, c.min() : c.max() + 1].all()
        # √(1 − share) of each side, and less where the box stands out of the image.
        assert other.mean() <= 1 - share[i] + 1e-6
        kept = 1 - other.mean()
        wanted = kept * labels[i] + (1 - kept) * labels[i - 1]
        np.testing.assert_allclose(mixed[i], wanted, atol=1e-6)
    assert not np.array_equal(images[2], x[2])


def test_either_is_drawn_for_each_row(rows):
    x, labels = rows
    draw = jax.jit(lambda key: mix(key, x, labels, 0.8, 1.0), compiler_options=QUICK)
    images, mixed = draw(jax.random.key(0))
    np.testing.assert_allclose(jnp.sum(mixed, -1), 1, atol=1e-6)
    pasted = [bool(np.all((images[i] == x[i]) | (images[i] == x[i - 1]))) for i in range(B)]
    assert 0 < sum(pasted) < B


@pytest.mark.parametrize("mixup, cutmix", [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_rows_that_do_not_count_are_not_mixed_into_others(mixup, cutmix):
    class Plain:
        def __call__(self, key, image, image_size):
            return jnp.asarray(image, jnp.float32)

    image = np.random.RandomState(1).randint(1, 256, (B, 8, 8, 3)).astype(np.uint8)
    image[[1, 4]] = 0
    labels = np.array([0, -100, 2, 3, 1, 0], np.int32)
    weight = np.array([1, 1, 0.5, 1, 0, 1], np.float32)
    batch = {"image": image, "labels": labels, "example_weight": weight}
    out = OneView(Plain(), mixup, cutmix, classes=N)(jax.random.key(5), batch)
    out = jax.tree.map(np.asarray, out)
    np.testing.assert_array_equal(out["example_weight"], [1, 0, 0.5, 1, 0, 1])
    for row in (2, 5):
        np.testing.assert_array_equal(out["pixel_values"][row], image[row])
        np.testing.assert_array_equal(out["labels"][row], np.eye(N)[labels[row]])
    np.testing.assert_allclose(out["labels"][[0, 2, 3, 5]].sum(-1), 1, atol=1e-6)
    assert any((out["pixel_values"][row] != image[row]).any() for row in (0, 3))


def test_what_cannot_be_mixed_is_named():
    with pytest.raises(ConfigError, match="give their number as classes="):
        OneView(View(8), mixup=0.8)
    with pytest.raises(ConfigError, match="cutmix -1.0 must not be negative"):
        OneView(View(8), cutmix=-1.0, classes=3)
    with pytest.raises(DataError, match=r"labels are float32 of shape \(3, 2\); mixing needs"):
        soft_labels(jnp.zeros((3, 2)), 4)


def test_masks_are_blocks_of_the_share_asked():
    R, grid = 64, (14, 12)
    draw = jax.jit(lambda key: block_masks(key, R, grid, 0.5, (0.1, 0.5)), compiler_options=QUICK)
    masks = np.asarray(draw(jax.random.key(0)))
    assert masks.shape == (R, 14 * 12) and masks.dtype == bool
    share = np.sort(masks.mean(1))
    assert (share[:32] == 0).all() and (share[32:] > 0).all()
    # Each within its own part of the range, and never beyond it.
    upper = 0.1 + 0.4 * (np.arange(32) + 1) / 32
    assert (share[32:] <= upper).all()
    assert share[32:].mean() > 0.27
    # Neighbours of a masked patch are masked far more often than chance.
    square = masks.reshape(R, 14, 12)
    both = (square[:, :, 1:] & square[:, :, :-1]).sum()
    assert both > 0.75 * square[:, :, 1:].sum()
    again = np.asarray(draw(jax.random.key(1)))
    assert (again != masks).any()


def test_mask_options_are_checked():
    with pytest.raises(ConfigError, match="the ratio in order"):
        block_masks(jax.random.key(0), 2, (4, 4), 0.5, (0.5, 0.1))
