"""Soft prompts: specs, arrays, files, and what they do where PEFT cannot follow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from torch_twins import IDS, MODELS, SMALL

import fmjax
from fmjax import peft
from fmjax.core import tree
from fmjax.core.errors import CheckpointError, ConfigError

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
P = 3
KINDS = {
    "GPT2LMHeadModel": "gpt2",
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "FalconForCausalLM": "falcon",
    "BertForMaskedLM": "bert",
}


def build(name, **execution):
    fields = SMALL | dict(max_position_embeddings=16) | MODELS[name]
    config = {"model_type": KINDS[name], "architectures": [name]} | fields
    return fmjax.build(config, **execution)


@pytest.fixture(params=["GPT2LMHeadModel", "LlamaForCausalLM", "MistralForCausalLM"])
def decoder(request):
    model = build(request.param)
    params = fmjax.init_params(model, jax.random.key(0))
    adapter = peft.init(jax.random.key(1), peft.Prompt(P), model, params)
    return model, {"params": params, "adapter": adapter}


def run(model, variables, ids, **inputs):
    return jax.jit(lambda v, ids, inputs: model.apply(v, ids, **inputs))(
        variables, jnp.asarray(ids), inputs
    ).logits


def test_outputs_are_of_the_real_tokens(decoder):
    model, variables = decoder
    apply = jax.jit(model.apply, static_argnames=("output_hidden_states", "logits_to_keep"))
    out = apply(variables, jnp.asarray(IDS), output_hidden_states=True)
    assert out.logits.shape == (2, 7, 50) and out.last_hidden_state.shape == (2, 7, 32)
    assert [h.shape for h in out.hidden_states] == [(2, 7, 32)] * 3
    plain = apply({"params": variables["params"]}, jnp.asarray(IDS)).logits
    assert np.abs(out.logits - plain).max() > 0.05
    last = apply(variables, jnp.asarray(IDS), logits_to_keep=2).logits
    np.testing.assert_allclose(last, out.logits[:, -2:], atol=1e-5)


def test_every_text_of_a_packed_row_has_the_prompt(decoder):
    model, variables = decoder
    alone = [run(model, variables, IDS[:1, :5]), run(model, variables, IDS[1:, :4])]
    row = np.concatenate([IDS[0, :5], IDS[1, :4], [0, 0]])[None]
    segments = np.array([[1] * 5 + [2] * 4 + [0] * 2], np.int32)
    places = np.array([[*range(5), *range(4), 0, 0]], np.int32)
    packed = run(model, variables, row, segment_ids=segments, position_ids=places)
    np.testing.assert_allclose(packed[:, :5], alone[0], atol=1e-4)
    np.testing.assert_allclose(packed[:, 5:9], alone[1], atol=1e-4)


def test_padding_changes_nothing(decoder):
    model, variables = decoder
    alone = run(model, variables, IDS[:1, :5])
    for first in (0, 3):
        row, mask, places = np.zeros((1, 8), int), np.zeros((1, 8), int), np.zeros((1, 8), int)
        row[0, first : first + 5], mask[0, first : first + 5] = IDS[0, :5], 1
        places[0, first : first + 5] = range(5)
        logits = run(model, variables, row, attention_mask=mask, position_ids=places)
        np.testing.assert_allclose(logits[:, first : first + 5], alone, atol=1e-4)


def test_step_by_step_in_the_cache(decoder):
    model, variables = decoder
    whole = run(model, variables, IDS)
    mask = np.ones((2, 7), np.int32)

    @jax.jit
    def fill(variables, ids):
        return model.apply(variables, ids, mask, cache_index=0, mutable=["cache"])

    @jax.jit
    def step(variables, ids, index):
        return model.apply(variables, ids, mask, cache_index=index, mutable=["cache"])

    out, cache = fill(variables, jnp.asarray(IDS[:, :4]))
    np.testing.assert_allclose(out.logits, whole[:, :4], atol=1e-4)
    assert {x.shape[-2] for x in jax.tree.leaves(cache)} == {P + 7}
    for i in range(4, 7):
        out, cache = step({**variables, **cache}, jnp.asarray(IDS[:, i : i + 1]), i)
        np.testing.assert_allclose(out.logits[:, 0], whole[:, i], atol=1e-4)


def test_a_cache_that_lacks_the_prompt_is_refused(decoder):
    model, variables = decoder
    with pytest.raises(ConfigError, match="begin with cache_index=0"):
        index = jnp.asarray(0)
        model.apply(
            variables, jnp.asarray(IDS), np.ones((2, 9)), cache_index=index, mutable=["cache"]
        )


def test_generation_does_not_depend_on_the_other_rows(decoder):
    model, variables = decoder
    options = dict(max_new_tokens=5, eos_token_id=(), return_logprobs=True)
    both = fmjax.generate.generate(model, variables, [[5, 6, 7, 8, 9], [4, 3]], **options)
    one = fmjax.generate.generate(model, variables, [[4, 3]], **options)
    np.testing.assert_array_equal(both.tokens[1:], one.tokens)
    np.testing.assert_allclose(both.logprobs[1:], one.logprobs, atol=1e-4)


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "BertForMaskedLM"])
def test_gradients_pass_scanned_layers_and_remat(name):
    spec = peft.Prompt(P)
    first = None
    for execution in (dict(), dict(remat="full"), dict(scan_layers=False)):
        model = build(name, **execution)
        params = fmjax.init_params(build(name), jax.random.key(0))
        if not model.execution.scan_layers:
            stack = "h" if name.startswith("GPT2") else "layers"
            params = fmjax.nn.stack.unstack(params, stack, 2)
        adapter = peft.init(jax.random.key(1), spec, model, params)

        def loss(adapter, model=model, params=params):
            variables = {"params": params, "adapter": adapter}
            return jnp.square(model.apply(variables, jnp.asarray(IDS)).logits).mean()

        (gradient,) = tree.flatten(jax.jit(jax.grad(loss))(adapter)).values()
        first = gradient if first is None else first
        assert gradient.shape == (P, 32) and np.abs(gradient).max() > 1e-4
        np.testing.assert_allclose(gradient, first, rtol=1e-3, atol=1e-6)


def test_texts_packed_under_a_bert_are_refused():
    model = build("BertForMaskedLM")
    params = fmjax.init_params(model, jax.random.key(0))
    adapter = peft.init(jax.random.key(1), peft.Prompt(P), model)
    variables = {"params": params, "adapter": adapter}
    with pytest.raises(ConfigError, match="cannot serve several texts"):
        model.apply(variables, jnp.asarray(IDS), segment_ids=jnp.ones((2, 7), jnp.int32))


def test_positions_are_counted_with_the_prompt():
    for name in ("GPT2LMHeadModel", "BertForMaskedLM"):
        model = build(name)  # 16 positions
        params = fmjax.init_params(model, jax.random.key(0))
        adapter = peft.init(jax.random.key(1), peft.Prompt(10), model)
        variables = {"params": params, "adapter": adapter}
        assert np.isfinite(run(model, variables, IDS[:, :6])).all()
        with pytest.raises(ConfigError, match="a prompt of 10 and 7 tokens exceed the model's 16"):
            run(model, variables, IDS)
        if name.startswith("GPT2"):
            with pytest.raises(ConfigError, match="a soft prompt of 10, a prompt of 2 tokens"):
                fmjax.generate.generate(model, variables, IDS[:, :2], max_new_tokens=6)
        with pytest.raises(ConfigError, match="leave no room among the 16 positions"):
            peft.init(jax.random.key(0), peft.Prompt(16), model)


def test_the_prompt_of_another_model_is_refused():
    model, other = build("GPT2LMHeadModel"), fmjax.build("gpt2")
    params = fmjax.init_params(model, jax.random.key(0))
    adapter = peft.init(jax.random.key(1), peft.Prompt(P), other)
    with pytest.raises(ConfigError, match=r"'wte' has shape \(3, 768\) where"):
        model.apply({"params": params, "adapter": adapter}, jnp.asarray(IDS))


REFUSED = {
    "num_virtual_tokens=0 must": dict(num_virtual_tokens=0),
    r"init_ids=\(\) must be": dict(init_ids=()),
    r"init_ids=\[-1\] must be": dict(init_ids=[-1]),
    "init_ids='words' must be": dict(init_ids="words"),
    "modules_to_save=3 must be": dict(modules_to_save=3),
}


@pytest.mark.parametrize("said, fields", REFUSED.items())
def test_broken_specs_are_refused(said, fields):
    with pytest.raises(ConfigError, match=said):
        peft.Prompt(**fields)


def test_starts_that_do_not_fit_are_refused():
    model = build("GPT2LMHeadModel")
    with pytest.raises(ConfigError, match="have 50, outside the model's vocabulary of 50"):
        peft.init(jax.random.key(0), peft.Prompt(P, init_ids=(3, 50)), model)
    with pytest.raises(ConfigError, match="pass params="):
        peft.init(jax.random.key(0), peft.Prompt(P, init_ids=(3,)), model)


def test_lies_whole_on_every_device_of_its_base(tmp_path):
    mesh = fmjax.make_mesh(fsdp=4, tensor=2)
    model = build("GPT2LMHeadModel")
    params = fmjax.init_params(model, jax.random.key(0), mesh=mesh)
    spec = peft.Prompt(P, init_ids=range(5))
    adapter = peft.init(jax.random.key(1), spec, model, params)
    sharding = adapter["wte"]["prompt"].sharding
    assert sharding.mesh == mesh and sharding.is_fully_replicated
    peft.save(tmp_path, spec, adapter, model, params=params)
    again, loaded = peft.load(tmp_path, model, params)
    assert again == peft.Prompt(P)
    np.testing.assert_array_equal(loaded["wte"]["prompt"], adapter["wte"]["prompt"])


@pytest.fixture
def saved(tmp_path):
    model = build("GPT2LMHeadModel")
    adapter = peft.init(jax.random.key(1), peft.Prompt(P), model)
    peft.save(tmp_path, peft.Prompt(P), adapter, model)
    return model, tmp_path


CORRUPTIONS = {
    "lacks 'prompt_embeddings'": lambda t: {"other": t["prompt_embeddings"]},
    "holds 'other'": lambda t: t | {"other": np.ones(2, np.float32)},
    r"has shape \[2, 32\] where": lambda t: {"prompt_embeddings": t["prompt_embeddings"][:2]},
}


@pytest.mark.parametrize("said, corrupt", CORRUPTIONS.items())
def test_broken_files_are_refused(saved, said, corrupt):
    model, directory = saved
    save_file(corrupt(load_file(directory / WEIGHTS)), directory / WEIGHTS)
    with pytest.raises(CheckpointError, match=said):
        peft.load(directory, model)


CONFIGS = {
    "token_dim=64 where prompts of this GPT2LMHeadModel have 32": (
        '"token_dim": 32',
        '"token_dim": 64',
    ),
    "num_transformer_submodules=2 where": ('submodules": 1', 'submodules": 2'),
    "num_virtual_tokens=None must": ('"num_virtual_tokens": 3', '"num_virtual_tokens": null'),
    "num_ranks=4 is not supported": ("{", '{"num_ranks": 4,'),
}


@pytest.mark.parametrize("said, change", CONFIGS.items())
def test_configs_that_do_not_fit_are_refused(saved, said, change):
    model, directory = saved
    text = (directory / CONFIG).read_text()
    assert change[0] in text
    (directory / CONFIG).write_text(text.replace(*change, 1))
    with pytest.raises(CheckpointError, match=said):
        peft.load(directory, model)


def test_other_leaves_are_not_saved(saved):
    model, directory = saved
    adapter = {"wte": {"prompt": np.zeros((P, 32), np.float32)}}
    with pytest.raises(CheckpointError, match="does not belong"):
        peft.save(directory, peft.Prompt(P), adapter | {"more": np.zeros(1)}, model)
    with pytest.raises(CheckpointError, match=r"lacks 'wte/prompt' \(4, 32\)"):
        peft.save(directory, peft.Prompt(4), adapter, model)
