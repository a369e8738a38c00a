"""Soft prompts made by PEFT and here compute the same, both ways, forward and backward."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from torch_twins import IDS, MASK, make, move, real

import fmjax
from fmjax import peft
from fmjax.core import tree

P = 3
LEFT = MASK[:, ::-1].copy()
# transformers' class, fields of its config, attention mask.
CASES = {
    "gpt2": ("GPT2LMHeadModel", {}, MASK),
    "gpt2, padded left": ("GPT2LMHeadModel", {}, LEFT),
    "llama": ("LlamaForCausalLM", {}, MASK),
    "llama, no mask": ("LlamaForCausalLM", {}, None),
    "mistral, the window leaves the prompt": ("MistralForCausalLM", {}, MASK),
    "falcon": ("FalconForCausalLM", {}, MASK),
    "falcon, alibi": (
        "FalconForCausalLM",
        dict(alibi=True, new_decoder_architecture=False, multi_query=False, num_kv_heads=4),
        MASK,
    ),
    # A prompt enters after the words are scaled.
    "gemma": ("GemmaForCausalLM", {}, MASK),
    # Pooled at the last slot, which PEFT does not ask whether it is padding.
    "llama, classifier": ("LlamaForSequenceClassification", {}, LEFT),
    "bert, masked words": ("BertForMaskedLM", {}, MASK),
    # Pooled at the first virtual token.
    "bert, classifier": ("BertForSequenceClassification", {}, MASK),
    "roberta, classifier": ("RobertaForSequenceClassification", {}, MASK),
    "bert, tokens": ("BertForTokenClassification", {}, MASK),
    "bert, questions": ("BertForQuestionAnswering", {}, MASK),
}


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")

    def get(name, **fields):
        return make(name, root / f"{name}{len(fields)}", **fields)

    return get


@pytest.fixture(params=CASES)
def case(request, twins):
    name, fields, mask = CASES[request.param]
    return twins(name, **fields), mask


def in_torch(twin, kit, **fields):
    """A PEFT model whose prompt, and heads that are trained whole, are random."""
    from peft import PromptTuningConfig, get_peft_model

    common = dict(task_type=twin.task or "FEATURE_EXTRACTION", num_virtual_tokens=P)
    config = PromptTuningConfig(**(common | fields))
    return move(kit.quiet(get_peft_model, twin.reference(), config).eval())


def outputs(out):
    """Logits of any head of either library, those of the virtual tokens left out."""
    if hasattr(out, "logits"):
        logits = out.logits
    else:
        logits = out.start_logits + 2 * out.end_logits
        logits = logits[..., None]
    return logits if logits.ndim == 2 else logits[:, -IDS.shape[1] :]


@functools.partial(jax.jit, static_argnums=0)
def _ours(model, params, adapter, mask):
    variables = {"params": params, "adapter": adapter}
    return outputs(model.apply(variables, jnp.asarray(IDS), mask))


def theirs(model, mask):
    import torch

    mask = None if mask is None else torch.tensor(mask)
    return outputs(model(input_ids=torch.tensor(IDS), attention_mask=mask))


def tokens(logits, mask):
    return logits if mask is None or logits.ndim == 2 else logits[mask.astype(bool)]


def test_both_ways_forward_and_backward(case, kit, tmp_path):
    import torch

    twin, mask = case
    reference = in_torch(twin, kit)
    kit.quiet(reference.save_pretrained, tmp_path / "theirs")
    spec, adapter = peft.load(tmp_path / "theirs", twin.model, twin.params)
    assert spec.num_virtual_tokens == P
    assert peft.count(spec, twin.model) == reference.get_nb_trainable_parameters()[0]
    expected = theirs(reference, mask)

    weights = np.random.default_rng(2).normal(size=expected.shape).astype(np.float32)
    if mask is not None and expected.ndim == 3:
        weights *= mask[..., None]

    def loss(adapter):
        logits = _ours(twin.model, twin.params, adapter, mask)
        return (logits * weights).mean(), logits

    (_, ours), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(adapter)
    assert ours.shape == expected.shape
    np.testing.assert_allclose(
        tokens(np.asarray(ours), mask), tokens(expected.detach().numpy(), mask), rtol=0, atol=1e-4
    )

    peft.save(tmp_path / "ours", spec, adapter, twin.model, params=twin.params)
    files = [load_file(tmp_path / d / "adapter_model.safetensors") for d in ("theirs", "ours")]
    assert files[0].keys() == files[1].keys()
    assert files[1]["prompt_embeddings"].shape == (P, 32)
    for key, value in files[0].items():
        assert value.dtype == files[1][key].dtype
        np.testing.assert_array_equal(files[1][key], value, key)
    with torch.no_grad():
        back = theirs(kit.in_peft(twin, tmp_path / "ours"), mask)
    np.testing.assert_allclose(back.numpy(), expected.detach().numpy(), rtol=0, atol=1e-6)

    (expected * torch.tensor(weights)).mean().backward()
    # A gradient has the layout of its adapter, so it can be filed like one.
    peft.save(tmp_path / "gradients", spec, gradients, twin.model)
    filed = load_file(tmp_path / "gradients" / "adapter_model.safetensors")
    checked = 0
    for key, parameter in reference.named_parameters():
        if parameter.requires_grad:
            key = key.replace(".modules_to_save", "").replace(".default", "")
            key = key.replace("prompt_encoder.embedding.weight", "prompt_embeddings")
            assert parameter.grad.abs().max() > 1e-5, key
            np.testing.assert_allclose(filed[key], parameter.grad.numpy(), rtol=1e-4, atol=1e-5)
            checked += 1
    assert checked == len(filed)


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "GemmaForCausalLM"])
@pytest.mark.parametrize("count", [2, 7])
def test_a_start_from_words_is_that_of_peft(twins, kit, monkeypatch, name, count):
    import transformers
    from peft import PromptTuningConfig, get_peft_model

    class Tokenizer:
        @classmethod
        def from_pretrained(cls, *args, **kwargs):
            return lambda text: {"input_ids": [5, 9, 11]}

    monkeypatch.setattr(transformers, "AutoTokenizer", Tokenizer)
    twin = twins(name)
    config = PromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=count,
        prompt_tuning_init="TEXT",
        prompt_tuning_init_text="some words",
        tokenizer_name_or_path="anything",
    )
    reference = kit.quiet(get_peft_model, twin.reference(), config)
    spec = peft.Prompt(count, init_ids=(5, 9, 11))
    adapter = peft.init(jax.random.key(0), spec, twin.model, twin.params)
    (ours,) = tree.flatten(adapter).values()
    expected = reference.prompt_encoder.default.embedding.weight.detach().numpy()
    np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_the_random_start_is_that_of_peft(twins):
    twin = twins("GPT2LMHeadModel")
    adapter = peft.init(jax.random.key(0), peft.Prompt(400), _long(twin.model))
    (prompt,) = tree.flatten(adapter).values()
    assert prompt.shape == (400, 32)
    assert abs(prompt.mean()) < 0.02 and abs(prompt.std() - 1) < 0.02


def _long(model):
    return fmjax.build(model.config.replace(n_positions=1000))


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "LlamaForCausalLM", "MistralForCausalLM"])
def test_generates_the_tokens_of_peft(twins, kit, tmp_path, name):
    import torch

    twin = twins(name)
    reference = in_torch(twin, kit)
    kit.quiet(reference.save_pretrained, tmp_path)
    _, adapter = peft.load(tmp_path, twin.model)
    prompts = IDS[:, :4]
    expected = kit.quiet(
        reference.generate,
        input_ids=torch.tensor(prompts),
        attention_mask=torch.ones_like(torch.tensor(prompts)),
        max_new_tokens=8,
        min_new_tokens=8,
        do_sample=False,
        pad_token_id=0,
    )
    variables = {"params": twin.params, "adapter": adapter}
    ours = fmjax.generate.generate(
        twin.model, variables, prompts, max_new_tokens=8, eos_token_id=()
    )
    np.testing.assert_array_equal(ours.tokens, expected[:, -8:].numpy())


@pytest.mark.parametrize("name", ["BertForMaskedLM", "BertForSequenceClassification"])
def test_what_we_make_is_read_by_peft(twins, kit, tmp_path, name):
    import torch

    twin = twins(name)
    spec = peft.Prompt(P, modules_to_save=peft.head_modules(twin.model))
    adapter = peft.init(jax.random.key(0), spec, twin.model, twin.params)
    peft.save(tmp_path, spec, adapter, twin.model)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["task_type"] == (twin.task or "FEATURE_EXTRACTION")
    with torch.no_grad():
        expected = theirs(kit.in_peft(twin, tmp_path), MASK).numpy()
    ours = np.asarray(_ours(twin.model, twin.params, adapter, MASK))
    np.testing.assert_allclose(real(ours), real(expected), rtol=0, atol=1e-4)


def test_token_types_of_bert(twins, kit, tmp_path):
    import torch

    twin = twins("BertForSequenceClassification")
    reference = in_torch(twin, kit)
    kit.quiet(reference.save_pretrained, tmp_path)
    _, adapter = peft.load(tmp_path, twin.model)
    types = (np.arange(7) > 2)[None].repeat(2, 0).astype(np.int32)
    with torch.no_grad():
        expected = reference(
            input_ids=torch.tensor(IDS),
            attention_mask=torch.tensor(MASK),
            token_type_ids=torch.tensor(types),
        ).logits
    variables = {"params": twin.params, "adapter": adapter}
    ours = jax.jit(twin.model.apply)(variables, jnp.asarray(IDS), MASK, jnp.asarray(types)).logits
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)
