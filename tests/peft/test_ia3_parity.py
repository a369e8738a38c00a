"""IA³ made by PEFT and here compute the same, both ways, forward and backward."""

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
from fmjax.peft.ia3_math import merged

# transformers' class, keyword arguments of peft.IA3Config.
NAMES = (
    "GPT2LMHeadModel",
    "LlamaForCausalLM",
    "FalconForCausalLM",
    "BertForMaskedLM",
    "BertForSequenceClassification",
    "RobertaForTokenClassification",
    "MixtralForCausalLM",
)
CASES = [(name, {}) for name in NAMES] + [
    ("GPT2LMHeadModel", dict(target_modules=["c_fc", "c_attn"], feedforward_modules=["c_fc"])),
    ("LlamaForCausalLM", dict(target_modules="all-linear", feedforward_modules=["o_proj"])),
    (
        "LlamaForCausalLM",
        dict(target_modules=r".*\.(q|up)_proj", feedforward_modules=r".*mlp.*", task_type=None),
    ),
    (
        "LlamaForCausalLM",
        dict(target_modules=["mlp.down_proj", "lm_head"], exclude_modules=["q_proj"]),
    ),
    ("BertForMaskedLM", dict(target_modules=["intermediate.dense"], feedforward_modules=[])),
]


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return lambda name: make(name, root / name)


def in_torch(twin, kit, **fields):
    """A PEFT model whose factors, and heads that are trained whole, are random."""
    from peft import IA3Config, get_peft_model

    config = IA3Config(**(dict(task_type=twin.task) | fields))
    model = kit.quiet(get_peft_model, twin.reference(), config).eval()
    return move(model)


@functools.partial(jax.jit, static_argnums=0)
def _ours(model, params, adapter):
    variables = {"params": params, "adapter": adapter}
    return model.apply(variables, jnp.asarray(IDS), jnp.asarray(MASK)).logits


def theirs(model):
    import torch

    return model(input_ids=torch.tensor(IDS), attention_mask=torch.tensor(MASK)).logits


@pytest.mark.parametrize("name, fields", CASES, ids=lambda x: x if isinstance(x, str) else "")
def test_both_ways_forward_and_backward(twins, kit, tmp_path, name, fields):
    import torch

    twin = twins(name)
    reference = in_torch(twin, kit, **fields)
    kit.quiet(reference.save_pretrained, tmp_path / "theirs")
    spec, adapter = peft.load(tmp_path / "theirs", twin.model, twin.params)
    assert peft.count(spec, twin.model) == reference.get_nb_trainable_parameters()[0]
    expected = theirs(reference)
    ours = _ours(twin.model, twin.params, adapter)
    np.testing.assert_allclose(
        real(np.asarray(ours)), real(expected.detach().numpy()), rtol=0, atol=1e-4
    )
    assert np.abs(ours - _ours(twin.model, twin.params, {})).max() > 0.05

    peft.save(tmp_path / "ours", spec, adapter, twin.model, params=twin.params)
    files = [load_file(tmp_path / d / "adapter_model.safetensors") for d in ("theirs", "ours")]
    # PEFT adds the base's own embeddings where one of them is a target.
    assert {k for k in files[0] if ".base_layer." not in k} == files[1].keys()
    for key, value in files[1].items():
        assert value.dtype == files[0][key].dtype and value.shape == files[0][key].shape
        np.testing.assert_array_equal(value, files[0][key], key)
    with torch.no_grad():
        back = theirs(kit.in_peft(twin, tmp_path / "ours"))
    np.testing.assert_allclose(back.numpy(), expected.detach().numpy(), rtol=0, atol=1e-6)
    _, loaded = peft.load(tmp_path / "ours", twin.model, twin.params)
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded, adapter))

    weights = np.random.default_rng(2).normal(size=ours.shape).astype(np.float32)
    if ours.ndim == 3:
        weights *= MASK[..., None]
    (expected * torch.tensor(weights)).mean().backward()
    gradients = jax.jit(
        jax.grad(lambda adapter: (_ours(twin.model, twin.params, adapter) * weights).mean())
    )(adapter)
    # A gradient has the layout of its adapter, so it can be filed like one.
    peft.save(tmp_path / "gradients", spec, gradients, twin.model)
    filed = load_file(tmp_path / "gradients" / "adapter_model.safetensors")
    checked = 0
    for key, parameter in reference.named_parameters():
        if parameter.requires_grad:
            key = key.replace(".modules_to_save", "").replace(".default", "")
            np.testing.assert_allclose(filed[key], parameter.grad.numpy(), rtol=1e-4, atol=1e-5)
            checked += 1
    assert checked == len(filed)


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "LlamaForCausalLM", "BertForMaskedLM"])
def test_what_we_make_is_read_by_peft(twins, kit, tmp_path, name):
    import torch

    twin = twins(name)
    spec = peft.IA3()
    adapter = peft.init(jax.random.key(0), spec, twin.model, twin.params)
    plain = _ours(twin.model, twin.params, {})
    np.testing.assert_array_equal(_ours(twin.model, twin.params, adapter), plain)
    rng = np.random.default_rng(0)
    adapter = jax.tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape).astype(x.dtype), adapter)
    peft.save(tmp_path, spec, adapter, twin.model)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert set(config["feedforward_modules"]) <= set(config["target_modules"])
    assert config["fan_in_fan_out"] is (name == "GPT2LMHeadModel")
    with torch.no_grad():
        expected = theirs(kit.in_peft(twin, tmp_path)).numpy()
    ours = np.asarray(_ours(twin.model, twin.params, adapter))
    np.testing.assert_allclose(real(ours), real(expected), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "LlamaForCausalLM", "BertForMaskedLM"])
def test_the_weights_with_the_factors_in_them(twins, kit, tmp_path, name):
    """PEFT's merge and ours give the same parameters; so do stacked and single layers."""
    twin = twins(name)
    reference = in_torch(twin, kit)
    kit.quiet(reference.save_pretrained, tmp_path / "adapter")
    kit.quiet(reference.merge_and_unload).save_pretrained(tmp_path / "merged")
    _, expected = fmjax.from_pretrained(tmp_path / "merged")
    _, adapter = peft.load(tmp_path / "adapter", twin.model)
    flat = tree.flatten(twin.params)
    sites = {}
    for path, leaf in tree.flatten(adapter).items():
        module, _, name = path.rpartition("/")
        sites.setdefault(module, {})[name] = leaf
    for module, leaves in sites.items():
        kernel, bias = f"{module}/kernel", f"{module}/bias"
        flat[kernel], new = merged(flat[kernel], leaves, flat.get(bias), stacked=True)
        if new is not None:
            flat[bias] = new
        one = {k: v[1] for k, v in leaves.items()}
        old = tree.flatten(twin.params)
        single, _ = merged(old[kernel][1], one)
        np.testing.assert_array_equal(single, flat[kernel][1])
    for path, value in tree.flatten(expected).items():
        np.testing.assert_allclose(flat[path], value, rtol=1e-6, atol=1e-7, err_msg=path)
