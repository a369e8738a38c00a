"""DINOv2 with and without registers against transformers: outputs, gradients, sizes, exports."""

import contextlib
import json
import shutil

import jax
import numpy as np
import pytest
import transformers
from quick import QUICK
from vision_cases import apply, compare, compare_export, compare_gradients, images, make

import fmjax
from fmjax.core.errors import ConfigError
from fmjax.models.dinov2.config import Dinov2Config
from fmjax.nn.projection import ProjectionHead, WithHead

# name → (class of transformers, options)
CASES = {
    "bare": ("Dinov2Model", dict(layerscale_value=0.5)),
    "classes, swiglu": (
        "Dinov2ForImageClassification",
        dict(num_labels=5, use_swiglu_ffn=True, mlp_ratio=3, patch_size=3),
    ),
    "no mask token, no qkv bias": (
        "Dinov2ForImageClassification",
        dict(use_mask_token=False, qkv_bias=False, num_attention_heads=1, hidden_act="relu"),
    ),
    "oblong patches, grey": (
        "Dinov2Model",
        dict(image_size=[12, 18], patch_size=[2, 3], num_channels=1, mlp_ratio=2),
    ),
    "registers": ("Dinov2WithRegistersModel", dict(num_register_tokens=3, num_hidden_layers=3)),
    "registers, classes, swiglu": (
        "Dinov2WithRegistersForImageClassification",
        dict(num_labels=3, num_register_tokens=1, use_swiglu_ffn=True, layer_norm_eps=1e-3),
    ),
}


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    made = {}

    def get(name):
        if name not in made:
            directory = tmp_path_factory.mktemp("dinov2")
            hf = make(directory, CASES[name])
            made[name] = (hf, *fmjax.from_pretrained(directory), directory)
        return made[name]

    return get


def test_keys_of_published_files_that_change_nothing(twin, tmp_path):
    _, model, params, directory = twin("registers")
    notes = {
        "interpolate_antialias": True, "interpolate_offset": 0.0, "gradient_checkpointing": False,
        "tie_word_embeddings": True, "_out_features": ["stage2"], "_out_indices": [2],
    }  # fmt: skip
    shutil.copytree(directory, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | notes))
    again, found = fmjax.from_pretrained(tmp_path)
    assert again.config == model.config
    jax.tree.map(np.testing.assert_array_equal, found, params)
    hf = transformers.AutoModel.from_pretrained(tmp_path, attn_implementation="eager").eval()
    inputs = {"pixel_values": images(model.config, 20, 16)}
    compare(hf, again, found, inputs)
    (tmp_path / "config.json").write_text(json.dumps(config | {"interpolate_offset": 0.1}))
    with pytest.raises(ConfigError, match="config.json: interpolate_offset=0.1 is not supported"):
        fmjax.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_export(twin, tmp_path, name):
    hf, model, params, directory = twin(name)
    compare(hf, model, params, {"pixel_values": images(model.config)})
    compare_export(hf, directory, tmp_path / "out", model, params)


@pytest.mark.parametrize("name", ["bare", "registers"])
@pytest.mark.parametrize("size", [(24, 24), (9, 21)])
def test_other_image_sizes_and_hidden_patches(twin, name, size):
    """Registers have their positions resampled with antialiasing, the others without."""
    hf, model, params, _ = twin(name)
    pixels = images(model.config, *size)
    hidden = np.random.default_rng(2).random((2, (size[0] // 4) * (size[1] // 4))) < 0.5
    compare(hf, model, params, {"pixel_values": pixels, "bool_masked_pos": hidden})


@pytest.mark.parametrize(
    ("name", "size"), [("classes, swiglu", (15, 9)), ("registers, classes, swiglu", None)]
)
def test_gradients(twin, name, size):
    hf, model, params, _ = twin(name)
    inputs = {"pixel_values": images(model.config, *(size or ()))}
    prefix = model.config.model_type
    # Nothing is hidden here.
    fixed = (f"{prefix}.embeddings.mask_token",)
    compare_gradients(
        hf, model, params, inputs, lambda output: (output.logits**2).mean(), fixed=fixed
    )


def test_unscanned_layers_and_a_mesh(twin, tmp_path):
    hf, _, _, directory = twin("registers, classes, swiglu")
    mesh = fmjax.make_mesh(data=2, fsdp=2, tensor=2)
    model, params = fmjax.from_pretrained(
        directory, mesh=mesh, scan_layers=False, remat="attention"
    )
    kernel = params["layers_0"]["mlp"]["weights_in"]["kernel"]
    assert kernel.shape == (24, 2, 64)
    assert kernel.addressable_shards[0].data.shape == (12, 2, 32)
    compare(hf, model, params, {"pixel_values": images(model.config)})
    compare_export(hf, directory, tmp_path / "out", model, params)


def test_bfloat16_keeps_every_bit(tmp_path):
    hf = make(tmp_path / "hf", CASES["registers"], "bfloat16")
    model, params = fmjax.from_pretrained(tmp_path / "hf")
    compare_export(hf, tmp_path / "hf", tmp_path / "out", model, params)


def test_a_classifier_on_bare_weights(twin):
    _, _, _, directory = twin("bare")
    override = {"head": "image-classification", "id2label": ["a", "b", "c"], "drop_path_rate": 0.5}
    model, params = fmjax.from_pretrained(directory, override=override, new_head=jax.random.key(0))
    inputs = {"pixel_values": images(model.config)}

    def logits(params, **rngs):
        return model.apply({"params": params}, **inputs, **rngs).logits

    both = jax.jit(
        lambda params: (logits(params), logits(params, rngs={"dropout": jax.random.key(0)})),
        compiler_options=QUICK,
    )
    plain, dropped = both(params)
    assert plain.shape == (2, 3) and np.abs(plain - dropped).max() > 1e-3


def test_what_cannot_be(twin):
    with pytest.raises(ConfigError, match="with registers its model_type is dinov2_with_registers"):
        Dinov2Config(num_register_tokens=4)
    with pytest.raises(ConfigError, match="has num_register_tokens, usually 4"):
        Dinov2Config(model_type="dinov2_with_registers")
    with pytest.raises(ConfigError, match="leave use_mask_token out"):
        Dinov2Config(model_type="dinov2_with_registers", use_mask_token=False)
    with pytest.raises(ConfigError, match=r"drop_path_rate=-0.1 must be in \[0, 1\)"):
        Dinov2Config(drop_path_rate=-0.1)
    _, model, params, _ = twin("no mask token, no qkv bias")
    inputs = {"pixel_values": images(model.config), "bool_masked_pos": np.ones((2, 9), bool)}
    with pytest.raises(ConfigError, match="set use_mask_token=True"):
        apply(model, params, inputs)


def test_the_ratio_of_the_mlp_is_whole_in_the_files(tmp_path):
    sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=14)
    for ratio in (2.0, 2.5):
        model = fmjax.build(Dinov2Config(**sizes, mlp_ratio=ratio))
        params = fmjax.init_params(model, jax.random.key(0))
        said = pytest.warns(UserWarning, match="refuses mlp_ratio=2.5")
        with said if ratio == 2.5 else contextlib.nullcontext():
            fmjax.save_pretrained(tmp_path / str(ratio), model, params)
        assert fmjax.from_pretrained(tmp_path / str(ratio))[0].config == model.config
    assert transformers.AutoModel.from_pretrained(tmp_path / "2.0").config.mlp_ratio == 2


def test_a_head_on_patches_passes_over_the_registers():
    config = Dinov2Config(
        model_type="dinov2_with_registers", num_register_tokens=3, hidden_size=8,
        num_hidden_layers=1, num_attention_heads=2, image_size=28,
    )  # fmt: skip
    backbone, head = fmjax.build(config), ProjectionHead(4, 8)
    pixels = np.random.RandomState(0).rand(2, 28, 28, 3).astype(np.float32)
    index = np.array([[0, 7]], np.int32)  # the first patch of one image, the last of the other
    module = WithHead(backbone, head)
    variables = {"params": fmjax.init_params(module, jax.random.key(0))}
    out = module.apply(variables, pixels, index)
    own = head.apply({"params": variables["params"]["head"]}, out.last_hidden_state)
    np.testing.assert_allclose(out.patch_embeds[0], [own[0, 4], own[1, 7]], rtol=0, atol=1e-5)


def test_published_sizes():
    for name, millions in {"dinov2-s14": 22.06, "dinov2-b14": 86.58, "dinov2-g14": 1136.5}.items():
        model = fmjax.build(name)
        assert abs(fmjax.param_count(model) / 1e6 / millions - 1) < 1e-3, name
        assert Dinov2Config.from_hf(model.config.to_hf()) == model.config
