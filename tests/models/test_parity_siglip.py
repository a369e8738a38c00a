"""SigLIP against transformers: both encoders and each alone, other image sizes, files."""

import clip_cases as cases
import jax
import jax.numpy as jnp
import pytest
import transformers

import fmjax

# name → (class, config). What is odd about each is in its name.
SAME = dict(hidden_size=32)
CASES = {
    "siglip": ("SiglipModel", lambda: cases.two("Siglip", SAME)),
    "siglip-projection": (
        "SiglipModel",
        lambda: cases.two("Siglip", dict(projection_size=32), dict(patch_size=5)),
    ),
    "siglip-three-layers-grey": (
        "SiglipModel",
        lambda: cases.two(
            "Siglip",
            SAME | dict(num_hidden_layers=3, num_attention_heads=1, hidden_act="relu"),
            dict(num_hidden_layers=1, num_channels=1, num_attention_heads=8, hidden_act="gelu"),
        ),
    ),
    "siglip-one-patch": (
        "SiglipModel",
        lambda: cases.two(
            "Siglip",
            SAME | dict(num_hidden_layers=1, max_position_embeddings=12),
            dict(patch_size=12, layer_norm_eps=1e-2),
        ),
    ),
    "siglip-classes": (
        "SiglipForImageClassification",
        lambda: cases.two("Siglip", SAME, id2label={0: "a", 1: "b", 2: "c"}),
    ),
    "vision": ("SiglipVisionModel", lambda: transformers.SiglipVisionConfig(**cases.vision())),
    "vision-without-pooling": (
        "SiglipVisionModel",
        lambda: transformers.SiglipVisionConfig(**cases.vision(vision_use_head=False)),
    ),
    "text": (
        "SiglipTextModel",
        lambda: transformers.SiglipTextConfig(**cases.text(projection_size=10)),
    ),
}


def inputs_of(model):
    kind, found = model.config.model_type, {}
    if "text" not in kind:
        found["pixel_values"] = cases.images(model.config)
    if "vision" not in kind and model.config.head is None:
        # As it is trained: padding is read like any token.
        texts = cases.texts(getattr(model.config, "text_config", model.config))
        found["input_ids"] = texts["input_ids"]
    return found


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_export(parity, tmp_path, name):
    cls, config = CASES[name]
    hf = cases.make(parity, cls, config(), tmp_path / "hf")
    model, params = fmjax.from_pretrained(tmp_path / "hf")
    inputs = inputs_of(model)
    cases.compare(hf, model, params, inputs)
    cases.compare_export(hf, tmp_path / "hf", tmp_path / "out", model, params, inputs)


def test_padding_that_a_mask_hides(parity, tmp_path):
    cls, config = CASES["text"]
    hf = cases.make(parity, cls, config(), tmp_path)
    model, params = fmjax.from_pretrained(tmp_path)
    cases.compare(hf, model, params, cases.texts(model.config))


@pytest.mark.parametrize("size", [(20, 20), (13, 12), (4, 31), (36, 4)])
def test_images_of_other_sizes(parity, tmp_path, size):
    cls, config = CASES["vision"]
    hf = cases.make(parity, cls, config(), tmp_path)
    model, params = fmjax.from_pretrained(tmp_path)
    inputs = {"pixel_values": cases.images(model.config, *size, rows=2)}
    cases.compare(hf, model, params, inputs, interpolate_pos_encoding=True)


def test_gradients_of_the_sigmoid_loss(parity, tmp_path):
    cls, config = CASES["siglip"]
    hf = cases.make(parity, cls, config(), tmp_path)
    model, params = fmjax.from_pretrained(tmp_path, scan_layers=False)

    def ours(out):
        signs = 2 * jnp.eye(3) - 1
        return -jnp.mean(jnp.sum(jax.nn.log_sigmoid(signs * out.logits_per_text), -1))

    def theirs(out):
        import torch

        signs = 2 * torch.eye(3) - 1
        return -torch.nn.functional.logsigmoid(signs * out.logits_per_text).sum(-1).mean()

    cases.compare_gradients(hf, model, params, inputs_of(model), theirs, ours)
