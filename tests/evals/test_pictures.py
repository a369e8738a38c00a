"""Principal components of patches, and reconstructions as images."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

from fmjax.core.errors import DataError
from fmjax.evals import as_images, patch_pca, principal_components, reconstruction


def test_components_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(50, 5)) * [5, 3, 2, 1, 0.5] + 7) @ np.linalg.qr(
        rng.normal(size=(5, 5))
    )[0]  # fmt: skip
    found, explained = principal_components(x, 3)
    other = PCA(3).fit(x)
    coordinates = other.transform(x)
    signs = np.sign((found * coordinates).sum(0))
    np.testing.assert_allclose(found, coordinates * signs, rtol=0, atol=1e-4)
    np.testing.assert_allclose(explained, other.explained_variance_ratio_, rtol=1e-4)
    # The sign does not depend on the machine: the largest entry of a direction is positive.
    largest = np.abs(other.components_).argmax(-1)
    assert (np.sign(other.components_[range(3), largest]) == signs).all()


def test_patches_that_are_all_alike_vary_in_nothing():
    assert (patch_pca(np.ones((1, 2, 2, 4))).explained == 0).all()


def test_a_background_is_taken_away():
    rng = np.random.default_rng(0)
    thing = np.zeros((2, 6, 6), bool)
    thing[:, 2:4, 1:5] = True
    patches = rng.normal(size=(2, 6, 6, 8)).astype(np.float32)
    patches[thing] += 20
    found = patch_pca(patches, background=True)
    np.testing.assert_array_equal(found.foreground, thing)
    assert (found.colours[~thing] == 0).all()
    inside = found.colours[thing]
    assert inside.min(0).tolist() == [0, 0, 0] and inside.max(0).tolist() == [1, 1, 1]
    whole = patch_pca(patches)
    assert whole.foreground.all() and whole.explained[0] > 0.5


def test_reconstruction():
    rng = np.random.default_rng(0)
    mean, std = np.array([0.5, 0.4, 0.3]), np.array([0.2, 0.25, 0.3])
    original = rng.integers(0, 256, (2, 4, 6, 3)).astype(np.uint8)
    pixels = (original / 255 - mean) / std
    mask = rng.integers(0, 2, (2, 6))
    # A model that is right: patches of 2 × 2, normalised with their unbiased variance.
    logits = np.zeros((2, 6, 12))
    for b in range(2):
        for n, (y, x) in enumerate((y, x) for y in range(2) for x in range(3)):
            patch = pixels[b, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].ravel()
            logits[b, n] = (patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + 1e-6)
    options = dict(mean=mean, std=std, normalized=True)
    found = reconstruction(pixels, logits, mask, (2, 2), **options)
    for same in (found.original, found.predicted, found.pasted):
        np.testing.assert_array_equal(same, original)
    hidden = mask.reshape(2, 2, 3).repeat(2, 1).repeat(2, 2).astype(bool)
    np.testing.assert_array_equal(found.masked[~hidden], original[~hidden])
    assert (found.masked[hidden] == np.round(255 * mean)).all()
    wrong = reconstruction(pixels, logits * 0, mask, (2, 2), **options | {"normalized": False})
    np.testing.assert_array_equal(wrong.pasted, found.masked)
    assert (wrong.predicted == np.round(255 * mean)).all()
    assert as_images([[[9.0], [-9.0]]], [0.5], [0.5]).ravel().tolist() == [255, 0]


def test_errors():
    with pytest.raises(DataError, match="must be finite and"):
        patch_pca(np.zeros((2, 3, 4)))
    with pytest.raises(DataError, match="three components need four patches"):
        patch_pca(np.zeros((1, 1, 2, 4)))
    with pytest.raises(DataError, match="no foreground is left"):
        patch_pca(np.zeros((1, 3, 3, 4)), background=True)
    pixels, options = np.zeros((1, 4, 4, 3)), dict(normalized=True, mean=(0,) * 3, std=(1,) * 3)
    for logits, mask, patch in (((1, 4, 11), (1, 4), 2), ((1, 4, 12), (1, 3), 2),
                                ((1, 1, 27), (1, 1), 3)):  # fmt: skip
        with pytest.raises(DataError, match="do not fit patches"):
            reconstruction(pixels, np.zeros(logits), np.zeros(mask), (patch, patch), **options)
    with pytest.raises(DataError, match=r"pixel_values \[4, 4, 3\] must be"):
        reconstruction(pixels[0], np.zeros((1, 4, 12)), np.zeros((1, 4)), (2, 2), **options)
    with pytest.raises(DataError, match="images of 3 channels"):
        as_images(pixels, [0.5], [0.5])
