"""ViT against transformers: outputs, gradients, other image sizes, exports."""

import jax
import numpy as np
import pytest
from quick import QUICK
from vision_cases import (
    apply,
    compare,
    compare_export,
    compare_gradients,
    images,
    make,
)

import fmjax
from fmjax.core.errors import ConfigError, DataError
from fmjax.models.vit.config import ViTConfig

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
def twin(tmp_path_factory):
    """A case by name: (reference, model, params, directory), made once."""
    made = {}

    def get(name):
        if name not in made:
            directory = tmp_path_factory.mktemp("vit")
            hf = make(directory, CASES[name])
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

    def loss(output):
        return (getattr(output, field) ** 2).mean()

    compare_gradients(hf, model, params, inputs, loss, **options)


def test_unscanned_layers_and_several_files(twin, tmp_path):
    hf, _, _, directory = twin("classes")
    model, params = fmjax.from_pretrained(directory, scan_layers=False, remat="full")
    assert "layers_0" in params
    compare(hf, model, params, {"pixel_values": images(model.config)})
    compare_export(hf, directory, tmp_path / "out", model, params, max_shard_size=9000)


def test_bfloat16_keeps_every_bit(tmp_path):
    hf = make(tmp_path / "hf", CASES["bare"], "bfloat16")
    model, params = fmjax.from_pretrained(tmp_path / "hf")
    assert {x.dtype.name for x in jax.tree.leaves(params)} == {"bfloat16"}
    compare_export(hf, tmp_path / "hf", tmp_path / "out", model, params)


def test_hidden_patches(tmp_path):
    """The mask token of transformers' masked image modelling, bare here."""
    hf = make(tmp_path / "hf", ("ViTForMaskedImageModeling", dict(encoder_stride=4)))
    override = {"head": None, "pooling": "cls", "use_mask_token": True}
    model, params = fmjax.from_pretrained(tmp_path / "hf", override=override)
    hidden = np.random.default_rng(2).random((2, 9)) < 0.5
    inputs = {"pixel_values": images(model.config), "bool_masked_pos": hidden}
    out = compare(hf.vit, model, params, inputs)
    np.testing.assert_array_equal(out.pooler_output, out.last_hidden_state[:, 0])
    with pytest.raises(DataError, match="must be a boolean for each patch"):
        apply(model, params, inputs | {"bool_masked_pos": hidden[:, :3]})


def test_files_without_a_pooler(tmp_path):
    """As DINO's, which say ViTModel."""
    import transformers
    from safetensors.numpy import load_file, save_file

    make(tmp_path / "hf", CASES["bare"])
    file = tmp_path / "hf" / "model.safetensors"
    tensors = {n: x for n, x in load_file(file).items() if not n.startswith("pooler.")}
    save_file(tensors, file, {"format": "pt"})
    model, params = fmjax.from_pretrained(tmp_path / "hf")
    assert model.config.pooling == "cls" and "pooler" not in params
    hf = transformers.ViTModel.from_pretrained(
        tmp_path / "hf", add_pooling_layer=False, attn_implementation="eager"
    ).eval()
    out = compare(hf, model, params, {"pixel_values": images(model.config)})
    np.testing.assert_array_equal(out.pooler_output, out.last_hidden_state[:, 0])
    fmjax.hub.convert(tmp_path / "hf", tmp_path / "converted")
    fmjax.save_pretrained(tmp_path / "saved", model, params)
    for name in ("converted", "saved"):
        written = load_file(tmp_path / name / "model.safetensors")
        assert written.keys() == tensors.keys()
        for key, x in tensors.items():
            np.testing.assert_array_equal(written[key], x)
        assert fmjax.from_pretrained(tmp_path / name)[0].config == model.config
    new, _ = fmjax.from_pretrained(tmp_path / "hf", new_head=jax.random.key(0))
    assert new.config.pooling is None


def test_a_mesh_of_eight(twin):
    hf, _, _, directory = twin("classes")
    mesh = fmjax.make_mesh(data=2, fsdp=2, tensor=2)
    model, params = fmjax.from_pretrained(directory, mesh=mesh)
    kernel = params["layers"]["mlp"]["fc1"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (2, 12, 20)
    compare(hf, model, params, {"pixel_values": images(model.config)})


# --- what transformers does not have -------------------------------------------------------------


def test_attention_pooling_is_that_of_siglip(twin):
    """The weights of a SigLIP head in our pool give its vector."""
    import torch
    from transformers import SiglipVisionConfig
    from transformers.models.siglip.modeling_siglip import SiglipMultiheadAttentionPoolingHead

    _, _, _, directory = twin("bare")
    override = {"pooling": "map"}
    model, params = fmjax.from_pretrained(directory, override=override, new_head=jax.random.key(0))
    config = SiglipVisionConfig(
        hidden_size=24, intermediate_size=20, num_attention_heads=3, hidden_act="gelu"
    )
    config.layer_norm_eps = 1e-12
    torch.manual_seed(0)
    head = SiglipMultiheadAttentionPoolingHead(config)
    weights = {k: v.detach().numpy() for k, v in head.named_parameters()}
    pool = params["attention_pool"]
    pool["probe"]["token"] = weights["probe"]
    for i, name in enumerate(("q_proj", "k_proj", "v_proj")):
        pool[name]["kernel"] = np.split(weights["attention.in_proj_weight"], 3)[i].T
        pool[name]["bias"] = np.split(weights["attention.in_proj_bias"], 3)[i]
    for path, name in (
        ("o_proj", "attention.out_proj"),
        ("mlp/fc1", "mlp.fc1"),
        ("mlp/fc2", "mlp.fc2"),
    ):
        node = pool["mlp"][path[4:]] if "/" in path else pool[path]
        node["kernel"], node["bias"] = weights[f"{name}.weight"].T, weights[f"{name}.bias"]
    pool["norm"]["scale"] = weights["layernorm.weight"]
    pool["norm"]["bias"] = weights["layernorm.bias"]
    out = apply(model, params, {"pixel_values": images(model.config)})
    with torch.no_grad():
        expected = head(torch.tensor(np.asarray(out.last_hidden_state)))
    np.testing.assert_allclose(out.pooler_output, expected, rtol=0, atol=1e-5)


def test_mean_and_attention_pooling_survive_the_files(twin, tmp_path):
    _, _, _, directory = twin("bare")
    for pooling in ("mean", "map"):
        override = {"head": "image-classification", "pooling": pooling, "id2label": ["a", "b", "c"]}
        model, params = fmjax.from_pretrained(
            directory, override=override, new_head=jax.random.key(0)
        )
        inputs = {"pixel_values": images(model.config)}
        out = apply(model, params, inputs)
        with pytest.warns(UserWarning, match=f"{pooling}: transformers does not know pooling="):
            fmjax.save_pretrained(tmp_path / pooling, model, params)
        again, same = fmjax.from_pretrained(tmp_path / pooling)
        assert again.config == model.config
        np.testing.assert_array_equal(apply(again, same, inputs).logits, out.logits)
        if pooling == "mean":
            mean = out.last_hidden_state[:, 1:].mean(1)
            head = params["classifier"]
            np.testing.assert_allclose(
                out.logits, mean @ head["kernel"] + head["bias"], rtol=0, atol=1e-5
            )


@pytest.mark.parametrize("scan", [True, False])
def test_stochastic_depth_acts_when_a_key_is_given(twin, scan):
    _, _, _, directory = twin("bare")
    override = {"drop_path_rate": 0.9}
    model, params = fmjax.from_pretrained(directory, override=override, scan_layers=scan)
    inputs = {"pixel_values": images(model.config, rows=64), "output_hidden_states": True}

    def states(**rngs):
        return model.apply({"params": params}, **inputs, **rngs).hidden_states

    both = jax.jit(lambda key: (states(), states(rngs={"dropout": key})), compiler_options=QUICK)
    plain, dropped = both(jax.random.key(0))
    # The first layer is never dropped; most rows pass the last one as they are.
    np.testing.assert_allclose(plain[1], dropped[1], rtol=0, atol=1e-5)
    untouched = np.asarray(dropped[2] == dropped[1]).all((1, 2))
    assert 0.6 < untouched.mean() < 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(pooling="max"), "pooling='max' is unknown; choose one of None, cls, mean, map"),
        (dict(num_attention_heads=5), "hidden_size=768 is not a multiple of num_attention_heads=5"),
        (dict(image_size=(1, 2, 3)), "must be a number of pixels, or a height and a width"),
        (dict(image_size=8), "image_size=8 has no patch of patch_size=16"),
        (dict(drop_path_rate=1.0), r"drop_path_rate=1.0 must be in \[0, 1\)"),
    ],
)
def test_a_config_that_cannot_be(fields, message):
    with pytest.raises(ConfigError, match=message):
        ViTConfig(**fields)


def test_a_mask_needs_its_token(twin):
    _, model, params, _ = twin("bare")
    inputs = {"pixel_values": images(model.config), "bool_masked_pos": np.ones((2, 9), bool)}
    with pytest.raises(ConfigError, match="set use_mask_token=True"):
        apply(model, params, inputs)


def test_published_sizes():
    millions = {"vit-ti16": 5.56, "vit-s16": 21.8, "vit-b16": 86.4, "vit-l16": 304.4}
    for name, size in millions.items():
        assert abs(fmjax.param_count(fmjax.build(name)) / 1e6 - size) < 0.1
