"""Masked autoencoders against transformers: given the same noise, everything is the same."""

import jax
import numpy as np
import pytest
from vision_cases import apply, compare, compare_export, compare_gradients, images, make

import fmjax
from fmjax.core.errors import ConfigError, DataError
from fmjax.models.vit_mae.config import ViTMAEConfig
from fmjax.objectives import MaskedAutoencoding

# transformers writes the decoder's layers under a name that its own renaming garbled; the published
# files and what is written here have this one.
MANGLED, NAME = "decoder.decoder_encoder.layer.", "decoder.decoder_layers."
DECODER = dict(
    decoder_hidden_size=16,
    decoder_num_attention_heads=2,
    decoder_num_hidden_layers=1,
    decoder_intermediate_size=20,
    intermediate_size=40,
)
CASES = {
    "pretraining": ("ViTMAEForPreTraining", DECODER),
    "normalised, deep decoder": (
        "ViTMAEForPreTraining",
        DECODER | dict(norm_pix_loss=True, decoder_num_hidden_layers=3, mask_ratio=0.5),
    ),
    "grey, one head, no qkv bias": (
        "ViTMAEForPreTraining",
        DECODER
        | dict(
            num_channels=1, num_attention_heads=1, decoder_num_attention_heads=4, qkv_bias=False
        ),
    ),
    "few hidden": (
        "ViTMAEForPreTraining",
        DECODER | dict(mask_ratio=0.3, patch_size=3, hidden_act="relu", layer_norm_eps=1e-3),
    ),
    "encoder": ("ViTMAEModel", dict(image_size=16, hidden_size=36, intermediate_size=20)),
}


def renamed(name):
    return name.replace(MANGLED, NAME)


def noisy(config, height=None, width=None, seed=3):
    pixels = images(config, height, width)
    rows, columns = (n // p for n, p in zip(pixels.shape[1:3], config.patch, strict=True))
    noise = np.random.default_rng(seed).random((len(pixels), rows * columns), np.float32)
    return {"pixel_values": pixels, "noise": noise}


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    made = {}

    def get(name):
        if name not in made:
            directory = tmp_path_factory.mktemp("mae")
            hf = make(directory, CASES[name])
            made[name] = (hf, *fmjax.from_pretrained(directory), directory)
        return made[name]

    return get


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_export(twin, tmp_path, name):
    hf, model, params, directory = twin(name)
    skip = ("mask", "ids_restore") if name == "encoder" else ("loss",)
    compare(hf, model, params, noisy(model.config), skip)
    compare_export(hf, directory, tmp_path / "out", model, params, renamed)


@pytest.mark.parametrize("size", [(24, 24), (8, 20), (20, 8)])
def test_other_image_sizes(twin, size):
    hf, model, params, _ = twin("pretraining")
    inputs = noisy(model.config, *size)
    compare(hf, model, params, inputs, ("loss",), interpolate_pos_encoding=True)


@pytest.mark.parametrize("name", ["pretraining", "normalised, deep decoder"])
def test_the_objective_and_its_gradient(twin, name):
    """The loss is the reference's, and so are the gradients; fixed positions have none."""
    hf, model, params, _ = twin(name)
    objective = MaskedAutoencoding(model.config.patch_size, model.config.norm_pix_loss)

    def own(params, batch):
        total, weight, _, _ = objective.loss(model.apply, {"params": params}, {}, batch, None)
        return total / weight

    fixed = ("vit.embeddings.position_embeddings", "decoder.decoder_pos_embed")
    inputs = noisy(model.config)
    compare_gradients(hf, model, params, inputs, lambda output: output.loss, own, fixed)


def test_without_noise(twin):
    _, model, params, directory = twin("pretraining")
    pixels = images(model.config)
    bare, encoder = fmjax.from_pretrained(directory, override={"head": None})
    out = jax.eval_shape(lambda: bare.apply({"params": encoder}, pixel_values=pixels))
    assert out.last_hidden_state.shape == (2, 10, 24)
    with pytest.raises(ConfigError, match=r"pass noise=, or a key rngs=\{'mask': key\}"):
        model.apply({"params": params}, pixel_values=pixels)
    with pytest.raises(DataError, match=r"noise is float32 \(2, 4\); it must be floating"):
        model.apply({"params": params}, pixel_values=pixels, noise=np.zeros((2, 4), np.float32))
    rngs = {"mask": jax.random.key(0)}
    run = jax.jit(lambda: model.apply({"params": params}, pixel_values=pixels, rngs=rngs).mask)
    masks = np.asarray(run())
    assert (np.sum(masks, 1) == 7).all() and (masks[0] != masks[1]).any()


def test_the_encoder_is_a_vit(twin):
    """All patches through the bare encoder give what a ViT with its weights gives."""
    _, _, _, directory = twin("pretraining")
    encoder, params = fmjax.from_pretrained(directory, override={"head": None})
    override = {
        "model_type": "vit",
        "head": "image-classification",
        "pooling": "mean",
        "id2label": ["a", "b", "c"],
        "drop_path_rate": 0.1,
    }
    vit, own = fmjax.from_pretrained(directory, override=override, new_head=jax.random.key(0))
    inputs = {"pixel_values": images(vit.config)}
    out = apply(vit, own, inputs)
    assert out.logits.shape == (2, 3)
    expected = apply(encoder, params, inputs).last_hidden_state
    np.testing.assert_allclose(out.last_hidden_state, expected, rtol=0, atol=1e-6)


def test_positions_start_as_in_the_reference(twin):
    from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

    _, model, _, _ = twin("pretraining")
    params = fmjax.init_params(model, jax.random.key(0))
    table = params["position_embeddings"]["table"]
    rows_first = build_2d_sinusoidal_position_embedding(3, 3, 24, cls_token=True).numpy()
    # The published weights have columns first; transformers turns its table round for them.
    np.testing.assert_allclose(table[0], np.roll(rows_first, 12, 1), rtol=0, atol=1e-6)
    kernel = params["layers"]["mlp"]["fc1"]["kernel"]
    assert 0.9 * (6 / 64) ** 0.5 < np.abs(kernel).max() <= (6 / 64) ** 0.5
    with pytest.raises(ConfigError, match="hidden_size=6 must be a multiple of 4"):
        ViTMAEConfig(hidden_size=6, num_attention_heads=1)
    with pytest.raises(ConfigError, match="mask_ratio=1.0 must lie between 0 and 1"):
        ViTMAEConfig(mask_ratio=1.0)
    with pytest.raises(ConfigError, match="decoder_num_attention_heads=3"):
        ViTMAEConfig(decoder_num_attention_heads=3)
