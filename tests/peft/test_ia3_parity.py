"""IA³ made by PEFT and here compute the same, both ways, forward and backward."""

import functools
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import fmjax
from fmjax import peft
from fmjax.core import tree
from fmjax.peft.ia3_math import merged

# transformers' class → fields of its config; keyword arguments of peft.IA3Config.
SMALL = dict(vocab_size=50, initializer_range=0.2)
BERT = dict(
    hidden_size=32, intermediate_size=44, num_hidden_layers=2, num_attention_heads=4, num_labels=3
)
MODELS = {
    "GPT2LMHeadModel": dict(n_embd=32, n_layer=2, n_head=4, n_positions=16),
    "LlamaForCausalLM": dict(
        hidden_size=32,
        intermediate_size=44,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_bias=True,
    ),
    "FalconForCausalLM": dict(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_kv_heads=2,
        new_decoder_architecture=True,
        bias=True,
    ),
    "BertForMaskedLM": BERT,
    "BertForSequenceClassification": BERT,
    "RobertaForTokenClassification": BERT,
    "MixtralForCausalLM": dict(
        hidden_size=32,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=2,
    ),
}
TASKS = {"CausalLM": "CAUSAL_LM", "Head": "CAUSAL_LM", "Seq": "SEQ_CLS", "Token": "TOKEN_CLS"}
CASES = [(name, {}) for name in MODELS] + [
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
IDS = np.random.default_rng(1).integers(2, 50, (2, 7))
MASK = np.array([[1] * 7, [1] * 4 + [0] * 3])


@functools.cache
def make(name, directory):
    import torch
    import transformers

    cls = getattr(transformers, name)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    fields = SMALL | MODELS[name] | dict(max_position_embeddings=16)
    cls(cls.config_class(**fields)).save_pretrained(directory)
    model, params = fmjax.from_pretrained(directory)

    def reference():
        return cls.from_pretrained(directory, attn_implementation="eager").eval()

    task = next((task for part, task in TASKS.items() if part in name), None)
    return SimpleNamespace(
        dir=directory, model=model, params=params, reference=reference, task=task
    )


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return lambda name: make(name, root / name)


def in_torch(twin, kit, **fields):
    """A PEFT model whose factors, and heads that are trained whole, are random."""
    import torch
    from peft import IA3Config, get_peft_model

    config = IA3Config(**(dict(task_type=twin.task) | fields))
    model = kit.quiet(get_peft_model, twin.reference(), config).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@functools.partial(jax.jit, static_argnums=0)
def _ours(model, params, adapter):
    variables = {"params": params, "adapter": adapter}
    return model.apply(variables, jnp.asarray(IDS), jnp.asarray(MASK)).logits


def theirs(model):
    import torch

    return model(input_ids=torch.tensor(IDS), attention_mask=torch.tensor(MASK)).logits


def real(logits):
    """Only of tokens, where there is an answer for each."""
    return logits[MASK.astype(bool)] if logits.ndim == 3 else logits


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
