"""What CLIP and SigLIP are besides their outputs: config files, inputs, meshes, adapters."""

import functools
import json

import clip_cases as cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from quick import QUICK

import fmjax
from fmjax import peft
from fmjax.core import tree
from fmjax.models.clip.config import CLIPConfig
from fmjax.models.registry import abstract_params, param_count, presets
from fmjax.models.siglip.config import SiglipConfig, SiglipTextConfig


def tiny(name, **options):
    return cases.two(name, dict(hidden_size=32), **options)


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def embeds(model, variables, inputs):
    out = model.apply(variables, **inputs)
    return out.image_embeds, out.text_embeds


@pytest.fixture(scope="module", params=["CLIP", "Siglip"])
def twin(request, parity, tmp_path_factory):
    directory = tmp_path_factory.mktemp(request.param)
    hf = cases.make(parity, f"{request.param}Model", tiny(request.param), directory)
    model, params = fmjax.from_pretrained(directory)
    inputs = cases.arrays(
        {
            "pixel_values": cases.images(model.config, rows=4),
            "input_ids": np.resize(cases.texts(model.config.text_config)["input_ids"], (4, 9)),
        }
    )
    return hf, directory, model, params, inputs


def test_images_and_texts_by_themselves(twin):
    _, _, model, params, inputs = twin
    variables = {"params": params}
    both = embeds(model, variables, inputs)
    for i, name in enumerate(("pixel_values", "input_ids")):
        alone = embeds(model, variables, {name: inputs[name]})
        assert alone[1 - i] is None
        np.testing.assert_allclose(alone[i], both[i], rtol=0, atol=1e-5)
        np.testing.assert_allclose(jnp.linalg.norm(alone[i], axis=-1), 1, atol=1e-5)


def test_a_mesh_of_eight(twin):
    _, directory, model, params, inputs = twin
    mesh, rules = fmjax.make_mesh(data=2, fsdp=2, tensor=2), fmjax.parallel.DEFAULT_RULES
    placed_model, placed = fmjax.from_pretrained(
        directory, mesh=mesh, rules=(("vocab", None), ("positions", None), *rules)
    )
    kernel = placed["text_model"]["layers"]["attention"]["q_proj"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (2, 16, 16)
    with fmjax.core.logical.use(mesh, (("vocab", None), *rules)):
        got = embeds(placed_model, {"params": placed}, inputs)
    expected = embeds(model, {"params": params}, inputs)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
    # Every ready list knows every axis.
    for ready in fmjax.parallel.RULES.values():
        fmjax.parallel.param_shardings(abstract_params(model), mesh, (("vocab", None), *ready))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_lora_of_peft_on_both_encoders(twin, tmp_path):
    import torch
    from peft import LoraConfig, get_peft_model

    hf, directory, model, params, inputs = twin
    reference = type(hf).from_pretrained(directory, attn_implementation="eager")
    targets = ["q_proj", "fc1"] + ["text_projection"] * (model.config.model_type == "clip")
    wrapped = get_peft_model(reference, LoraConfig(r=3, target_modules=targets)).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.3 * torch.randn_like(parameter))
        wrapped.save_pretrained(tmp_path)
        out = wrapped(
            input_ids=torch.tensor(np.asarray(inputs["input_ids"])),
            pixel_values=torch.tensor(np.asarray(inputs["pixel_values"])).permute(0, 3, 1, 2),
        )
    _, adapter = peft.load(tmp_path, model, params)
    assert adapter["text_model"]["layers"] and adapter["vision_model"]["layers"]
    got = embeds(model, {"params": params, "adapter": adapter}, inputs)
    plain = embeds(model, {"params": params}, inputs)
    for a, b, c in zip(got, (out.image_embeds, out.text_embeds), plain, strict=True):
        np.testing.assert_allclose(a, b.numpy(), rtol=0, atol=1e-4)
        assert np.abs(a - c).max() > 0.05


def test_what_does_not_fit_is_named(twin):
    _, _, model, params, inputs = twin

    def call(message, **given):
        with pytest.raises(fmjax.FmjaxError, match=message):
            model.apply({"params": params}, **given)

    ids = inputs["input_ids"]
    call("needs pixel_values, input_ids, or both")
    call("at most 9 tokens", input_ids=jnp.zeros((1, 10), jnp.int32))
    call("attention_mask .* must have the shape", input_ids=ids, attention_mask=ids[:, 1:])
    call("3 channels", pixel_values=inputs["pixel_values"].transpose(0, 3, 1, 2))
    adapter = {"text_model": {"token_embedding": {"prompt": jnp.zeros((2, 32))}}}
    with pytest.raises(fmjax.FmjaxError, match="no virtual tokens"):
        model.apply({"params": params, "adapter": adapter}, input_ids=ids)
    classes = fmjax.build(model.config, override={"head": "image-classification"})
    with pytest.raises(fmjax.FmjaxError, match="reads pixel_values, and nothing else"):
        classes.apply({"params": params}, input_ids=ids)


def test_a_classifier_on_the_weights_of_both_encoders(twin):
    _, directory, _, params, inputs = twin
    override = {"head": "image-classification", "id2label": ["a", "b", "c"]}
    model, new = fmjax.from_pretrained(directory, override=override, new_head=jax.random.key(0))
    assert new.keys() == {"vision_model", "classifier"}
    out = model.apply({"params": new}, pixel_values=inputs["pixel_values"])
    assert out.logits.shape == (4, 3)


# --- configs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [CLIPConfig, SiglipConfig])
def test_configs_there_and_back(cls):
    theirs = getattr(transformers, cls.__name__)
    named = [c for c in presets().values() if isinstance(c, cls)]
    assert len(named) >= 5
    for config in [cls(), *named, cls(id2label=("a", "b", "c"), head="image-classification")]:
        hf = json.loads(json.dumps(config.to_hf()))
        assert cls.from_hf(hf) == config
        again = theirs(**hf).to_dict()
        assert cls.from_hf(again) == config
        for part in ("text_config", "vision_config"):
            assert "architectures" not in hf[part]
    # Today's files leave nothing out, early ones nearly everything.
    assert cls.from_hf({"model_type": cls().model_type}) == cls()


def test_files_that_state_a_part_twice():
    text = {"hidden_size": 64, "eos_token_id": 2, "length_penalty": 1.0, "dropout": 0.0}
    hf = {"model_type": "clip", "text_config": text, "vision_config_dict": None}
    assert CLIPConfig.from_hf(hf).text_config.eos_token_id == 2
    hf["text_config_dict"] = {"hidden_size": 128}
    ours, theirs = CLIPConfig.from_hf(hf).text_config, transformers.CLIPConfig(**hf).text_config
    assert (ours.hidden_size, ours.eos_token_id) == (128, 49407)
    assert (theirs.hidden_size, theirs.eos_token_id) == (128, 49407)


def test_a_part_is_changed_by_a_mapping():
    config = CLIPConfig(text_config={"num_hidden_layers": 3})
    config = config.replace(text_config={"hidden_size": 64}, vision_config={"image_size": 64})
    assert (config.text_config.num_hidden_layers, config.text_config.hidden_size) == (3, 64)
    assert (config.image_size, config.num_patches, config.position_limit) == (64, 4, 77)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: CLIPConfig(text_config={"hidden_sizes": 3}), "did you mean 'hidden_size'"),
        (lambda: CLIPConfig(text_config=3), "must be a CLIPTextConfig"),
        (lambda: CLIPConfig(vision_config={"image_size": [3, 4]}), "side of a square"),
        (lambda: CLIPConfig(vision_config={"image_size": 8}), "has no patch"),
        (lambda: CLIPConfig(text_config={"hidden_size": 33}), "not a multiple"),
        (lambda: CLIPConfig(text_config={"dropout": 0.1}), "dropout=0.1 is not supported"),
        (lambda: CLIPConfig(text_config={"eos_token_id": [1, 2]}), "at one eos_token_id"),
        (lambda: CLIPConfig(head="causal-lm"), "no head 'causal-lm'"),
        (lambda: SiglipConfig(vision_config={"vision_use_head": False}), "leaves nothing"),
        (lambda: SiglipConfig(text_config=SiglipTextConfig(projection_size=8)), "must be equal"),
    ],
)
def test_configs_that_cannot_be(change, message):
    with pytest.raises(fmjax.FmjaxError, match=message):
        change()


# name → parameters as published
SIZES = {
    "clip-vit-b32": 151_277_313,
    "clip-vit-b16": 149_620_737,
    "clip-vit-l14": 427_616_513,
    "siglip-b16-224": 203_155_970,
    "siglip-so400m-14-384": 877_960_498,
}


@pytest.mark.parametrize("name", SIZES)
def test_published_sizes(name):
    assert param_count(fmjax.build(name)) == SIZES[name]


def test_one_siglip_reads_short_texts():
    lengths = {
        name: config.text_config.max_position_embeddings
        for name, config in presets().items()
        if config.model_type == "siglip"
    }
    assert lengths.pop("siglip-so400m-14-224") == 16 and set(lengths.values()) == {64}


def test_where_training_starts(twin):
    _, _, model, _, _ = twin
    params = tree.flatten(fmjax.init_params(model, jax.random.key(0)))
    scale, width = params["logit_scale"], 32
    clip = model.config.model_type == "clip"
    np.testing.assert_allclose(scale, np.full(() if clip else (1,), 2.6592 if clip else 2.302585))
    if not clip:
        np.testing.assert_allclose(params["logit_bias"], [-10.0])
        return
    stds = {
        "attention/q_proj": width**-0.5,
        "attention/o_proj": width**-0.5 / 2,  # 2 layers write 4 times
        "mlp/fc1": (2 * width) ** -0.5,
        "mlp/fc2": width**-0.5 / 2,
    }
    for name, std in stds.items():
        kernel = params[f"vision_model/layers/{name}/kernel"]
        np.testing.assert_allclose(np.std(kernel), std, rtol=0.05, err_msg=name)
