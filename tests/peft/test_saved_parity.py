"""Adapters with a head that is trained whole (`modules_to_save`), both ways with PEFT."""

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
from fmjax.peft.base import Base
from fmjax.peft.lora_sites import sites

# Class of transformers → PEFT's task and the modules that it adds for that task.
CASES = {
    "BertForSequenceClassification": ("SEQ_CLS", ["classifier", "score"]),
    "RobertaForSequenceClassification": ("SEQ_CLS", ["classifier", "score"]),
    "BertForTokenClassification": ("TOKEN_CLS", ["classifier", "score"]),
    "BertForQuestionAnswering": ("QUESTION_ANS", ["qa_outputs"]),
}
IDS = np.random.default_rng(1).integers(2, 50, (3, 7))
PREFIX = "base_model.model."


def make(name, directory):
    import torch
    import transformers

    cls = getattr(transformers, name)
    config = cls.config_class(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=44,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=16,
        initializer_range=0.2,
        num_labels=2 if "Question" in name else 3,
    )
    torch.manual_seed(0)
    torch.set_num_threads(1)
    cls(config).save_pretrained(directory)
    model, params = fmjax.from_pretrained(directory)

    def reference():
        return cls.from_pretrained(directory, attn_implementation="eager").eval()

    task, own = CASES[name]
    return SimpleNamespace(
        dir=directory, model=model, params=params, reference=reference, task=task, own=own
    )


@pytest.fixture(scope="module", params=CASES)
def twin(request, tmp_path_factory):
    return make(request.param, tmp_path_factory.mktemp(request.param))


def in_torch(twin, kit, **fields):
    """A PEFT model whose factors and head are random."""
    import torch
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(**(dict(task_type=twin.task, r=3, lora_alpha=6) | fields))
    model = kit.quiet(get_peft_model, twin.reference(), config).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def outputs(out):
    """Logits of any head, of either library, as one array."""
    if hasattr(out, "logits"):
        return out.logits
    start, end = out.start_logits[..., None], out.end_logits[..., None]
    if isinstance(start, jax.Array):
        return jnp.concatenate([start, end], -1)
    import torch

    return torch.cat([start, end], -1)


@functools.partial(jax.jit, static_argnums=0)
def _ours(model, params, adapter):
    return outputs(model.apply({"params": params, "adapter": adapter}, input_ids=jnp.asarray(IDS)))


def ours(model, params, adapter):
    return np.asarray(_ours(model, params, adapter))


def theirs(model):
    import torch

    with torch.no_grad():
        return outputs(model(input_ids=torch.tensor(IDS))).numpy()


def with_new_head(params, spec, model):
    """The base with other values where the adapter has copies."""
    copies = tree.flatten(peft.abstract(spec, model)).keys()
    return tree.map_with_path(lambda path, x: x + 0.7 if path in copies else x, params)


def test_both_ways(twin, kit, tmp_path):
    reference = in_torch(twin, kit, target_modules=["query", "value"])
    kit.quiet(reference.save_pretrained, tmp_path / "theirs")
    spec, adapter = peft.load(tmp_path / "theirs", twin.model, twin.params)
    assert spec.modules_to_save == peft.head_modules(twin.model) == (twin.own[0],)
    expected = theirs(reference)
    assert np.abs(expected - theirs(twin.reference())).max() > 0.05
    computed = ours(twin.model, twin.params, adapter)
    np.testing.assert_allclose(computed, expected, rtol=0, atol=1e-5)
    assert peft.count(spec, twin.model) == reference.get_nb_trainable_parameters()[0]

    peft.save(tmp_path / "ours", spec, adapter, twin.model, params=twin.params)
    files = [load_file(tmp_path / d / "adapter_model.safetensors") for d in ("theirs", "ours")]
    assert files[0].keys() == files[1].keys()
    assert any(key.startswith(f"{PREFIX}{twin.own[0]}.") for key in files[1])
    for key, value in files[0].items():
        assert value.dtype == files[1][key].dtype
        np.testing.assert_array_equal(files[1][key], value, key)
    configs = [
        json.loads((tmp_path / d / "adapter_config.json").read_text()) for d in ("theirs", "ours")
    ]
    assert configs[0]["task_type"] == configs[1]["task_type"] == twin.task
    assert (configs[0]["modules_to_save"], configs[1]["modules_to_save"]) == (
        twin.own,
        twin.own[:1],
    )
    back = kit.in_peft(twin, tmp_path / "ours")
    assert type(back) is type(reference)
    np.testing.assert_allclose(theirs(back), expected, rtol=0, atol=1e-6)

    # The base's own head is not read: a new random one is the same base.
    other = with_new_head(twin.params, spec, twin.model)
    assert np.abs(ours(twin.model, other, {}) - ours(twin.model, twin.params, {})).max() > 0.1
    again, loaded = peft.load(tmp_path / "ours", twin.model, other)
    assert again == spec
    np.testing.assert_array_equal(ours(twin.model, other, loaded), computed)
    merged = peft.merge(twin.model, other, loaded)
    np.testing.assert_allclose(ours(twin.model, merged, {}), computed, rtol=0, atol=1e-5)


def test_gradients_agree(twin, kit, tmp_path):
    import torch

    reference = in_torch(twin, kit, target_modules=["key", "output.dense"])
    kit.quiet(reference.save_pretrained, tmp_path)
    spec, adapter = peft.load(tmp_path, twin.model)
    weights = np.random.default_rng(2).normal(size=theirs(reference).shape).astype(np.float32)
    (outputs(reference(input_ids=torch.tensor(IDS))) * torch.tensor(weights)).sum().backward()

    def loss(adapter, params):
        variables = {"params": params, "adapter": adapter}
        return (outputs(twin.model.apply(variables, input_ids=jnp.asarray(IDS))) * weights).sum()

    gradients, of_base = jax.jit(jax.grad(loss, (0, 1)))(adapter, twin.params)
    gradients = tree.map_with_path(
        lambda path, g, x: x if path.endswith("/lora_scale") else g, gradients, adapter
    )
    # A gradient has the layout of its adapter, so it can be filed like one.
    peft.save(tmp_path / "gradients", spec, gradients, twin.model)
    filed = load_file(tmp_path / "gradients" / "adapter_model.safetensors")
    checked = set()
    for name, parameter in reference.named_parameters():
        if parameter.requires_grad:
            key = name.replace("modules_to_save.default.", "").replace(".default", "")
            assert parameter.grad.abs().max() > 1e-4, key
            np.testing.assert_allclose(filed[key], parameter.grad.numpy(), rtol=1e-4, atol=1e-4)
            checked.add(key)
    assert checked == filed.keys()
    # What is replaced has no influence.
    of_base, copies = tree.flatten(of_base), tree.flatten(adapter).keys()
    assert all(not of_base[path].any() for path in copies & of_base.keys())


@pytest.mark.parametrize("with_task", [True, False])
def test_all_linear_is_the_set_of_peft(twin, kit, with_task):
    # For other tasks than SEQ_CLS PEFT must be told of the head before it picks the layers.
    fields = {} if not with_task else {"modules_to_save": twin.own[:1]}
    task = twin.task if with_task else None
    reference = in_torch(twin, kit, target_modules="all-linear", task_type=task, **fields)
    names = {
        name.removeprefix(PREFIX).rpartition(".lora_A")[0]
        for name, _ in reference.named_modules()
        if name.endswith(".lora_A")
    }
    heads = peft.head_modules(twin.model) if with_task else ()
    spec = peft.LoRA(rank=3, targets="all-linear", modules_to_save=heads)
    found = sites(spec, Base.of(twin.model))
    assert {name for site in found for name in site.weight.names} == names
    assert any(twin.own[0] in name for name in names) == (not with_task)
    assert peft.count(spec, twin.model) == reference.get_nb_trainable_parameters()[0]


def test_a_fresh_adapter_changes_nothing_and_loads_in_peft(twin, kit, tmp_path):
    spec = peft.LoRA(rank=2, targets="all-linear", modules_to_save=peft.head_modules(twin.model))
    adapter = peft.init(jax.random.key(0), spec, twin.model, twin.params)
    flat, own = tree.flatten(adapter), tree.flatten(twin.params)
    copies = flat.keys() & own.keys()
    assert {path.rpartition("/")[2] for path in copies} == {"kernel", "bias"}
    assert all(np.array_equal(flat[path], own[path]) for path in copies)
    computed, plain = (ours(twin.model, twin.params, a) for a in (adapter, {}))
    np.testing.assert_allclose(computed, plain, rtol=0, atol=1e-6)
    peft.save(tmp_path, spec, adapter, twin.model)
    back = kit.in_peft(twin, tmp_path)
    np.testing.assert_array_equal(theirs(back), theirs(twin.reference()))


def test_without_a_copy_of_the_head_the_file_names_no_task(kit, tmp_path):
    twin = make("BertForSequenceClassification", tmp_path / "base")
    for fields in ({}, {"modules_to_save": ("pooler",)}):
        spec = peft.LoRA(rank=2, targets=("query",), **fields)
        adapter = kit.trained(twin, spec)
        peft.save(tmp_path / "a", spec, adapter, twin.model, params=twin.params)
        config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
        assert config["task_type"] is None
        back = kit.in_peft(twin, tmp_path / "a")
        expected = ours(twin.model, twin.params, adapter)
        np.testing.assert_allclose(theirs(back), expected, rtol=0, atol=1e-5)
        assert peft.load(tmp_path / "a", twin.model, twin.params)[0] == spec


def test_tables_heads_and_stacks_of_a_decoder(llama, kit, tmp_path):
    names = ["embed_tokens", "lm_head", "k_proj"]
    reference = kit.peft_model(llama, r=2, target_modules=["q_proj"], modules_to_save=names)
    import torch

    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    kit.quiet(reference.save_pretrained, tmp_path / "theirs")
    spec, adapter = peft.load(tmp_path / "theirs", llama.model, llama.params)
    assert adapter["layers"]["self_attn"]["k_proj"]["kernel"].shape == (3, 32, 16)
    expected = kit.torch_logits(reference)
    computed = kit.logits(llama.model, llama.params, adapter)
    np.testing.assert_allclose(computed, expected, rtol=0, atol=kit.ATOL)
    merged = peft.merge(llama.model, llama.params, adapter)
    np.testing.assert_allclose(kit.logits(llama.model, merged, {}), computed, rtol=0, atol=5e-5)
    peft.save(tmp_path / "ours", spec, adapter, llama.model, params=llama.params)
    files = [load_file(tmp_path / d / "adapter_model.safetensors") for d in ("theirs", "ours")]
    assert files[0].keys() == files[1].keys()
    assert all(np.array_equal(files[0][key], files[1][key]) for key in files[0])
    back = kit.in_peft(llama, tmp_path / "ours")
    np.testing.assert_allclose(kit.torch_logits(back), expected, rtol=0, atol=1e-6)

    # One layer of a stack has an array of its own only where layers are not scanned.
    model, params = fmjax.from_pretrained(llama.dir, scan_layers=False)
    again, apart = peft.load(tmp_path / "ours", model, params)
    assert again == spec and apart["layers_2"]["self_attn"]["k_proj"]["kernel"].shape == (32, 16)
    np.testing.assert_allclose(kit.logits(model, params, apart), computed, rtol=0, atol=5e-5)
