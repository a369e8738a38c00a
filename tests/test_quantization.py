"""Which parameters are packed, where they lie, what loading them costs, and adapters on them."""

import json
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fmjax
from fmjax import peft, quant, quantization
from fmjax.cli.main import main
from fmjax.convert import load, packed
from fmjax.core import tree
from fmjax.core.errors import CheckpointError
from fmjax.core.params import ParamSpec
from fmjax.objectives import CausalLM
from fmjax.parallel import make_mesh
from fmjax.train import make_step
from fmjax.train.checkpoint import Checkpointer

LLAMA = {
    "model_type": "llama",
    "vocab_size": 32,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
IDS = np.arange(16).reshape(2, 8)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    model = fmjax.build(LLAMA)
    params = fmjax.init_params(model, jax.random.key(0))
    directory = tmp_path_factory.mktemp("whole")
    fmjax.save_pretrained(directory, model, params)
    return directory


@pytest.fixture(scope="module")
def nf4(whole, tmp_path_factory):
    directory = tmp_path_factory.mktemp("nf4")
    fmjax.hub.convert(whole, directory, quantize="nf4")
    return directory


def equal(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and jax.tree.all(
        jax.tree.map(lambda x, y: np.array_equal(np.asarray(x), np.asarray(y)), a, b)
    )


@pytest.mark.parametrize(
    ("config", "kinds"),
    [
        (LLAMA, "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"),
        ({"model_type": "gpt2", "n_layer": 1, "vocab_size": 8}, "c_attn c_proj c_fc c_proj"),
        (
            {"model_type": "bert", "num_hidden_layers": 1, "head": "sequence-classification"},
            "query key value output intermediate output",
        ),
        (
            {"model_type": "falcon", "num_hidden_layers": 1, "vocab_size": 8},
            "query_key_value dense dense_h_to_4h dense_4h_to_h",
        ),
        (
            {"model_type": "mixtral", "num_hidden_layers": 1, "vocab_size": 8},
            "q_proj k_proj v_proj o_proj",
        ),
    ],
)
def test_linear_layers_of_layers_are_packed(config, kinds):
    model = fmjax.build(config)
    paths = quantization.packed_paths(model)
    assert [path.split("/")[-2] for path in paths] == kinds.split()
    apart = quantization.packed_paths(type(model)(model.config, fmjax.Execution(scan_layers=False)))
    assert len(apart) == len(paths) * model.config.num_hidden_layers


@pytest.mark.parametrize("kind", ["nf4", "nf4-single", "int8"])
def test_the_abstract_tree_is_that_of_the_arrays(kind, whole):
    model, params = fmjax.from_pretrained(whole, quantize=kind)
    specs = quantization.abstract(model, kind)
    assert jax.tree.structure(specs) == jax.tree.structure(params)
    for spec, x in zip(jax.tree.leaves(specs), jax.tree.leaves(params), strict=True):
        assert isinstance(spec, ParamSpec) and (spec.shape, spec.dtype) == (x.shape, x.dtype)
    assert tree.count(params) == tree.count(specs) == fmjax.param_count(model)
    assert tree.nbytes(params) == tree.nbytes(specs)
    kernel = params["layers"]["mlp"]["up_proj"]["kernel"]
    assert tree.nbytes(kernel) == kernel.nbytes
    back = fmjax.dequantize(params, "bfloat16")
    assert back["layers"]["mlp"]["up_proj"]["kernel"].dtype == jnp.bfloat16
    assert back["norm"]["scale"].dtype == jnp.float32


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_on_a_mesh(kind, whole, nf4):
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    model, plain = fmjax.from_pretrained(whole, quantize=kind)
    _, params = fmjax.from_pretrained(whole, quantize=kind, mesh=mesh)
    assert equal(params, plain)
    codes = params["layers"]["mlp"]["up_proj"]["kernel"].codes
    assert codes.sharding.mesh == mesh
    assert codes.addressable_shards[0].data.size * 4 == codes.size
    assert equal(fmjax.quantize(model, fmjax.from_pretrained(whole)[1], kind, mesh=mesh), plain)
    apply = jax.jit(lambda p: model.apply({"params": p}, input_ids=IDS).logits)
    np.testing.assert_allclose(apply(params), apply(plain), atol=1e-5)
    if kind == "nf4":
        assert equal(fmjax.from_pretrained(nf4, mesh=mesh)[1], plain)


def test_blocks_that_do_not_divide_are_whole_on_every_device(whole):
    mesh = make_mesh(fsdp=8)  # 128 inputs are two blocks
    _, params = fmjax.from_pretrained(whole, quantize="nf4", mesh=mesh)
    assert equal(params, fmjax.from_pretrained(whole, quantize="nf4")[1])
    assert params["layers"]["mlp"]["up_proj"]["kernel"].codes.sharding.is_fully_replicated


def test_the_host_holds_one_matrix(tmp_path, monkeypatch):
    """8 layers with matrices of 1 MiB, 26 MiB together."""
    model = fmjax.build(LLAMA | {"intermediate_size": 2048, "num_hidden_layers": 8})
    fmjax.save_pretrained(tmp_path, model, fmjax.init_params(model, jax.random.key(0)))
    matrix, sizes = 128 * 2048 * 4, []

    def spy(array, *args, **kwargs):
        sizes.append(array.nbytes)
        return cast(array, *args, **kwargs)

    cast = packed.cast
    monkeypatch.setattr(packed, "cast", spy)
    monkeypatch.setattr(load, "_place", lambda found, *_: None)  # norms and tables aside
    fmjax.from_pretrained(tmp_path, quantize="nf4")  # compiles
    tracemalloc.start()
    fmjax.from_pretrained(tmp_path, quantize="nf4")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert max(sizes) == matrix and len(sizes) == 2 * 8 * 7
    assert peak < 2 * matrix + 500_000  # headers and Python's own objects


def test_fingerprints_and_adapters(whole, nf4, tmp_path):
    model, params = fmjax.from_pretrained(nf4)
    apart = fmjax.from_pretrained(nf4, scan_layers=False)
    spec = peft.LoRA(rank=2)
    adapter = peft.init(jax.random.key(0), spec, model, params)
    peft.save(tmp_path, spec, adapter, model, params=params)
    peft.load(tmp_path, model, params)
    peft.load(tmp_path, *apart)
    peft.load(tmp_path, model, fmjax.dequantize(params, "bfloat16"))
    original = fmjax.from_pretrained(whole)[1]
    with pytest.raises(CheckpointError, match="any_base=True .*trained on the 4-bit one"):
        peft.load(tmp_path, model, original)
    peft.load(tmp_path, model, original, any_base=True)


@pytest.mark.slow
def test_training_an_adapter_and_its_checkpoints(nf4, whole, tmp_path):
    mesh = make_mesh(fsdp=2, data=-1)
    model, params = fmjax.from_pretrained(nf4, mesh=mesh)
    adapter = peft.init(jax.random.key(0), peft.LoRA(rank=2), model, params)
    factor = adapter["layers"]["self_attn"]["q_proj"]["lora_a"]
    assert factor.sharding.mesh == mesh and not factor.sharding.is_fully_replicated
    step = make_step(model.apply, CausalLM(), optax.adam(1e-2), mesh=mesh)
    state = step.init({"params": params, "adapter": adapter}, jax.random.key(1))
    batch = {"input_ids": np.tile(IDS, (4, 1)).astype(np.int32)}
    losses = []
    for _ in range(3):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[2] < losses[0]
    assert equal(state.variables["params"], fmjax.from_pretrained(nf4)[1])

    trained, frozen = step.split(state.variables)
    saver = Checkpointer(tmp_path)
    saver.save(3, state.replace(variables=trained), frozen=frozen)
    saver.close()
    reader = Checkpointer(tmp_path)
    like = step.abstract_state(state.variables)
    like = like.replace(variables=step.split(like.variables)[0])
    restored = reader.restore(like, frozen=frozen)
    assert equal(restored.variables, trained)
    # Another packing is another base.
    other = {"params": fmjax.from_pretrained(whole, quantize="int8")[1]}
    with pytest.raises(CheckpointError, match="other base weights"):
        again = Checkpointer(tmp_path)
        again.restore(like, frozen=other)
    again.close()
    reader.close()


def test_a_step_is_planned_from_the_abstract_tree():
    mesh, spec, model = make_mesh(fsdp=2, data=-1), peft.LoRA(rank=2), fmjax.build(LLAMA)
    specs = {"params": quantization.abstract(model, "nf4"), "adapter": peft.abstract(spec, model)}
    step = make_step(model.apply, CausalLM(), optax.adam(1e-2), mesh=mesh)
    planned = step.abstract_state(specs).variables["params"]["layers"]["mlp"]["up_proj"]["kernel"]
    assert isinstance(planned, quant.NF4Array)
    assert planned.codes.sharding.shard_shape(planned.codes.shape) == (2, 32, 256)
    again = make_step(model.apply, CausalLM(), optax.adam(1e-2), mesh=mesh, abstract=specs)
    arrays = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), specs)
    laid = again.init(arrays, jax.random.key(0)).variables["params"]
    assert laid["layers"]["mlp"]["up_proj"]["kernel"].codes.sharding == planned.codes.sharding


def test_a_checkpoint_that_holds_packed_arrays(nf4, tmp_path):
    model, params = fmjax.from_pretrained(nf4)
    adapter = peft.init(jax.random.key(0), peft.LoRA(rank=2), model, params)
    step = make_step(model.apply, CausalLM(), optax.sgd(1e-2))
    state = step.init({"params": params, "adapter": adapter}, jax.random.key(1))
    saver = Checkpointer(tmp_path)
    saver.save(1, state)
    restored = saver.restore(step.abstract_state(state.variables))
    saver.close()
    assert equal(restored.variables, state.variables)


def test_the_command_line_packs_and_unpacks(whole, tmp_path, capsys):
    def convert(model, out, *options):
        assert main(["convert", "--model", str(model), "--out", str(tmp_path / out), *options]) == 0
        return tmp_path / out

    nf4 = convert(whole, "nf4", "--quantize", "nf4")
    said = capsys.readouterr().out
    assert f"{fmjax.param_count(fmjax.build(LLAMA)):,} parameters" in said and "float32" in said
    packed = fmjax.from_pretrained(nf4)[1]
    assert equal(packed, fmjax.from_pretrained(whole, quantize="nf4")[1])
    same = convert(nf4, "same")
    for name in ("model.safetensors", "config.json"):
        assert (same / name).read_bytes() == (nf4 / name).read_bytes()
    again = convert(nf4, "whole", "--dtype", "float32")
    assert equal(fmjax.from_pretrained(again)[1], fmjax.dequantize(packed))
    assert "quantization_config" not in json.loads((again / "config.json").read_text())


def test_conv1d_unpacks_to_inputs_first(tmp_path):
    config = {"model_type": "gpt2", "n_layer": 2, "n_embd": 64, "n_head": 2, "vocab_size": 16}
    model = fmjax.build(config | {"n_positions": 8})
    params = fmjax.quantize(model, fmjax.init_params(model, jax.random.key(0)), "nf4")
    fmjax.save_pretrained(tmp_path / "q", model, params)
    fmjax.hub.convert(tmp_path / "q", tmp_path / "f", dtype="float32")
    assert equal(fmjax.from_pretrained(tmp_path / "f")[1], fmjax.dequantize(params))


def test_a_new_head_on_a_packed_base(nf4):
    override = {"head": "sequence-classification", "id2label": ("a", "b", "c")}
    model, params = fmjax.from_pretrained(nf4, override=override, new_head=jax.random.key(0))
    assert params["score"]["kernel"].shape == (128, 3)
    out = model.apply({"params": params}, input_ids=IDS, attention_mask=np.ones_like(IDS))
    assert out.logits.shape == (2, 3)
