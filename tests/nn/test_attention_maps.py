"""Attention maps against those that transformers returns."""

import jax
import numpy as np
import pytest
import torch
import transformers
from quick import QUICK

import fmjax
from fmjax.core.errors import ConfigError
from fmjax.nn.attention_maps import attention_maps
from fmjax.nn.projection import ProjectionHead, WithHead

SIZES = dict(hidden_size=24, num_hidden_layers=3, num_attention_heads=4, intermediate_size=16)


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """(transformers' model, ours, params), with scores large enough that probabilities differ."""
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        **SIZES, image_size=(8, 12), patch_size=4, initializer_range=0.3,
        attn_implementation="eager",
    )  # fmt: skip
    other = transformers.ViTModel(config).eval()
    directory = tmp_path_factory.mktemp("vit")
    other.save_pretrained(directory)
    return other, *fmjax.from_pretrained(directory)


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).normal(size=(2, 8, 12, 3)).astype(np.float32)


def reference(other, pixels, **options):
    images = torch.tensor(pixels.transpose(0, 3, 1, 2))
    with torch.no_grad():
        return other(images, output_attentions=True, **options).attentions


def test_vit(vit, pixels):
    other, model, params = vit
    attentions = reference(other, pixels)
    # The class token looks at a grid of 2 × 3 patches; a patch does; the mean of all tokens.
    looks = ((0, 0), (2, 4), (-1, None))

    def maps(params, x):
        variables = {"params": params}
        return [attention_maps(model, variables, x, layer=n, query=q) for n, q in looks]

    found = jax.jit(maps, compiler_options=QUICK)(params, pixels)
    for (layer, query), ours in zip(looks, found, strict=True):
        rows = attentions[layer].numpy()
        row = rows.mean(2) if query is None else rows[:, :, query]
        assert ours.shape == (2, 4, 2, 3) and row.std() > 0.03
        np.testing.assert_allclose(ours, row[..., 1:].reshape(2, 4, 2, 3), rtol=0, atol=1e-5)


def test_a_prefix_is_looked_at_too(vit, pixels):
    """Of the probabilities that all keys share, those of the patches are left."""
    _, model, params = vit
    adapter = fmjax.peft.init(jax.random.key(0), fmjax.peft.Prefix(4), model, params)
    adapter = jax.tree.map(lambda x: 2 * jax.random.normal(jax.random.key(1), x.shape), adapter)
    look = jax.jit(lambda v: attention_maps(model, v, pixels, layer=0), compiler_options=QUICK)
    ours, without = look({"params": params, "adapter": adapter}), look({"params": params})
    # The first layer's queries are those without a prefix, and so are its other keys' scores.
    shares = ours.sum((2, 3)) / without.sum((2, 3))
    assert shares.max() < 0.95
    np.testing.assert_allclose(ours, without * shares[..., None, None], rtol=1e-4)


def test_clip(tmp_path):
    torch.manual_seed(0)
    vision = transformers.CLIPVisionConfig(
        **SIZES, image_size=8, patch_size=4, initializer_factor=8.0, projection_dim=8
    )
    text = transformers.CLIPTextConfig(**SIZES, vocab_size=20, projection_dim=8)
    config = transformers.CLIPConfig(
        text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8,
        attn_implementation="eager",
    )  # fmt: skip
    other = transformers.CLIPModel(config).eval()
    other.save_pretrained(tmp_path)
    model, params = fmjax.from_pretrained(tmp_path)
    pixels = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    row = reference(other.vision_model, pixels)[-1].numpy()[:, :, 0, 1:]
    maps = jax.jit(lambda p, x: attention_maps(model, {"params": p}, x), compiler_options=QUICK)
    found = maps(params, pixels)
    np.testing.assert_allclose(found, row.reshape(2, 4, 2, 2), rtol=0, atol=1e-5)


def test_errors(vit, pixels):
    _, model, params = vit

    def maps(**options):
        return jax.eval_shape(lambda p: attention_maps(model, {"params": p}, pixels, **options),
                              params)  # fmt: skip

    with pytest.raises(ConfigError, match="no layer 3 among 3"):
        maps(layer=3)
    with pytest.raises(ConfigError, match="no layer -4 among 3"):
        maps(layer=-4)
    with pytest.raises(ConfigError, match="no token 7 among 7"):
        maps(query=7)
    with pytest.raises(ConfigError, match="WithHead is no vision transformer itself"):
        attention_maps(WithHead(model, ProjectionHead(4)), {"params": params}, pixels)
