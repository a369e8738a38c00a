"""Crops and resizes against Pillow and torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image
from quick import QUICK

from fmjax.core.errors import ConfigError
from fmjax.data.augment import center_crop, crop_resize, random_boxes

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def once(function, *static, **options):
    """Compiled quickly: function(images, boxes) with what follows fixed."""
    return jax.jit(lambda x, boxes: function(x, boxes, *static, **options), compiler_options=QUICK)


def images(B=3, H=23, W=31, C=3, seed=0):
    return np.random.RandomState(seed).rand(B, H, W, C).astype(np.float32)


def pillow(image, size, method):
    """f32 [H, W, C] → [P, Q, C], without rounding to bytes."""
    channels = [
        np.asarray(Image.fromarray(c).resize(size[::-1], FILTERS[method]))
        for c in np.moveaxis(image, -1, 0)
    ]
    return np.stack(channels, -1)


BOXES = np.array([[0, 0, 23, 31], [5, 7, 9, 20], [22, 3, 1, 3]], np.float32)


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(7, 11), (40, 17)])
def test_crops_are_resized_as_by_pillow(method, size):
    x = images()
    ours = once(crop_resize, size, method)(x, BOXES)
    for image, box, mine in zip(x, BOXES.astype(int), ours, strict=True):
        t, left, h, w = box
        wanted = pillow(image[t : t + h, left : left + w], size, method)
        np.testing.assert_allclose(mine, wanted, atol=2e-5)


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
def test_without_antialiasing_it_is_torchs_interpolate(method):
    x = images()
    ours = once(crop_resize, (9, 13), method, antialias=False)(x, BOXES)
    for image, box, mine in zip(x, BOXES.astype(int), ours, strict=True):
        t, left, h, w = box
        crop = torch.tensor(image[t : t + h, left : left + w]).permute(2, 0, 1)[None]
        wanted = torch.nn.functional.interpolate(crop, (9, 13), mode=method)
        np.testing.assert_allclose(mine, wanted[0].permute(1, 2, 0).numpy(), atol=2e-5)


def test_bytes_become_shares_and_flips_mirror():
    x = (images() * 255).astype(np.uint8)
    flip = jnp.array([True, False, True])
    plain = once(crop_resize, (8, 8))(x / np.float32(255), BOXES)
    ours = once(crop_resize, (8, 8), flip=flip)(x, BOXES)
    wanted = np.where(np.array(flip)[:, None, None, None], plain[:, :, ::-1], plain)
    np.testing.assert_allclose(ours, wanted, atol=1e-6)


@pytest.mark.parametrize("resize, size", [(16, 12), (10, 14), (40, 32)])
def test_the_middle_is_that_of_resize_and_crop(resize, size):
    """Of the image without its padding; black where the crop is larger than the image."""
    x = images()
    real = np.array([[23, 31], [11, 30], [20, 9]])
    for image, (h, w) in zip(x, real, strict=True):
        image[h:] = image[:, w:] = 9.0
    ours = once(center_crop, resize, size, "bicubic")(x, real)
    for image, (h, w), mine in zip(x, real, ours, strict=True):
        new = [resize * side // min(h, w) for side in (h, w)]
        whole = pillow(image[:h, :w], new, "bicubic")
        starts = [round((n - size) / 2) for n in new]
        canvas = np.zeros((size, size, 3), np.float32)
        for i in range(size):
            for j in range(size):
                r, c = i + starts[0], j + starts[1]
                if 0 <= r < new[0] and 0 <= c < new[1]:
                    canvas[i, j] = whole[r, c]
        np.testing.assert_allclose(mine, canvas, atol=2e-5)


def test_boxes_are_spread_as_asked_and_lie_within_the_image():
    B = 4000
    real = jnp.tile(jnp.array([[200, 300], [300, 160]]), (B // 2, 1))
    boxes = np.asarray(once(random_boxes, (0.08, 1.0))(jax.random.key(0), real))
    top, left, h, w = boxes.T
    H, W = np.asarray(real).T
    assert (boxes == np.round(boxes)).all() and (h >= 1).all() and (w >= 1).all()
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + h <= H).all() and (left + w <= W).all()
    assert (w / h > 0.74).all() and (w / h < 1.35).all()
    share = h * w / (H * W)
    assert share.min() < 0.1 and share.max() > 0.8
    # Independent draws of the same rule: reject what does not fit.
    rng = np.random.RandomState(0)
    area = rng.uniform(0.08, 1, 40000) * 60000
    ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3), 40000))
    w0, h0 = np.sqrt(area * ratio), np.sqrt(area / ratio)
    fits = (w0 <= 300) & (h0 <= 200)
    np.testing.assert_allclose(share[::2].mean(), (area[fits] / 60000).mean(), rtol=0.03)
    np.testing.assert_allclose((left[::2] / (300 - w[::2] + 1)).mean(), 0.5, atol=0.02)


def test_images_that_no_box_fits_give_their_middle():
    real = jnp.array([[10, 100], [100, 10], [1, 1]])
    boxes = np.asarray(once(random_boxes, (0.9, 1.0))(jax.random.key(1), real))
    np.testing.assert_array_equal(boxes, [[0, 43, 10, 13], [43, 0, 13, 10], [0, 0, 1, 1]])


def test_an_unknown_filter_is_named():
    with pytest.raises(ConfigError, match="method 'lanczos' is unknown; use bilinear or bicubic"):
        crop_resize(jnp.zeros((1, 4, 4, 3)), jnp.array([[0, 0, 4, 4]]), (2, 2), "lanczos")
