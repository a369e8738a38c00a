"""CLIP against transformers: both encoders and each alone, other image sizes, gradients, files."""

import clip_cases as cases
import jax
import jax.numpy as jnp
import pytest
import transformers

import fmjax

# name → (class, config). What is odd about each is in its name.
CASES = {
    "clip": ("CLIPModel", lambda: cases.two("CLIP", projection_dim=20)),
    "clip-old-end-of-text": (
        "CLIPModel",
        lambda: cases.two("CLIP", dict(eos_token_id=2), dict(patch_size=5, num_attention_heads=8)),
    ),
    "clip-gelu-three-layers": (
        "CLIPModel",
        lambda: cases.two(
            "CLIP",
            dict(hidden_act="gelu", num_hidden_layers=3, num_attention_heads=1),
            dict(hidden_act="gelu_new", num_hidden_layers=1, layer_norm_eps=1e-2),
            logit_scale_init_value=0.5,
        ),
    ),
    "clip-one-patch-grey": (
        "CLIPModel",
        lambda: cases.two(
            "CLIP",
            dict(num_hidden_layers=1, max_position_embeddings=12),
            dict(num_channels=1, patch_size=12),
        ),
    ),
    "clip-classes": (
        "CLIPForImageClassification",
        lambda: cases.two("CLIP", id2label={0: "a", 1: "b", 2: "c"}),
    ),
    "vision": ("CLIPVisionModel", lambda: transformers.CLIPVisionConfig(**cases.vision())),
    "vision-projection": (
        "CLIPVisionModelWithProjection",
        lambda: transformers.CLIPVisionConfig(**cases.vision(projection_dim=10)),
    ),
    "text": ("CLIPTextModel", lambda: transformers.CLIPTextConfig(**cases.text())),
    "text-projection": (
        "CLIPTextModelWithProjection",
        lambda: transformers.CLIPTextConfig(**cases.text(projection_dim=10)),
    ),
}
RENAMED = {
    "image_embeds": "image_features",
    "text_embeds": "text_features",
    "last_hidden_state": "{}_model_output.last_hidden_state",
}


def inputs_of(model):
    kind, found = model.config.model_type, {}
    if "text" not in kind:
        found["pixel_values"] = cases.images(model.config)
    if "vision" not in kind and model.config.head != "image-classification":
        found |= cases.texts(getattr(model.config, "text_config", model.config))
    return found


def renamed(model, inputs):
    """What an encoder by itself calls otherwise; the model's pooled features are projected."""
    if model.config.head == "projection":
        side = "vision" if "pixel_values" in inputs else "text"
        names = {k: v.format(side) for k, v in RENAMED.items()}
        layers = range(model.config.num_hidden_layers + 1)
        states = {f"hidden_states.{i}": f"{side}_model_output.hidden_states.{i}" for i in layers}
        return names | states
    return {
        "text_model_output.pooler_output": "text_features",
        "vision_model_output.pooler_output": "image_features",
    }


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_export(parity, tmp_path, name):
    cls, config = CASES[name]
    hf = cases.make(parity, cls, config(), tmp_path / "hf")
    model, params = fmjax.from_pretrained(tmp_path / "hf")
    inputs = inputs_of(model)
    cases.compare(hf, model, params, inputs, renamed(model, inputs))
    cases.compare_export(hf, tmp_path / "hf", tmp_path / "out", model, params, inputs)


@pytest.mark.parametrize("size", [(20, 20), (13, 12), (4, 31), (36, 4)])
def test_images_of_other_sizes(parity, tmp_path, size):
    cls, config = CASES["vision"]
    hf = cases.make(parity, cls, config(), tmp_path)
    model, params = fmjax.from_pretrained(tmp_path)
    inputs = {"pixel_values": cases.images(model.config, *size, rows=2)}
    cases.compare(hf, model, params, inputs, interpolate_pos_encoding=True)


def test_gradients_of_the_contrastive_loss(parity, tmp_path):
    cls, config = CASES["clip"]
    hf = cases.make(parity, cls, config(), tmp_path)
    model, params = fmjax.from_pretrained(tmp_path, scan_layers=False)

    def ours(out):
        rows = jax.nn.log_softmax(out.logits_per_text)
        columns = jax.nn.log_softmax(out.logits_per_image)
        return -(jnp.trace(rows) + jnp.trace(columns)) / (2 * len(rows))

    def theirs(out):
        return transformers.models.clip.modeling_clip.image_text_contrastive_loss(
            out.logits_per_text
        )

    cases.compare_gradients(hf, model, params, inputs_of(model), theirs, ours)
