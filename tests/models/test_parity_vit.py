"""ViT against transformers: outputs, gradients, other image sizes, exports."""

import jax
import numpy as np
import pytest
from vision_cases import (
    apply,
    compare,
    compare_export,
    compare_gradients,
    images,
    make,
)

import fmjax
from fmjax.core.errors import DataError

# name → (class of transformers, options)
CASES = {
    "bare": ("ViTModel", dict(intermediate_size=20)),
    "classes": (
        "ViTForImageClassification",
        dict(num_labels=5, patch_size=3, intermediate_size=40),
    ),
    "no qkv bias, one head": (
        "ViTForImageClassification",
        dict(qkv_bias=False, num_attention_heads=1, num_hidden_layers=3, hidden_act="relu"),
    ),
    "grey, tall": (
        "ViTModel",
        dict(image_size=[20, 12], patch_size=4, num_channels=1, layer_norm_eps=1e-3),
    ),
    "oblong patches, wide pooler": (
        "ViTModel",
        dict(image_size=[12, 10], patch_size=[4, 2], pooler_output_size=7, pooler_act="gelu"),
    ),
    "a pixel too many": ("ViTModel", dict(image_size=14, hidden_act="gelu_new")),
}


@pytest.fixture(scope="module")
def twin(parity, tmp_path_factory):
    """A case by name: (reference, model, params, directory), made once."""
    made = {}

    def get(name):
        if name not in made:
            directory = tmp_path_factory.mktemp("vit")
            hf = make(parity, directory, CASES[name])
            made[name] = (hf, *fmjax.from_pretrained(directory), directory)
        return made[name]

    return get


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_export(twin, tmp_path, name):
    hf, model, params, directory = twin(name)
    size = model.config.image_size
    height, width = size if isinstance(size, tuple) else (size, size)
    compare(hf, model, params, {"pixel_values": images(model.config, height, width)})
    compare_export(hf, directory, tmp_path / "out", model, params)


@pytest.mark.parametrize("size", [(24, 24), (8, 20), (13, 18), (4, 4)])
def test_other_image_sizes(twin, size):
    hf, model, params, _ = twin("bare")
    inputs = {"pixel_values": images(model.config, *size)}
    compare(hf, model, params, inputs, interpolate_pos_encoding=True)


@pytest.mark.parametrize(("name", "size"), [("bare", None), ("classes", (15, 9))])
def test_gradients(twin, name, size):
    hf, model, params, _ = twin(name)
    inputs = {"pixel_values": images(model.config, *(size or ()))}
    field = "pooler_output" if name == "bare" else "logits"
    options = {"interpolate_pos_encoding": True} if size else {}
    compare_gradients(hf, model, params, inputs, lambda y: (y**2).mean(), field, **options)


def test_unscanned_layers_and_several_files(twin, tmp_path):
    hf, _, _, directory = twin("classes")
    model, params = fmjax.from_pretrained(directory, scan_layers=False, remat="full")
    assert "layers_0" in params
    compare(hf, model, params, {"pixel_values": images(model.config)})
    compare_export(hf, directory, tmp_path / "out", model, params, max_shard_size=9000)


def test_bfloat16_keeps_every_bit(parity, tmp_path):
    hf = make(parity, tmp_path / "hf", CASES["bare"], "bfloat16")
    model, params = fmjax.from_pretrained(tmp_path / "hf")
    assert {x.dtype.name for x in jax.tree.leaves(params)} == {"bfloat16"}
    compare_export(hf, tmp_path / "hf", tmp_path / "out", model, params)


def test_hidden_patches(parity, tmp_path):
    """The mask token of transformers' masked image modelling, bare here."""
    import torch
    from transformers import ViTForMaskedImageModeling

    hf = make(parity, tmp_path / "hf", ("ViTForMaskedImageModeling", dict(encoder_stride=4)))
    assert isinstance(hf, ViTForMaskedImageModeling)
    with torch.no_grad():
        hf.vit.embeddings.mask_token.normal_()
    hf.save_pretrained(tmp_path / "hf")
    override = {"head": None, "pooling": "cls", "use_mask_token": True}
    model, params = fmjax.from_pretrained(tmp_path / "hf", override=override)
    hidden = np.random.default_rng(2).random((2, 9)) < 0.5
    inputs = {"pixel_values": images(model.config), "bool_masked_pos": hidden}
    out = compare(hf.vit, model, params, inputs)
    np.testing.assert_array_equal(out.pooler_output, out.last_hidden_state[:, 0])
    with pytest.raises(DataError, match="must be a boolean for each patch"):
        apply(model, params, inputs | {"bool_masked_pos": hidden[:, :3]})
