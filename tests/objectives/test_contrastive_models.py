"""CLIP and SigLIP learn as in transformers: loss and every gradient of whole models."""

import jax
import numpy as np
import pytest
import torch
import transformers
from task_cases import compare_model

import fmjax
from fmjax.core.errors import ConfigError
from fmjax.objectives import ContrastiveImageText, SigmoidImageText

TEXT = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 8,
    "bos_token_id": 37,
    "eos_token_id": 39,
    "pad_token_id": 38,
}
VISION = {
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}


def make(name, directory):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    text, vision, options = TEXT, VISION, {"projection_dim": 10}
    if name == "Siglip":  # Which has no projections.
        vision, options = VISION | {"hidden_size": 16}, {}
    config = getattr(transformers, f"{name}Config")(
        text_config=text, vision_config=vision, **options
    )
    hf = getattr(transformers, f"{name}Model")(config)
    with torch.no_grad():
        for p in hf.parameters():
            if p.ndim > 1:
                p.copy_(torch.randn_like(p) * 0.2)
        if name == "Siglip":
            hf.logit_scale.fill_(np.log(10.0))
            hf.logit_bias.fill_(-4.0)
    hf.save_pretrained(directory)
    cls = getattr(transformers, f"{name}Model")
    hf = cls.from_pretrained(directory, attn_implementation="eager").eval()
    return hf, *fmjax.from_pretrained(directory)


def pairs(rows=5):
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 36, (rows, 8)).astype(np.int32)
    ids[:, 0], ids[:, -1] = 37, 39
    images = rng.standard_normal((rows, 8, 8, 3)).astype(np.float32)
    return {"pixel_values": images, "input_ids": ids}


def torch_loss(hf, tensors):
    images = tensors["pixel_values"].permute(0, 3, 1, 2)
    return hf(input_ids=tensors["input_ids"], pixel_values=images, return_loss=True).loss


@pytest.mark.parametrize(
    ("name", "objective"),
    [("CLIP", ContrastiveImageText(form="ring", chunk=2)), ("Siglip", SigmoidImageText())],
)
def test_losses_and_gradients_of_whole_models(tmp_path, name, objective):
    hf, model, params = make(name, tmp_path)
    compare_model(objective, hf, model, params, pairs(), torch_loss)
    grads = {k: p.grad for k, p in hf.named_parameters()}
    assert abs(grads["logit_scale"]).max() > 1e-3
    if name == "CLIP":
        with pytest.raises(ConfigError, match="has no logit_bias, which SigmoidImageText reads"):
            jax.eval_shape(
                lambda p: SigmoidImageText().loss(model.apply, {"params": p}, {}, pairs(), None)[0],
                params,
            )
