"""Prefixes made by PEFT and here compute the same, both ways, forward and backward."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from fmjax import peft
from fmjax.core import tree

P = 3
ATOL = 1e-4
# Right-padded, so that transformers' slots are positions; a window counts them.
MASK = np.ones((2, 9), np.int64)
MASK[1, 6:] = 0


def mistral(kit):
    from transformers import MistralConfig

    fields = kit.llama_config().to_dict()
    keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    keys += ("num_attention_heads", "num_key_value_heads", "initializer_range")
    return MistralConfig(sliding_window=5, **{k: fields[k] for k in keys})


def gemma2(kit, window=5):
    from transformers import Gemma2Config

    return Gemma2Config(
        vocab_size=62,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=window,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=10.0,
        initializer_range=0.2,
    )


def qwen3(kit):
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=62,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        initializer_range=0.2,
    )


def falcon(kit, **changes):
    fields = dict(new_decoder_architecture=False, multi_query=False, num_kv_heads=4)
    return kit.falcon_config(**fields | changes)


# name → (config, arguments of PrefixTuningConfig, attention of the reference). The eager attention
# of transformers' Falcon adds ALiBi twice.
CASES = {
    "gpt2": (lambda kit: kit.gpt2_config(), {}, "eager"),
    "llama": (lambda kit: kit.llama_config(), {}, "eager"),
    "mistral": (mistral, {}, "eager"),
    "gemma2": (gemma2, {}, "eager"),
    "gemma2 whose window is shorter than the prefix": (
        lambda kit: gemma2(kit, window=2),
        {},
        "eager",
    ),
    "qwen3": (qwen3, {}, "eager"),
    "falcon with groups": (lambda kit: kit.falcon_config(), {}, "eager"),
    "falcon with one key": (
        lambda kit: falcon(kit, multi_query=True),
        dict(num_attention_heads=1, token_dim=8),  # PEFT does not find these itself
        "eager",
    ),
    "falcon with alibi": (lambda kit: falcon(kit, alibi=True), {}, "sdpa"),
    "falcon with alibi and groups": (lambda kit: kit.falcon_config(alibi=True), {}, "sdpa"),
}


def pair(kit, directory, config, options, attention, seed=1, **prefix):
    """A twin and a PEFT model on the reference."""
    import torch
    from peft import PrefixTuningConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    twin = kit.make(config, directory)

    def reference():
        return AutoModelForCausalLM.from_pretrained(directory, attn_implementation=attention).eval()

    twin.reference = reference
    torch.manual_seed(seed)
    wanted = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=P, **options, **prefix)
    return twin, kit.quiet(get_peft_model, reference(), wanted).eval()


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(request, tmp_path_factory, kit):
    config, options, attention = CASES[request.param]
    directory = tmp_path_factory.mktemp("base")
    return pair(kit, directory, config(kit), options, attention)


@pytest.fixture(scope="module")
def loaded(case, kit, tmp_path_factory):
    """PEFT's file and what is read from it."""
    twin, theirs = case
    directory = tmp_path_factory.mktemp("theirs")
    kit.quiet(theirs.save_pretrained, directory)
    return directory, *peft.load(directory, twin.model, twin.params)


def theirs_logits(module, kit, mask=MASK):
    import torch

    return module(input_ids=torch.tensor(kit.IDS), attention_mask=torch.tensor(mask)).logits


@functools.partial(jax.jit, static_argnums=0)
def apply(model, params, adapter, ids, mask):
    variables = {"params": params, "adapter": adapter}
    return model.apply(variables, input_ids=ids, attention_mask=mask).logits


def ours_logits(twin, adapter, kit, mask=MASK):
    return apply(twin.model, twin.params, adapter, jnp.asarray(kit.IDS, jnp.int32), mask)


def test_logits_agree_and_files_go_both_ways(case, loaded, kit, tmp_path):
    twin, theirs = case
    directory, spec, adapter = loaded
    expected = theirs_logits(theirs, kit).detach().numpy()
    ours = ours_logits(twin, adapter, kit)
    np.testing.assert_allclose(ours[MASK > 0], expected[MASK > 0], rtol=0, atol=ATOL)
    assert np.abs(ours - ours_logits(twin, {}, kit)).max() > 0.1
    assert spec == peft.Prefix(P)
    assert peft.count(spec, twin.model) == theirs.get_nb_trainable_parameters()[0]

    peft.save(tmp_path, spec, adapter, twin.model, base=str(twin.dir), params=twin.params)
    files = [load_file(d / "adapter_model.safetensors") for d in (directory, tmp_path)]
    assert files[0].keys() == files[1].keys() == {"prompt_embeddings"}
    np.testing.assert_array_equal(*(f["prompt_embeddings"] for f in files))
    back = theirs_logits(kit.in_peft(twin, tmp_path), kit).detach().numpy()
    np.testing.assert_allclose(back, expected, rtol=0, atol=1e-6)
    configs = [json.loads((d / "adapter_config.json").read_text()) for d in (directory, tmp_path)]
    for key, value in configs[1].items():
        assert configs[0][key] == value or key in ("base_model_name_or_path", "revision")


def test_gradients_agree(case, loaded, kit, tmp_path):
    twin, theirs = case
    _, spec, adapter = loaded
    import torch

    weights = np.random.default_rng(3).normal(size=(*MASK.shape, 62)).astype(np.float32)
    weights *= MASK[..., None]

    def loss(adapter):
        return jnp.sum(ours_logits(twin, adapter, kit) * weights)

    ours = jax.jit(jax.grad(loss))(adapter)
    peft.save(tmp_path, spec, ours, twin.model)
    ours = load_file(tmp_path / "adapter_model.safetensors")["prompt_embeddings"]
    theirs.zero_grad()
    (theirs_logits(theirs, kit) * torch.tensor(weights)).sum().backward()
    expected = theirs.prompt_encoder["default"].embedding.weight.grad.numpy()
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=ATOL)


def test_greedy_generation_agrees(case, loaded, kit):
    import torch

    from fmjax.generate import generate

    twin, theirs = case
    _, _, adapter = loaded
    variables = {"params": twin.params, "adapter": adapter}
    theirs.generation_config.eos_token_id = None
    for row in (kit.IDS[0, :7], kit.IDS[1, :3]):
        ids = torch.tensor(row)[None]
        expected = kit.quiet(
            theirs.generate,
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=8,
            do_sample=False,
        )[0, len(row) :]
        ours = generate(twin.model, variables, [row], max_new_tokens=8, eos_token_id=())
        np.testing.assert_array_equal(ours.tokens[0], expected.numpy())


def test_left_padding_agrees(kit, tmp_path):
    mask = MASK[:, ::-1].copy()
    twin, theirs = pair(kit, tmp_path / "base", kit.llama_config(), {}, "eager")
    kit.quiet(theirs.save_pretrained, tmp_path / "theirs")
    _, adapter = peft.load(tmp_path / "theirs", twin.model)
    expected = theirs_logits(theirs, kit, mask).detach().numpy()
    ours = ours_logits(twin, adapter, kit, mask)
    np.testing.assert_allclose(ours[mask > 0], expected[mask > 0], rtol=0, atol=ATOL)


@pytest.mark.parametrize("hidden", [None, 24])
def test_projections_agree(hidden, kit, tmp_path):
    """The encoder's gradients, and the prefix that PEFT makes of the same encoder in its file."""
    import torch

    twin, theirs = pair(
        kit,
        tmp_path / "base",
        kit.llama_config(),
        {},
        "eager",
        prefix_projection=True,
        encoder_hidden_size=hidden,
    )
    spec = peft.Prefix(P, projection=True, hidden_size=hidden)
    assert peft.count(spec, twin.model) == theirs.get_nb_trainable_parameters()[0]
    encoder = theirs.prompt_encoder["default"]

    def named(get):
        first, _, second = encoder.transform
        return {
            "embedding": get(encoder.embedding.weight),
            "hidden": {"kernel": get(first.weight).T, "bias": get(first.bias)},
            "output": {"kernel": get(second.weight).T, "bias": get(second.bias)},
        }

    trained = {"encoder": jax.tree.map(jnp.asarray, named(lambda x: x.detach().numpy()))}
    shapes = {k: x.shape for k, x in tree.flatten(peft.abstract(spec, twin.model)).items()}
    assert {k: x.shape for k, x in tree.flatten(trained).items()} == shapes
    start = peft.init(jax.random.key(0), spec, twin.model)
    assert {k: x.shape for k, x in tree.flatten(start).items()} == shapes

    expanding = peft.applied(spec, twin.model)
    ids = jnp.asarray(kit.IDS, jnp.int32)

    def loss(adapter):
        return jnp.sum(jnp.sin(expanding({"params": twin.params, "adapter": adapter}, ids).logits))

    value, ours = jax.jit(jax.value_and_grad(loss))(trained)
    theirs.zero_grad()
    expected = torch.sin(theirs(input_ids=torch.tensor(kit.IDS)).logits).sum()
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5, atol=1e-3)
    reference = tree.flatten({"encoder": named(lambda x: x.grad.numpy())})
    for path, x in tree.flatten(ours).items():
        assert np.abs(reference[path]).max() > 1e-3
        np.testing.assert_allclose(x, reference[path], rtol=1e-4, atol=ATOL)

    kit.quiet(theirs.save_pretrained, tmp_path / "theirs")
    peft.save(tmp_path / "ours", spec, trained, twin.model)
    files = [load_file(tmp_path / d / "adapter_model.safetensors") for d in ("theirs", "ours")]
    np.testing.assert_allclose(*(f["prompt_embeddings"] for f in files), rtol=0, atol=1e-6)
    back = theirs_logits(kit.in_peft(twin, tmp_path / "ours"), kit).detach().numpy()
    for directory in ("theirs", "ours"):
        spec, adapter = peft.load(tmp_path / directory, twin.model)
        assert spec == peft.Prefix(P)
        ours = ours_logits(twin, adapter, kit)
        np.testing.assert_allclose(ours[MASK > 0], back[MASK > 0], rtol=0, atol=ATOL)
