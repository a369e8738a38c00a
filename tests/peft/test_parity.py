"""Adapters made by PEFT and here compute the same, both ways, forward and backward."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fmjax
from fmjax import peft
from fmjax.core import tree

# Keyword arguments of peft.LoraConfig.
LLAMA = {
    "named": dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]),
    "all-linear": dict(r=2, lora_alpha=3, target_modules="all-linear"),
    "regex": dict(r=4, lora_alpha=8, target_modules=r".*\.[12]\.(mlp|self_attn)\.(up|k)_proj"),
    "embedding and head": dict(r=4, target_modules=["embed_tokens", "lm_head", "o_proj"]),
    "rslora": dict(r=4, lora_alpha=8, target_modules=["gate_proj"], use_rslora=True),
    "patterns": dict(
        r=2,
        lora_alpha=8,
        target_modules=["q_proj", "v_proj", "down_proj"],
        rank_pattern={r"layers\.1\.self_attn\.q_proj": 5, "v_proj": 3, "q_proj": 1},
        alpha_pattern={r"^model\.layers\.2\.self_attn\.v_proj": 2, "down_proj": 32},
        use_rslora=True,
    ),
    "layers": dict(r=2, target_modules=["q_proj", "down_proj"], layers_to_transform=[0, 2]),
    "one layer": dict(
        r=2, target_modules=["q_proj"], layers_to_transform=1, layers_pattern="layers"
    ),
    "excluded": dict(
        r=2, target_modules="all-linear", exclude_modules=["k_proj", "model.layers.1.mlp.up_proj"]
    ),
    "excluded by regex": dict(
        r=2, target_modules=["q_proj", "o_proj"], exclude_modules=r".*\.1\..*q_proj"
    ),
}
GPT2 = {
    "fused": dict(r=4, lora_alpha=8, target_modules=["c_attn"], fan_in_fan_out=True),
    "all-linear": dict(r=2, target_modules="all-linear"),
    "same names": dict(r=2, target_modules=["c_proj", "attn.c_attn", "wpe"]),
    "layers": dict(r=2, target_modules=["c_attn", "c_fc"], layers_to_transform=[1]),
}
FALCON = {
    # Query, key and value interleaved by group in the file.
    "fused": dict(r=3, lora_alpha=8, target_modules=["query_key_value"]),
    "all-linear": dict(r=2, target_modules="all-linear"),
}
SPECS = {"llama": LLAMA, "gpt2": GPT2, "falcon": FALCON}
CASES = [(family, name) for family, specs in SPECS.items() for name in specs]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}, {case[1]}")
def case(request, kit):
    """A twin and a PEFT model with random factors on the reference."""
    family, name = request.param
    twin = request.getfixturevalue(family)
    return twin, kit.peft_model(twin, **SPECS[family][name])


def differ(a, b):
    return np.abs(a - b).max() > 0.05


def test_an_adapter_of_peft_loads_and_ours_goes_back(case, kit, tmp_path):
    from safetensors.numpy import load_file

    twin, theirs = case
    kit.quiet(theirs.save_pretrained, tmp_path / "theirs")
    spec, adapter = peft.load(tmp_path / "theirs", twin.model, twin.params)
    expected = kit.torch_logits(theirs)
    ours = kit.logits(twin.model, twin.params, adapter)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=kit.ATOL)
    assert differ(ours, kit.logits(twin.model, twin.params, {}))
    assert peft.count(spec, twin.model) == theirs.get_nb_trainable_parameters()[0]

    peft.save(tmp_path / "ours", spec, adapter, twin.model, base=str(twin.dir), params=twin.params)
    files = [load_file(tmp_path / d / "adapter_model.safetensors") for d in ("theirs", "ours")]
    for key, value in files[1].items():
        np.testing.assert_array_equal(value, files[0][key], key)
    assert {k for k in files[0] if ".base_layer." not in k} == files[1].keys()
    back = kit.in_peft(twin, tmp_path / "ours")
    np.testing.assert_allclose(kit.torch_logits(back), expected, rtol=0, atol=1e-6)


def test_gradients_agree(twin, kit, tmp_path):
    import torch

    theirs = kit.peft_model(twin, r=3, lora_alpha=5, target_modules="all-linear")
    kit.quiet(theirs.save_pretrained, tmp_path)
    spec, adapter = peft.load(tmp_path, twin.model)
    weights = np.random.default_rng(2).normal(size=(*kit.IDS.shape, 62)).astype(np.float32)
    (theirs(input_ids=torch.tensor(kit.IDS)).logits * torch.tensor(weights)).mean().backward()

    def loss(adapter):
        variables = {"params": twin.params, "adapter": adapter}
        return (twin.model.apply(variables, input_ids=jnp.asarray(kit.IDS)).logits * weights).mean()

    gradients = jax.jit(jax.grad(loss))(adapter)
    # A gradient has the layout of its adapter, so it can be filed like one.
    gradients = tree.map_with_path(
        lambda path, g, x: g if path[-6:] in ("lora_a", "lora_b") else x, gradients, adapter
    )
    peft.save(tmp_path / "gradients", spec, gradients, twin.model)
    from safetensors.numpy import load_file

    ours = load_file(tmp_path / "gradients" / "adapter_model.safetensors")
    checked = 0
    for name, parameter in theirs.named_parameters():
        if parameter.requires_grad:
            key = name.replace(".default", "")
            assert parameter.grad.abs().max() > 1e-4, key
            np.testing.assert_allclose(ours[key], parameter.grad.numpy(), rtol=1e-4, atol=1e-5)
            checked += 1
    assert checked == len(ours)


def test_an_adapter_trained_in_torch_computes_the_same_here(twin, kit, tmp_path):
    import torch
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    theirs = kit.quiet(get_peft_model, twin.reference(), config)
    optimizer = torch.optim.Adam([p for p in theirs.parameters() if p.requires_grad], 0.02)
    ids = torch.tensor(kit.IDS)
    for _ in range(3):
        optimizer.zero_grad()
        theirs(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    kit.quiet(theirs.eval().save_pretrained, tmp_path)
    _, adapter = peft.load(tmp_path, twin.model)
    ours = kit.logits(twin.model, twin.params, adapter)
    np.testing.assert_allclose(ours, kit.torch_logits(theirs), rtol=0, atol=kit.ATOL)


def test_all_linear_is_the_set_of_peft(twin, kit):
    theirs = kit.peft_model(twin, r=2, target_modules="all-linear")
    names = {
        name.removeprefix("base_model.model.").rpartition(".lora_A")[0]
        for name, _ in theirs.named_modules()
        if name.endswith(".lora_A")
    }
    from fmjax.peft.base import Base
    from fmjax.peft.lora_sites import sites

    found = sites(peft.LoRA(targets="all-linear"), Base.of(twin.model))
    assert {name for site in found for name in site.weight.names} == names


def test_a_fresh_adapter_loads_in_peft_and_starts_like_one(twin, kit, tmp_path):
    spec = peft.LoRA(rank=8, targets="all-linear", dropout=0.1)
    adapter = peft.init(jax.random.key(3), spec, twin.model)
    peft.save(tmp_path, spec, adapter, twin.model)
    theirs = kit.in_peft(twin, tmp_path)
    np.testing.assert_array_equal(kit.torch_logits(theirs), kit.torch_logits(twin.reference()))
    for name, parameter in theirs.named_parameters():
        if "lora_A" in name:
            # U(±1/√in): its extremes and its variance, 1 / (3 · in).
            bound = parameter.shape[1] ** -0.5
            assert 0.95 * bound < parameter.abs().max() <= bound
            np.testing.assert_allclose(parameter.var().item(), bound**2 / 3, rtol=0.2)


def test_a_model_that_ties_its_head_adapts_its_embedding(kit, tmp_path):
    twin = kit.make(kit.llama_config(tie_word_embeddings=True), tmp_path / "base")
    theirs = kit.peft_model(twin, r=3, target_modules=["embed_tokens", "q_proj"])
    kit.quiet(theirs.save_pretrained, tmp_path / "adapter")
    _, adapter = peft.load(tmp_path / "adapter", twin.model, twin.params)
    ours = kit.logits(twin.model, twin.params, adapter)
    np.testing.assert_allclose(ours, kit.torch_logits(theirs), rtol=0, atol=kit.ATOL)


def test_unscanned_layers_take_the_same_file(twin, kit, tmp_path):
    names = ["q_proj", "down_proj"] if "embed_tokens" in twin.params else ["c_attn", "c_fc"]
    theirs = kit.peft_model(
        twin, r=2, target_modules=names, rank_pattern={names[1]: 3}, layers_to_transform=[1]
    )
    kit.quiet(theirs.save_pretrained, tmp_path)
    model, params = fmjax.from_pretrained(twin.dir, scan_layers=False)
    spec, adapter = peft.load(tmp_path, model, params)
    ours = kit.logits(model, params, adapter)
    np.testing.assert_allclose(ours, kit.torch_logits(theirs), rtol=0, atol=kit.ATOL)
    peft.save(tmp_path / "again", spec, adapter, model, params=params)
    _, stacked = peft.load(tmp_path / "again", twin.model, twin.params)
    np.testing.assert_allclose(
        kit.logits(twin.model, twin.params, stacked), ours, rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("targets", [("query", "value", "word_embeddings"), "all-linear"])
def test_an_adapter_on_a_classifier(kit, tmp_path, targets):
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=int(kit.IDS.max()) + 1,
        hidden_size=32,
        intermediate_size=44,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=16,
        initializer_range=0.2,
        num_labels=3,
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path / "base")
    model, params = fmjax.from_pretrained(tmp_path / "base")
    twin = SimpleNamespace(
        model=model,
        params=params,
        reference=lambda: BertForSequenceClassification.from_pretrained(tmp_path / "base"),
    )
    spec = peft.LoRA(rank=2, alpha=3, targets=targets)
    adapter = kit.trained(twin, spec)
    ours = kit.logits(model, params, adapter)
    assert differ(ours, kit.logits(model, params, {}))
    peft.save(tmp_path / "adapter", spec, adapter, model)
    theirs = kit.torch_logits(kit.in_peft(twin, tmp_path / "adapter"))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=kit.ATOL)
    merged = peft.merge(model, params, adapter)
    np.testing.assert_allclose(kit.logits(model, merged, {}), ours, rtol=0, atol=kit.ATOL)
