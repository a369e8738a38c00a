import errno
import json
import os
import tracemalloc
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import fmjax
import fmjax.convert.safetensors as format_module
from fmjax import hub
from fmjax.convert import open_directory
from fmjax.core.errors import CheckpointError, ConfigError, FmjaxError
from fmjax.core.tree import flatten

TINY = {
    "model_type": "llama",
    "vocab_size": 24,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


@pytest.fixture(scope="module")
def tiny():
    model = fmjax.build(TINY)
    return model, fmjax.init_params(model, jax.random.key(0))


@pytest.fixture
def saved(tmp_path, tiny):
    fmjax.save_pretrained(tmp_path / "tiny", *tiny)
    return tmp_path / "tiny"


def config_of(directory):
    return json.loads((directory / "config.json").read_text())


def edit_config(directory, **changes):
    (directory / "config.json").write_text(json.dumps(config_of(directory) | changes))


def contents(directory):
    return {p.name: p.read_bytes() for p in directory.iterdir()}


def equal(a, b):
    a, b = flatten(a), flatten(b)
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def test_what_is_saved_comes_back(tiny, saved):
    model, params = fmjax.from_pretrained(saved)
    assert model == tiny[0]
    assert equal(params, tiny[1])
    config = config_of(saved)
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert (config["model_type"], config["dtype"]) == ("llama", "float32")
    assert json.loads((saved / "generation_config.json").read_text()) == {
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def test_dtypes(tiny, saved, tmp_path):
    model, params = fmjax.from_pretrained(saved, "bfloat16")
    assert model.execution.dtype == model.execution.param_dtype == "bfloat16"
    assert {x.dtype.name for x in jax.tree.leaves(params)} == {"bfloat16"}
    mixed, params = fmjax.from_pretrained(saved, "bfloat16", param_dtype="float32", remat="full")
    assert (mixed.execution.dtype, mixed.execution.remat) == ("bfloat16", "full")
    assert {x.dtype.name for x in jax.tree.leaves(params)} == {"float32"}
    fmjax.save_pretrained(tmp_path / "half", *tiny, dtype="bfloat16")
    assert config_of(tmp_path / "half")["dtype"] == "bfloat16"
    assert fmjax.from_pretrained(tmp_path / "half")[0].execution.param_dtype == "bfloat16"
    edit_config(tmp_path / "half", dtype=None, torch_dtype="float16")
    assert fmjax.from_pretrained(tmp_path / "half")[0].execution.dtype == "float16"
    edit_config(tmp_path / "half", torch_dtype=None)
    assert fmjax.from_pretrained(tmp_path / "half")[0].execution.dtype == "float32"


def test_a_mesh_and_rules_place_every_parameter(tiny, saved):
    mesh = fmjax.make_mesh(fsdp=2, tensor=2, data=2)
    _, params = fmjax.from_pretrained(saved, mesh=mesh)
    assert params["embed_tokens"]["embedding"].addressable_shards[0].data.shape == (12, 8)
    assert equal(params, tiny[1])
    replicated = fmjax.parallel.REPLICATED_RULES
    _, params = fmjax.from_pretrained(saved, mesh=mesh, rules=replicated)
    assert all(x.is_fully_replicated for x in jax.tree.leaves(params))


def test_the_unstacked_layout_saves_the_same_files(tiny, saved, tmp_path):
    model, params = fmjax.from_pretrained(saved, scan_layers=False)
    fmjax.save_pretrained(tmp_path / "again", model, params)
    assert contents(tmp_path / "again") == contents(saved)


# --- files beside the weights -------------------------------------------------------------------

EXTRA = {
    "tokenizer.json": "{}",
    "tokenizer_config.json": '{"a": 1}',
    "tokenizer.model": "spm",
    "special_tokens_map.json": "{}",
    "chat_template.jinja": "{{ x }}",
    "vocab.json": "{}",
    "merges.txt": "a b",
    "generation_config.json": '{"temperature": 0.7}',
}


def add_extra(directory):
    for name, text in EXTRA.items():
        (directory / name).write_text(text)
    (directory / "pytorch_model.bin").write_text("not carried")
    (directory / "README.md").write_text("not carried")


def test_tokenizer_and_generation_files_are_carried(tiny, saved, tmp_path):
    add_extra(saved)
    fmjax.save_pretrained(tmp_path / "out", *tiny, carry_from=saved)
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == EXTRA.keys() | {"config.json", "model.safetensors"}
    for name, text in EXTRA.items():
        assert (tmp_path / "out" / name).read_text() == text


def test_a_tokenizer_and_a_generation_config_go_before_carried_ones(tiny, saved, tmp_path):
    add_extra(saved)
    tokenizer = SimpleNamespace(save=lambda d: (d / "tokenizer.json").write_text("new"))
    out = tmp_path / "out"
    given = {"temperature": 0.1}
    fmjax.save_pretrained(out, *tiny, tokenizer, generation_config=given, carry_from=saved)
    assert (out / "tokenizer.json").read_text() == "new"
    assert json.loads((out / "generation_config.json").read_text()) == given
    assert (out / "merges.txt").read_text() == "a b"


def test_saving_over_the_source_keeps_its_files(tiny, saved):
    add_extra(saved)
    fmjax.save_pretrained(saved, *tiny, carry_from=saved, max_shard_size=4000)
    assert {p.name for p in saved.iterdir()} >= EXTRA.keys() | {"README.md", "pytorch_model.bin"}
    assert not (saved / "model.safetensors").exists()
    assert equal(fmjax.from_pretrained(saved)[1], tiny[1])


def test_a_carry_source_that_is_no_directory_raises(tiny, tmp_path):
    with pytest.raises(CheckpointError, match="cannot carry files from .*gone"):
        fmjax.save_pretrained(tmp_path / "out", *tiny, carry_from=tmp_path / "gone")
    assert not (tmp_path / "out").exists()


# --- convert ------------------------------------------------------------------------------------


def test_convert_changes_dtype_and_shard_size(saved, tmp_path, tiny):
    add_extra(saved)
    edit_config(saved, _name_or_path="kept")
    done = hub.convert(saved, tmp_path / "half", dtype="bfloat16", max_shard_size=3000)
    config = config_of(tmp_path / "half")
    assert (config["dtype"], config["_name_or_path"]) == ("bfloat16", "kept")
    assert (tmp_path / "half" / "tokenizer.json").exists()
    source, target = open_directory(saved), open_directory(tmp_path / "half")
    assert source.keys() == target.keys()
    for name, tensor in source.items():
        want = tensor.view().astype(target[name].dtype)
        assert want.tobytes() == target[name].view().tobytes()
    assert done == hub.Converted(
        tensors=len(target),
        parameters=fmjax.param_count(tiny[0]),
        nbytes=2 * fmjax.param_count(tiny[0]),
        dtype="bfloat16",
    )


def test_convert_in_place_and_back_to_one_file_keeps_every_bit(saved):
    before = contents(saved)
    hub.convert(saved, saved, max_shard_size=3000)
    assert len(list(saved.glob("model-*.safetensors"))) > 2
    hub.convert(saved, saved)
    assert contents(saved) == before


def test_convert_holds_one_tensor_at_a_time(tmp_path):
    model = fmjax.build(TINY | {"hidden_size": 512, "num_hidden_layers": 12})
    fmjax.save_pretrained(tmp_path / "a", model, fmjax.init_params(model, jax.random.key(0)))
    hub.convert(tmp_path / "a", tmp_path / "b", dtype="bfloat16")  # imports and traces
    tracemalloc.start()
    done = hub.convert(tmp_path / "a", tmp_path / "b", dtype="bfloat16")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    largest = 512 * 512 * 2  # bytes; what Python itself allocates stays below it
    assert done.nbytes > 30 * largest
    assert peak < 3 * largest


def test_convert_checks_before_it_writes(saved, tmp_path):
    edit_config(saved, num_hidden_layers=1)
    with pytest.raises(CheckpointError, match="layers.1.*no parameter for"):
        hub.convert(saved, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_convert_names_the_tensor_that_float16_cannot_hold(tiny, tmp_path):
    model, params = tiny
    big = {**params, "norm": {"scale": params["norm"]["scale"] * 1e6}}
    fmjax.save_pretrained(tmp_path / "a", model, big)
    with pytest.raises(CheckpointError, match="'model.norm.weight' has values that float16 cannot"):
        hub.convert(tmp_path / "a", tmp_path / "b", dtype="float16")
    assert not (tmp_path / "b").exists()


# --- what is refused ----------------------------------------------------------------------------


def refuse(directory, error, message, **options):
    with pytest.raises(error, match=message) as e:
        fmjax.from_pretrained(directory, **options)
    assert isinstance(e.value, FmjaxError) and "\n" not in str(e.value)


def test_names_that_are_not_directories_raise():
    message = "org/model: no such directory.*hf download org/model --local-dir DIR"
    refuse("org/model", CheckpointError, message)


def test_directories_without_a_usable_config_raise(tmp_path):
    refuse(tmp_path, CheckpointError, "has no config.json")
    for text, error, message in [
        ("{", CheckpointError, "config.json is not valid JSON"),
        ("[]", ConfigError, "config.json states no model_type"),
        ("{}", ConfigError, "config.json states no model_type"),
        ('{"model_type": "none"}', ConfigError, "config.json: model_type 'none' is not supported"),
        ('{"model_type": "llama", "x": 1}', ConfigError, r"config.json: .*does not understand x=1"),
    ]:
        (tmp_path / "config.json").write_text(text)
        refuse(tmp_path, error, message)


def test_other_values_that_do_not_fit_raise(saved):
    refuse(saved, ConfigError, "dtype 'int4' is not supported", dtype="int4")
    refuse(saved, ConfigError, "unknown execution option scan", scan=True)
    mesh = fmjax.make_mesh(tensor=8)
    refuse(saved, FmjaxError, "does not divide over tensor=8", mesh=mesh)
    edit_config(saved, dtype="int4")
    refuse(saved, ConfigError, "dtype 'int4' is not supported")
    edit_config(saved, dtype="float32", intermediate_size=21)
    refuse(saved, CheckpointError, r"has shape \[20, 16\], config.json asks for \[21, 16\]")


def test_params_of_another_model_raise(tiny, tmp_path):
    model, params = tiny
    with pytest.raises(CheckpointError, match="params lack 'embed_tokens/embedding'"):
        fmjax.save_pretrained(tmp_path / "a", model, {"params": params})
    with pytest.raises(CheckpointError, match="no row of the weights map names parameter 'more'"):
        fmjax.save_pretrained(tmp_path / "a", model, {**params, "more": np.zeros(2)})
    wrong = {**params, "norm": {"scale": np.zeros(3, np.float32)}}
    with pytest.raises(CheckpointError, match=r"'norm/scale' has shape \(3,\), the model's is"):
        fmjax.save_pretrained(tmp_path / "a", model, wrong)
    assert not (tmp_path / "a").exists()


def test_a_full_disk_leaves_the_earlier_export_whole(tiny, saved, monkeypatch):
    before = contents(saved)

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(format_module, "_bytes_of", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        fmjax.save_pretrained(saved, *tiny, dtype="bfloat16")
    assert contents(saved) == before
