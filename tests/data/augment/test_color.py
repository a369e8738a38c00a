"""Colours, blur and RandAugment against Pillow, torch and colorsys."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps
from quick import QUICK

from fmjax.core.errors import ConfigError
from fmjax.data.augment import color, gaussian_blur, rand_augment
from fmjax.data.augment.rand_augment import OPERATIONS, apply_operation

B, H, W = 4, 10, 13


def once(function, *arguments):
    """Compiled quickly, to run once."""
    return jax.jit(function, compiler_options=QUICK)(*arguments)


@pytest.fixture(scope="module")
def levels():
    x = np.random.RandomState(0).randint(0, 256, (B, H, W, 3)).astype(np.uint8)
    x[0, :, :, 1] = 77  # a channel of one value
    x[1] = x[1] // 4 + 60  # few levels
    x[2, :4] = 128  # gray pixels
    return x


@pytest.fixture(scope="module")
def x(levels):
    return jnp.asarray(levels / np.float32(255))


def luma(x):
    return (np.asarray(x, np.float64) @ np.array([0.2989, 0.587, 0.114]))[..., None]


def turned(x, shift):
    """By colorsys, pixel by pixel."""
    flat = []
    for pixel in np.asarray(x, np.float64).reshape(-1, 3):
        h, s, v = colorsys.rgb_to_hsv(*pixel)
        flat.append(colorsys.hsv_to_rgb((h + shift) % 1, s, v))
    return np.array(flat).reshape(x.shape)


FACTORS = np.array([0.0, 0.4, 1.0, 1.7], np.float32)


def blended(x, other, factors=FACTORS):
    f = np.asarray(factors, np.float64)[:, None, None, None]
    return np.clip(f * np.asarray(x, np.float64) + (1 - f) * other, 0, 1)


def test_brightness_contrast_and_saturation_are_blends(x):
    f = jnp.asarray(FACTORS)
    np.testing.assert_allclose(once(color.brightness, x, f), blended(x, 0 * x), atol=1e-6)
    mean = luma(x).mean((1, 2, 3), keepdims=True)
    np.testing.assert_allclose(once(color.contrast, x, f), blended(x, mean), atol=1e-6)
    np.testing.assert_allclose(once(color.saturation, x, f), blended(x, luma(x)), atol=1e-6)


def test_hue_turns_the_circle_of_colorsys(x):
    shifts = np.array([0.0, 0.1, -0.5, 0.37], np.float32)
    ours = once(color.hue, x, jnp.asarray(shifts))
    for image, shift, mine in zip(x, shifts, ours, strict=True):
        np.testing.assert_allclose(mine, turned(image, shift), atol=1e-5)


def test_jitter_takes_each_image_in_its_own_order(x):
    order = np.array([[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2], [2, 0, 3, 1]])
    factors = np.array([[0.7, 1.3, 0.5], [1.2, 0.6, 1.4], [1, 1, 0], [0.9, 1.9, 1.1]])
    shift = np.array([0.1, -0.05, 0.2, 0.0])
    ours = once(color.jitter_by, *map(jnp.asarray, (x, factors.astype("f4"), shift, order)))
    for i in range(B):
        y = np.asarray(x, np.float64)[i : i + 1]
        for op in order[i]:
            if op == 3:
                y = turned(y, shift[i])
            else:
                other = (0 * y, luma(y).mean(keepdims=True), luma(y))[op]
                y = blended(y, other, factors[i, op : op + 1])
        np.testing.assert_allclose(ours[i], y[0], atol=2e-5)


def test_jitter_draws_from_the_ranges(x):
    white = jnp.ones((2000, 1, 1, 3))
    ours = once(lambda k: color.jitter(k, white, (0.4, 0.0, 0.0, 0.0)), jax.random.key(0))[
        :, 0, 0, 0
    ]
    # Uniform in [.6, 1.4], and cut at 1.
    assert ours.min() > 0.6 and ours.max() == 1
    np.testing.assert_allclose(ours.mean(), 0.9, atol=0.01)


def each(levels, change):
    return np.stack([np.asarray(change(Image.fromarray(image))) for image in levels])


def test_changes_of_levels_are_pillows(levels, x):
    equal = np.asarray(once(color.equalize, x)) * 255
    np.testing.assert_allclose(equal, each(levels, ImageOps.equalize), atol=1e-3)
    stretched = np.asarray(once(color.autocontrast, x)) * 255
    # Pillow cuts its table to whole levels.
    assert np.abs(stretched - each(levels, ImageOps.autocontrast)).max() < 1 + 1e-3
    bits = np.asarray(color.posterize(x, jnp.full((B,), 3))) * 255
    np.testing.assert_allclose(bits, each(levels, lambda i: ImageOps.posterize(i, 3)), atol=1e-3)
    sun = np.asarray(color.solarize(x, 128 / 255)) * 255
    np.testing.assert_allclose(sun, each(levels, ImageOps.solarize), atol=1e-3)
    soft = np.asarray(once(color.smooth, x)) * 255
    pillow = each(levels, lambda image: image.filter(ImageFilter.SMOOTH))
    assert np.abs(soft - pillow).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("radius", [1, 4])
def test_blur_is_a_mirrored_convolution(x, radius):
    sigma = np.array([0.1, 0.8, 2.0, 5.0], np.float32)
    ours = once(lambda x, s: gaussian_blur(x, s, radius), x, jnp.asarray(sigma))
    d = np.arange(-radius, radius + 1)
    for image, s, mine in zip(x, sigma, ours, strict=True):
        kernel = np.exp(-0.5 * (d / s) ** 2)
        kernel = torch.tensor(np.outer(kernel, kernel) / kernel.sum() ** 2)[None, None]
        planes = torch.tensor(np.asarray(image, np.float64)).permute(2, 0, 1)[:, None]
        padded = torch.nn.functional.pad(planes, [radius] * 4, mode="reflect")
        wanted = torch.nn.functional.conv2d(padded, kernel)[:, 0].permute(1, 2, 0)
        np.testing.assert_allclose(mine, wanted.numpy(), atol=1e-5)


STRENGTH = 0.6
TAN = 0.3 * STRENGTH
SHIFT = 150 / 331 * STRENGTH


def moved(sign, a, b, c, d, e, f):
    def change(image):
        return image.transform(image.size, Image.Transform.AFFINE, (a, b, c, d, e, f))

    return change


REFERENCE = {
    "identity": lambda s: lambda image: image,
    "shear_x": lambda s: moved(s, 1, s * TAN, 0, 0, 1, 0),
    "shear_y": lambda s: moved(s, 1, 0, 0, s * TAN, 1, 0),
    "translate_x": lambda s: moved(s, 1, 0, -s * int(SHIFT * W), 0, 1, 0),
    "translate_y": lambda s: moved(s, 1, 0, 0, 0, 1, -s * int(SHIFT * H)),
    "rotate": lambda s: lambda image: image.rotate(s * 30 * STRENGTH),
    "posterize": lambda s: lambda image: ImageOps.posterize(image, 6),
    "solarize": lambda s: lambda image: ImageOps.solarize(image, 102),
    "equalize": lambda s: ImageOps.equalize,
}


@pytest.fixture(scope="module")
def operate():
    return jax.jit(
        lambda x, chosen, sign: apply_operation(x, chosen, sign, STRENGTH), compiler_options=QUICK
    )


@pytest.mark.parametrize("name", sorted(REFERENCE))
@pytest.mark.parametrize("sign", [1, -1])
def test_operations_are_pillows(levels, x, operate, name, sign):
    chosen = jnp.full((B,), OPERATIONS.index(name))
    ours = operate(x, chosen, jnp.full((B,), float(sign)))
    wanted = each(levels, REFERENCE[name](sign))
    np.testing.assert_allclose(np.asarray(ours) * 255, wanted, atol=1e-3)


def test_other_operations_are_blends(x, operate):
    factor = 1 + 0.9 * STRENGTH
    gray = luma(x)
    others = {
        "brightness": 0 * gray,
        "color": gray,
        "contrast": gray.mean((1, 2, 3), keepdims=True),
        "sharpness": np.asarray(color.smooth(x)),
    }
    for name, other in others.items():
        chosen = jnp.full((B,), OPERATIONS.index(name))
        ours = operate(x, chosen, jnp.ones(B))
        np.testing.assert_allclose(ours, blended(x, other, [factor] * B), atol=1e-5)


def test_each_image_has_its_own_operation(x, operate):
    chosen = jnp.array([5, 11, 0, 7])
    sign = jnp.array([1.0, -1.0, 1.0, -1.0])
    mixed = operate(x, chosen, sign)
    for i in range(B):
        alone = operate(x, jnp.full((B,), chosen[i]), jnp.full((B,), sign[i]))
        np.testing.assert_allclose(mixed[i], alone[i], atol=1e-6)


def test_rand_augment_depends_on_its_key(x):
    draw = jax.jit(lambda key: rand_augment(key, x, 1, 15), compiler_options=QUICK)
    a, b, again = draw(jax.random.key(0)), draw(jax.random.key(1)), draw(jax.random.key(0))
    np.testing.assert_array_equal(a, again)
    assert np.abs(a - b).max() > 0.1 and a.min() >= 0 and a.max() <= 1


def test_bad_input_is_named(x):
    with pytest.raises(ConfigError, match=r"magnitude 31 must lie in \[0, 30\]"):
        rand_augment(jax.random.key(0), x, 1, 31)
    with pytest.raises(ConfigError, match="three channels, the images have 1; switch jitter"):
        color.jitter(jax.random.key(0), x[..., :1], (0.1, 0.1, 0.1, 0.0))
