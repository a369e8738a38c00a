"""Adapters on a vision transformer: PEFT's files read here, ours read there, the same logits."""

import functools

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import fmjax
from fmjax import peft
from fmjax.core.errors import ConfigError

PIXELS = np.random.default_rng(0).normal(size=(2, 12, 12, 3)).astype(np.float32)
# Keyword arguments of peft.LoraConfig.
CASES = {
    "attention and classifier": dict(
        r=3, lora_alpha=5, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"]
    ),
    "all-linear, DoRA": dict(r=2, target_modules="all-linear", use_dora=True),
    "patches, one layer, biases": dict(
        r=2,
        target_modules=r".*(projection|layers\.1\.mlp\.fc2|layers\.1\.attention\.o_proj)",
        bias="all",
    ),
}


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("vit")
    config = ViTConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=40,
        image_size=12,
        patch_size=4,
        initializer_range=0.2,
        num_labels=5,
    )
    ViTForImageClassification(config).save_pretrained(directory)

    def reference():
        options = dict(attn_implementation="eager")
        return ViTForImageClassification.from_pretrained(directory, **options).eval()

    return (*fmjax.from_pretrained(directory), reference)


@functools.partial(jax.jit, static_argnums=0)
def logits(model, params, adapter):
    return model.apply({"params": params, "adapter": adapter}, pixel_values=PIXELS).logits


def theirs(model):
    import torch

    return model(pixel_values=torch.tensor(PIXELS).permute(0, 3, 1, 2)).logits


@pytest.mark.parametrize("name", CASES)
def test_an_adapter_of_peft_and_back(twin, kit, tmp_path, name):
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model

    model, params, reference = twin
    wrapped = kit.quiet(get_peft_model, reference(), LoraConfig(**CASES[name])).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    kit.quiet(wrapped.save_pretrained, tmp_path / "theirs")
    spec, adapter = peft.load(tmp_path / "theirs", model, params)
    expected = theirs(wrapped)
    got = logits(model, params, adapter)
    np.testing.assert_allclose(got, expected.detach(), rtol=0, atol=1e-4)
    assert np.abs(got - logits(model, params, {})).max() > 0.05

    peft.save(tmp_path / "ours", spec, adapter, model, params=params)
    ours = load_file(tmp_path / "ours" / "adapter_model.safetensors")
    original = load_file(tmp_path / "theirs" / "adapter_model.safetensors")
    for key, value in ours.items():
        np.testing.assert_array_equal(value, original[key], key)
    back = kit.quiet(PeftModel.from_pretrained, reference(), tmp_path / "ours").eval()
    np.testing.assert_allclose(theirs(back).detach(), expected.detach(), rtol=0, atol=1e-6)

    (expected**2).mean().backward()
    grads = jax.jit(jax.grad(lambda a: (logits(model, params, a) ** 2).mean()))(adapter)
    if "use_dora" not in CASES[name] and "bias" not in CASES[name]:
        grads["layers"] = jax.tree.map(
            lambda g, x: x if x.ndim < 3 else g, grads["layers"], adapter["layers"]
        )
        peft.save(tmp_path / "gradients", spec, grads, model)
        ours = load_file(tmp_path / "gradients" / "adapter_model.safetensors")
        for key, parameter in wrapped.named_parameters():
            if parameter.requires_grad:
                key = key.replace(".default", "").replace(".modules_to_save", "")
                np.testing.assert_allclose(ours[key], parameter.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["dinov2", "vit_mae"])
def test_all_linear_layers_of_other_families(kit, tmp_path, family):
    import torch
    import transformers
    from peft import LoraConfig, PeftModel, get_peft_model

    common = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, image_size=12)
    common |= dict(patch_size=4, initializer_range=0.2)
    decoder = dict(decoder_hidden_size=16, decoder_num_attention_heads=2)
    decoder |= dict(decoder_num_hidden_layers=2, decoder_intermediate_size=20)
    config, name = {
        "dinov2": (transformers.Dinov2Config(**common), "Dinov2Model"),
        "vit_mae": (transformers.ViTMAEConfig(**common, **decoder), "ViTMAEForPreTraining"),
    }[family]
    torch.manual_seed(0)
    cls = getattr(transformers, name)
    cls(config).save_pretrained(tmp_path / "base")
    model, params = fmjax.from_pretrained(tmp_path / "base")
    inputs = {"pixel_values": torch.tensor(PIXELS).permute(0, 3, 1, 2)}
    rest = {}
    if family == "vit_mae":
        rest["noise"] = np.random.default_rng(1).random((2, 9), np.float32)
        inputs["noise"] = torch.tensor(rest["noise"])

    def reference():
        options = dict(attn_implementation="eager")
        return cls.from_pretrained(tmp_path / "base", **options).eval()

    def output(wrapped):
        with torch.no_grad():
            out = wrapped(**inputs)
        return (out.last_hidden_state if family == "dinov2" else out.logits).numpy()

    lora = LoraConfig(r=2, target_modules="all-linear")
    wrapped = kit.quiet(get_peft_model, reference(), lora).eval()
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    kit.quiet(wrapped.save_pretrained, tmp_path / "theirs")
    spec, adapter = peft.load(tmp_path / "theirs", model, params)
    assert peft.count(spec, model) == wrapped.get_nb_trainable_parameters()[0]
    variables = {"params": params, "adapter": adapter}
    out = jax.jit(lambda v: model.apply(v, pixel_values=PIXELS, **rest))(variables)
    ours = out.last_hidden_state if family == "dinov2" else out.logits
    np.testing.assert_allclose(ours, output(wrapped), rtol=0, atol=1e-4)
    peft.save(tmp_path / "ours", spec, adapter, model, params=params)
    back = kit.quiet(PeftModel.from_pretrained, reference(), tmp_path / "ours").eval()
    np.testing.assert_allclose(output(back), output(wrapped), rtol=0, atol=1e-6)


def test_the_classifier_is_the_head(twin):
    assert peft.head_modules(twin[0]) == ("classifier",)


def test_ia3_and_a_prefix_learn(twin):
    model, params, _ = twin
    specs = [
        peft.IA3(),
        peft.Prefix(3),
    ]
    for spec in specs:
        adapter = peft.init(jax.random.key(0), spec, model, params)
        grads = jax.grad(lambda a: (logits(model, params, a) ** 2).mean())(adapter)
        assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads))


def test_prompts_need_words(twin):
    model, params, _ = twin
    with pytest.raises(ConfigError, match="a vit model does not read; use a prefix"):
        peft.init(jax.random.key(0), peft.Prompt(2), model, params)
