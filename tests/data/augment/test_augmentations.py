"""Whole augmentations: their shapes, their seeds, images with padding, and meshes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import QUICK

import fmjax
from fmjax.core import logical
from fmjax.core.errors import ConfigError, DataError
from fmjax.data.augment import CenterCrop, MultiCrop, View, Views, dino, dinov2, mae, simclr
from fmjax.data.augment import supervised as supervised_
from fmjax.parallel import DEFAULT_RULES, shard_batch

B, S = 8, 24


@pytest.fixture(scope="module")
def batch():
    rng = np.random.RandomState(0)
    image = rng.randint(0, 256, (B, S, S, 3)).astype(np.uint8)
    size = rng.randint(10, S + 1, (B, 2)).astype(np.int32)
    for picture, (h, w) in zip(image, size, strict=True):
        picture[h:] = picture[:, w:] = 0
    labels = np.arange(B, dtype=np.int32) % 4
    return {"image": image, "image_size": size, "labels": labels}


def run(augmentation, batch, seed=0):
    call = jax.jit(augmentation, compiler_options=QUICK)
    return call(jax.random.key(seed), batch)


def shapes(batch):
    return {name: x.shape for name, x in batch.items()}


def test_views_for_contrasting(batch):
    out = run(simclr(16), batch)
    assert shapes(out) == {"pixel_values": (B, 2, 16, 16, 3), "labels": (B,)}
    x = out["pixel_values"]
    assert np.isfinite(x).all() and np.abs(x[:, 0] - x[:, 1]).max() > 0.5


def test_supervised_crops_mix_labels(batch):
    out = run(supervised_(16, classes=4, mixup=0.8, cutmix=1.0), batch)
    assert shapes(out) == {
        "pixel_values": (B, 16, 16, 3),
        "labels": (B, 4),
        "example_weight": (B,),
    }
    np.testing.assert_array_equal(out["example_weight"], 1)
    np.testing.assert_allclose(jnp.sum(out["labels"], -1), 1, atol=1e-6)


def test_many_crops_and_their_masks_are_the_same_on_any_mesh(batch):
    augmentation = dinov2(16, 8, 3, patch_size=4)
    out = run(augmentation, batch)
    assert shapes(out) == {
        "pixel_values": (B, 2, 16, 16, 3),
        "local_pixel_values": (B, 3, 8, 8, 3),
        "bool_masked_pos": (B, 2, 16),
        "labels": (B,),
    }
    assert (out["bool_masked_pos"].any(-1)).sum() <= B
    again, other = run(augmentation, batch), run(augmentation, batch, 1)
    for name in ("pixel_values", "local_pixel_values"):
        np.testing.assert_array_equal(out[name], again[name])
        assert np.abs(out[name] - other[name]).max() > 0.5

    mesh = fmjax.make_mesh(data=4, fsdp=2)

    def on_mesh(key, batch):
        with logical.use(mesh, DEFAULT_RULES):
            return augmentation(key, batch)

    spread = run(on_mesh, shard_batch(batch, mesh, DEFAULT_RULES))
    for name, x in spread.items():
        np.testing.assert_allclose(x, out[name], atol=1e-5, err_msg=name)
    assert spread["local_pixel_values"].sharding.spec[0] == ("data", "fsdp")


def test_padding_is_never_seen(batch):
    """White images of any size stay white wherever they are cut."""
    white = np.zeros_like(batch["image"])
    for picture, (h, w) in zip(white, batch["image_size"], strict=True):
        picture[:h, :w] = 255
    whites = batch | {"image": white}
    plain = {"mean": (0.0,), "std": (1.0,)}
    crops = run(mae(16, **plain), whites)["pixel_values"]
    np.testing.assert_allclose(crops, 1, atol=1e-5)
    middle = CenterCrop(16, 16, **plain)
    crops = jax.jit(middle, compiler_options=QUICK)(whites)["pixel_values"]
    np.testing.assert_allclose(crops, 1, atol=1e-5)


def test_images_of_one_channel_need_no_colours(batch):
    gray = {"image": batch["image"][..., :1]}
    view = View(8, mean=(0.5,), std=(0.25,), flip=0.0)
    out = run(Views((view, view)), gray)
    assert shapes(out) == {"pixel_values": (B, 2, 8, 8, 1)}
    with pytest.raises(ConfigError, match="three channels, the images have 1"):
        jax.eval_shape(dino(16, 8, 1), jax.random.key(0), gray)
    with pytest.raises(ConfigError, match="mean has 3 numbers, std 3 and the images 1 channels"):
        CenterCrop(8)(gray)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: View(0), "size 0 must be positive"),
        (lambda: View(8, flip=1.5), r"flip=1.5 must be in \[0, 1\]"),
        (lambda: View(8, scale=(1.0, 0.5)), r"scale=\(1.0, 0.5\) must be positive and in order"),
        (lambda: View(8, method="box"), "method 'box' is unknown"),
        (lambda: CenterCrop(8, 0), "resize 0 must be ≥ 1"),
        (lambda: Views((View(8), View(9))), r"one size, got \[8, 9\]"),
        (lambda: MultiCrop((View(8),), smalls=2), "2 small crops need a view"),
        (lambda: MultiCrop((View(9),), patch_size=4), "9 pixels are not whole patches of 4"),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_batch_without_images_is_named(batch):
    with pytest.raises(DataError, match="no image to augment; it has labels"):
        CenterCrop(8)({"labels": batch["labels"]})
    with pytest.raises(DataError, match=r"image is int32 of shape \(2, 3\); it must be uint8"):
        CenterCrop(8)({"image": jnp.zeros((2, 3), jnp.int32)})
