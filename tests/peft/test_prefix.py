"""What a prefix is to the models here: layouts, packing, precision, training, refusals."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file, save_file

import fmjax
from fmjax import peft
from fmjax.core import tree
from fmjax.core.errors import CheckpointError, ConfigError
from fmjax.nn.stack import unstack
from fmjax.objectives import CausalLM

P = 3
SPEC = peft.Prefix(P)
LLAMA = dict(
    model_type="llama",
    vocab_size=62,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    initializer_range=0.2,
)
FAMILIES = {
    "llama": LLAMA,
    "mistral": LLAMA | dict(model_type="mistral", sliding_window=4),
    "gpt2": dict(
        model_type="gpt2",
        vocab_size=62,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=16,
        initializer_range=0.2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
    ),
    "falcon": dict(
        model_type="falcon",
        vocab_size=62,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        alibi=True,
        multi_query=True,
        new_decoder_architecture=False,
        initializer_range=0.2,
    ),
}
BERT = dict(
    model_type="bert",
    vocab_size=62,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=16,
    initializer_range=0.2,
)
FAMILIES["bert"] = BERT | dict(architectures=["BertForMaskedLM"])
STACKS = {"llama": "layers", "mistral": "layers", "gpt2": "h", "falcon": "h"}
IDS = jnp.asarray(np.random.default_rng(1).integers(0, 62, (2, 9)), jnp.int32)


@functools.cache
def made(name, **execution):
    model = fmjax.build(dict(FAMILIES[name]), **execution)
    params = fmjax.init_params(model, jax.random.key(0))
    return model, params, peft.init(jax.random.key(1), SPEC, model)


@functools.partial(jax.jit, static_argnums=0)
def logits(model, params, adapter, ids=IDS, **inputs):
    return model.apply({"params": params, "adapter": adapter}, input_ids=ids, **inputs).logits


def close(a, b, atol=1e-5):
    np.testing.assert_allclose(a, b, rtol=0, atol=atol)


@pytest.mark.parametrize("name", ["llama", "falcon"])
def test_stacked_or_not_is_the_same(name, tmp_path):
    model, params, adapter = made(name)
    layers, stack = model.config.num_hidden_layers, STACKS[name]
    flat = model.clone(execution=dataclasses.replace(model.execution, scan_layers=False))
    own = peft.init(jax.random.key(1), SPEC, flat)
    for path, x in tree.flatten(unstack(adapter, stack, layers)).items():
        np.testing.assert_array_equal(x, tree.flatten(own)[path])
    close(logits(model, params, adapter), logits(flat, unstack(params, stack, layers), own))
    assert peft.count(SPEC, model) == peft.count(SPEC, flat) == tree.count(adapter)
    for directory, m, a in ((tmp_path / "a", model, adapter), (tmp_path / "b", flat, own)):
        peft.save(directory, SPEC, a, m)
    tables = [load_file(tmp_path / d / "adapter_model.safetensors") for d in "ab"]
    np.testing.assert_array_equal(*(t["prompt_embeddings"] for t in tables))


@pytest.mark.parametrize("remat", ["full", "attention", "dots"])
def test_gradients_under_rematerialisation(remat):
    _, params, adapter = made("llama")

    def gradient(remat):
        model = fmjax.build(dict(LLAMA), remat=remat)
        return jax.jit(jax.grad(lambda a: jnp.sum(jnp.sin(logits(model, params, a)))))(adapter)

    expected = tree.flatten(gradient("none"))
    for path, x in tree.flatten(gradient(remat)).items():
        assert np.abs(expected[path]).max() > 1e-2
        close(x, expected[path], 1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_documents_of_a_packed_row_each_have_the_prefix(name):
    model, params, adapter = made(name)
    row = jnp.pad(IDS.reshape(1, -1), ((0, 0), (0, 2)))
    segments = np.repeat([[1, 2, 0]], [9, 9, 2], axis=1)
    positions = jnp.concatenate([jnp.arange(n) for n in (9, 9, 2)])[None]
    packed = logits(model, params, adapter, row, segment_ids=segments, position_ids=positions)
    close(packed[0, :18].reshape(2, 9, -1), logits(model, params, adapter))


@pytest.mark.parametrize("name", ["mistral", "falcon"])
def test_padding_in_front_changes_nothing(name):
    model, params, adapter = made(name)
    ids = jnp.pad(IDS, ((0, 0), (4, 0)))
    mask = jnp.pad(jnp.ones_like(IDS), ((0, 0), (4, 0)))
    positions = jnp.maximum(jnp.arange(13) - 4, 0)[None].repeat(2, 0)
    padded = logits(model, params, adapter, ids, attention_mask=mask, position_ids=positions)
    close(padded[:, 4:], logits(model, params, adapter))


def test_a_window_reaches_as_far_into_the_prefix_as_into_tokens():
    model, params, adapter = made("mistral")
    layers = model.config.num_hidden_layers
    reach = layers * (model.config.sliding_window - 1)
    ids = jnp.concatenate([IDS, IDS], 1)
    moved = jax.tree.map(lambda x: x + 1.0, adapter)
    change = np.abs(logits(model, params, adapter, ids) - logits(model, params, moved, ids))
    assert change.max(-1)[:, :reach].min() > 1e-4
    assert change[:, reach:].max() == 0


def test_attention_dropout_acts_on_the_prefix_too():
    config = LLAMA | dict(num_hidden_layers=1, attention_dropout=0.5)
    model = fmjax.build(config)
    params = fmjax.init_params(model, jax.random.key(0))
    adapter = peft.init(jax.random.key(1), SPEC, model)
    variables = {"params": params, "adapter": adapter}

    @jax.jit
    def draw(key):
        return model.apply(variables, IDS[:1, :1], rngs={"dropout": key}).logits[0, 0]

    # The first token sees itself and the prefix; its logits vary with what of them is dropped.
    draws = [np.asarray(draw(jax.random.key(i))).round(3).tobytes() for i in range(8)]
    assert len(set(draws)) > 3


def test_the_prefix_is_computed_in_the_compute_dtype():
    model, params, adapter = made("llama")
    half = fmjax.build(dict(LLAMA), dtype="bfloat16")
    out = jax.jit(half.apply)({"params": params, "adapter": adapter}, IDS)
    assert out.last_hidden_state.dtype == jnp.bfloat16
    assert np.abs(out.logits - logits(model, params, adapter)).max() < 0.3


@pytest.mark.parametrize("spec", [SPEC, peft.Prefix(P, projection=True, hidden_size=8)])
def test_training_moves_the_prefix_alone(spec, tmp_path):
    model, params, _ = made("llama")
    adapter = peft.init(jax.random.key(1), spec, model)
    variables = {"params": params, "adapter": jax.tree.map(jnp.copy, adapter)}
    step = fmjax.train.make_step(peft.applied(spec, model), CausalLM(), optax.adam(0.03))
    state = step.init(variables, jax.random.key(0))
    losses = []
    for _ in range(12):
        state, metrics = step(state, {"input_ids": IDS})
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] - 0.3
    assert tree.count(state.opt_state[0].mu) == peft.count(spec, model)
    trained = state.variables["adapter"]
    for path, x in tree.flatten(adapter).items():
        assert np.abs(x - tree.flatten(trained)[path]).max() > 1e-3
    peft.save(tmp_path, spec, trained, model)
    again, loaded = peft.load(tmp_path, model)
    assert again == SPEC
    close(logits(model, params, loaded), logits(model, params, peft.expand(spec, model, trained)))
    assert peft.expand(again, model, loaded).keys() == loaded.keys()


@pytest.mark.parametrize("projection", [False, True])
def test_on_a_mesh(projection):
    model, params, _ = made("llama")
    mesh = fmjax.make_mesh(data=1, fsdp=2, tensor=4)
    spec = peft.Prefix(P, projection=projection)
    one = peft.init(jax.random.key(1), spec, model)
    many = peft.init(jax.random.key(1), spec, model, mesh=mesh)
    for path, x in tree.flatten(many).items():
        assert x.sharding.mesh == mesh
        np.testing.assert_array_equal(x, tree.flatten(one)[path])
    placed = jax.device_put(params, jax.NamedSharding(mesh, jax.P()))
    beside = peft.init(jax.random.key(1), spec, model, placed)
    assert all(x.sharding.mesh == mesh for x in jax.tree.leaves(beside))


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(num_virtual_tokens=0), "num_virtual_tokens=0 must be a positive integer"),
        (dict(num_virtual_tokens=None), "num_virtual_tokens is missing"),
        (dict(projection=1), "projection=1 must be True or False"),
        (dict(hidden_size=8), "hidden_size=8 is the projection's; add projection=True"),
        (dict(projection=True, hidden_size=-1), "hidden_size=-1 must be a positive"),
        (dict(modules_to_save=[3]), "Prefix: modules_to_save=.3. must be names"),
    ],
)
def test_a_spec_says_what_is_wrong_with_it(fields, message):
    with pytest.raises(ConfigError, match=message):
        peft.Prefix(**fields)


def test_a_prefix_needs_room_among_the_positions():
    model, params, adapter = made("gpt2")
    with pytest.raises(ConfigError, match="num_virtual_tokens=16 leave no room among the 16"):
        peft.init(jax.random.key(0), peft.Prefix(16), model)
    with pytest.raises(ConfigError, match="a prefix of 3 and 14 tokens exceed the model's 16"):
        logits(model, params, adapter, jnp.zeros((1, 14), jnp.int32))
    assert np.isfinite(logits(model, params, adapter, jnp.zeros((1, 13), jnp.int32))).all()


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_an_encoder_is_not_applied_as_it_is(name):
    model, params, _ = made(name)
    adapter = peft.init(jax.random.key(0), peft.Prefix(P, projection=True), model)
    with pytest.raises(ConfigError, match=r"peft\.expand\(spec, model, adapter\)"):
        logits(model, params, adapter)


def test_a_prefix_of_another_model_is_refused():
    model, params, _ = made("llama")
    other = fmjax.build(LLAMA | dict(num_key_value_heads=1))
    adapter = peft.init(jax.random.key(1), SPEC, other)
    with pytest.raises(ConfigError, match=r"layers/self_attn' is \(3, 1, 8\) and .* \(3, 2, 8\)"):
        logits(model, params, adapter)


def test_every_layer_has_the_prefix():
    _, params, adapter = made("llama")
    model = fmjax.build(dict(LLAMA), scan_layers=False)
    params, adapter = unstack(params, "layers", 3), unstack(adapter, "layers", 3)
    del adapter["layers_1"]
    with pytest.raises(ConfigError, match="the prefix at 'layers_1/self_attn' is none where"):
        logits(model, params, adapter)


def test_a_prefix_cannot_be_merged():
    model, params, adapter = made("llama")
    with pytest.raises(ConfigError, match="is a prefix, which is no change of weights"):
        peft.merge(model, params, adapter)


def test_saving_takes_the_adapter_of_the_spec(tmp_path):
    model, _, adapter = made("llama")
    with pytest.raises(CheckpointError, match=r"prefix_key' where .* asks for \(3, 4, 2, 8\)"):
        peft.save(tmp_path / "a", peft.Prefix(4), adapter, model)
    more = tree.combine(adapter, {"norm": {"lora_a": jnp.zeros(3)}})
    with pytest.raises(CheckpointError, match="'norm/lora_a' does not belong"):
        peft.save(tmp_path / "a", SPEC, more, model)
    assert not (tmp_path / "a").exists()


def test_files_are_read_strictly(tmp_path):
    model, _, adapter = made("llama")
    peft.save(tmp_path, SPEC, adapter, model)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    config = json.loads((tmp_path / "adapter_config.json").read_text())

    def refused(message, tensors=tensors, **changes):
        save_file(tensors, tmp_path / "adapter_model.safetensors")
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | changes))
        with pytest.raises(CheckpointError, match=message):
            peft.load(tmp_path, model)

    table = tensors["prompt_embeddings"]
    refused("lacks 'prompt_embeddings'", {"other": table})
    refused("holds 'other', which adapter_config.json does not ask", tensors | {"other": table})
    refused(r"has shape \[3, 95\] where", {"prompt_embeddings": table[:, 1:].copy()})
    refused(r"has shape \[3, 96\] where .* \[4, 96\]", num_virtual_tokens=4)
    refused("num_virtual_tokens is missing", num_virtual_tokens=None)
    refused("num_layers=4 where the prefixes of this LlamaForCausalLM have 3", num_layers=4)
    refused("num_attention_heads=4 where", num_attention_heads=4)
    refused("num_transformer_submodules=2 where", num_transformer_submodules=2)
    refused("some_gate=True is not supported", some_gate=True)
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"peft_type": "PREFIX_TUNING", "num_virtual_tokens": P, "init_weights": "zero"})
    )
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    assert peft.load(tmp_path, model)[0] == SPEC
