"""Packed checkpoints that are damaged, unsupported or misused, and what is said of them."""

import json
import re

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import fmjax
from fmjax import hub, quant
from fmjax.core.errors import CheckpointError, ConfigError, FmjaxError
from fmjax.core.tree import flatten, map_with_path

TINY = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
UP = "model.layers.1.mlp.up_proj"
STATE = f"{UP}.weight.quant_state.bitsandbytes__nf4"


@pytest.fixture(scope="module")
def whole():
    model = fmjax.build(TINY)
    return model, fmjax.init_params(model, jax.random.key(0))


@pytest.fixture(scope="module")
def packed(whole):
    model, params = whole
    return {kind: fmjax.quantize(model, params, kind) for kind in ("nf4", "nf4-single", "int8")}


@pytest.fixture
def saved(whole, packed, tmp_path):
    def save(kind="nf4"):
        fmjax.save_pretrained(tmp_path / kind, whole[0], packed[kind])
        return tmp_path / kind

    return save


def refuse(directory, text, **arguments):
    with pytest.raises(FmjaxError, match=re.escape(text)) as e:
        fmjax.from_pretrained(directory, **arguments)
    assert "\n" not in str(e.value)


def edit(directory, change):
    """Changes the tensors of a directory in place."""
    file = directory / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    return directory


def configure(directory, **changes):
    """Changes the quantization_config of a directory."""
    file = directory / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"] |= changes
    file.write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("nf4", f"{UP}.weight.absmax"),
        ("nf4", f"{UP}.weight.quant_map"),
        ("nf4", f"{UP}.weight.nested_absmax"),
        ("nf4", f"{UP}.weight.nested_quant_map"),
        ("nf4", STATE),
        ("nf4-single", f"{UP}.weight.absmax"),
        ("int8", f"{UP}.SCB"),
        ("nf4", f"{UP}.weight"),
    ],
)
def test_a_part_is_missing(kind, part, saved):
    left = edit(saved(kind), lambda tensors: tensors.pop(part))
    if part == f"{UP}.weight":
        refuse(left, f"{UP}.weight")
    else:
        refuse(left, f"lacks tensor {part!r}, without which {UP + '.weight'!r} cannot")


def test_int8_of_older_files_lacks_the_weight_format(saved, packed):
    def drop(tensors):
        for name in [name for name in tensors if name.endswith("weight_format")]:
            del tensors[name]

    _, params = fmjax.from_pretrained(edit(saved("int8"), drop))
    assert jax.tree.all(jax.tree.map(np.array_equal, params, packed["int8"]))


@pytest.mark.parametrize(
    ("kind", "part", "value", "text"),
    [
        ("nf4", f"{UP}.weight.absmax", np.zeros(63, np.uint8), "uint8[63] where uint8[64] belongs"),
        ("nf4", f"{UP}.weight.absmax", np.zeros(64, np.float32), "float32[64] where uint8[64]"),
        ("nf4", f"{UP}.weight", np.zeros((9, 1), np.uint8), "9 bytes of codes"),
        ("nf4", f"{UP}.weight.quant_map", np.zeros(16, np.float32), "quant_map of its own"),
        ("nf4", STATE, np.frombuffer(b"{", np.uint8), "is no JSON"),
        ("nf4", STATE, np.frombuffer(b"{}", np.uint8), "no matrix packed as nf4"),
        ("int8", f"{UP}.SCB", np.zeros(3, np.float32), "float32[3] where float32[64] belongs"),
        ("int8", f"{UP}.weight", np.zeros((64, 64), np.uint8), "belong to int8[out, in]"),
        ("int8", f"{UP}.weight", np.zeros((64, 32), np.int8), "has shape [64, 32]"),
        ("int8", f"{UP}.weight_format", np.uint8(2), "weight_format 2"),
        ("nf4", "model.layers.1.mlp.up_proj.weight.extra", np.zeros(1), "no parameter for"),
    ],
)
def test_a_part_is_damaged(kind, part, value, text, saved):
    refuse(edit(saved(kind), lambda tensors: tensors.update({part: np.asarray(value)})), text)


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("shape", [64, 32], "has shape [64, 32], config.json asks for [64, 64]"),
        ("quant_type", "fp4", "no matrix packed as nf4"),
        ("blocksize", 48, "no matrix packed as nf4"),
        ("nested_blocksize", 128, "nested blocks of 128"),
        ("dtype", "int32", "no matrix packed as nf4"),
    ],
)
def test_a_state_that_does_not_fit(field, value, text, saved):
    def change(tensors):
        state = json.loads(tensors[STATE].tobytes()) | {field: value}
        tensors[STATE] = np.frombuffer(json.dumps(state).encode(), np.uint8)
        if field == "shape":
            tensors[f"{UP}.weight"] = tensors[f"{UP}.weight"][:1024]
            tensors[f"{UP}.weight.absmax"] = tensors[f"{UP}.weight.absmax"][:32]

    refuse(edit(saved(), change), text)


def test_fp4_is_refused(saved):
    def rename(tensors):
        tensors[STATE.replace("nf4", "fp4")] = tensors.pop(STATE)

    refuse(edit(saved(), rename), f"{UP + '.weight'!r} is packed as fp4")
    refuse(configure(saved(), bnb_4bit_quant_type="fp4"), "bnb_4bit_quant_type 'fp4'")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"quant_method": "gptq"},
            "quantised by gptq (quantization_config), which is not supported",
        ),
        ({"load_in_8bit": True}, "not supported"),
        ({"bits": 3}, "does not understand 'bits'"),
    ],
)
def test_other_configs_are_refused(changes, text, saved):
    refuse(configure(saved(), **changes), text)


def test_the_fields_of_older_configs(saved, packed):
    directory = saved()
    file = directory / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"] = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    file.write_text(json.dumps(config))
    _, params = fmjax.from_pretrained(directory)
    assert jax.tree.all(jax.tree.map(np.array_equal, params, packed["nf4"]))


def test_whole_weights_in_eight_bits_are_refused(saved):
    refuse(configure(saved("int8"), llm_int8_has_fp16_weight=True), "llm_int8_has_fp16_weight")


def test_packed_tensors_without_a_config(saved):
    directory = saved()
    file = directory / "config.json"
    config = json.loads(file.read_text())
    del config["quantization_config"]
    file.write_text(json.dumps(config))
    refuse(directory, "of a packed weight, but config.json has no quantization_config")


def test_what_is_packed_is_not_packed_again(saved, whole, packed):
    refuse(saved(), "is packed already (nf4); leave quantize out", quantize="int8")
    with pytest.raises(ConfigError, match="packed already"):
        fmjax.quantize(whole[0], packed["nf4"], "nf4")
    with pytest.raises(ConfigError, match="packed already"):
        hub.convert(saved(), saved().parent / "out", quantize="nf4")


def test_unknown_formats_and_other_params(whole, saved):
    with pytest.raises(ConfigError, match="'nf3' is unknown; choose one of nf4, nf4-single, int8"):
        fmjax.quantize(*whole, "nf3")
    with pytest.raises(ConfigError, match="params lack 'layers/self_attn/q_proj/kernel'"):
        fmjax.quantize(whole[0], {"layers": {}}, "nf4")


def test_two_formats_in_one_tree(whole, packed, tmp_path):
    other = flatten(packed["int8"])
    mixed = map_with_path(lambda p, x: other[p] if "up_proj" in p else x, packed["nf4"])
    with pytest.raises(ConfigError, match="packed as NF4 and .*up_proj.* as int8"):
        fmjax.save_pretrained(tmp_path / "out", whole[0], mixed)


def test_a_packed_table_is_refused_and_can_be_unpacked(saved, packed, tmp_path):
    """Nothing but linear layers is packed here; other writers pack experts, for example."""

    def copy(tensors):
        for name in [name for name in tensors if name.startswith(f"{UP}.weight")]:
            tensors[name.replace(UP, "model.embed_tokens")] = tensors[name]

    directory = edit(saved(), copy)
    refuse(directory, "'embed_tokens/embedding' is no linear layer; unpack the checkpoint: fmjax")
    hub.convert(directory, tmp_path / "whole", dtype="float32")
    _, params = fmjax.from_pretrained(tmp_path / "whole")
    up = fmjax.dequantize(packed["nf4"])["layers"]["mlp"]["up_proj"]["kernel"][1]
    np.testing.assert_array_equal(params["embed_tokens"]["embedding"], up.T)


def test_rows_in_another_order_are_refused():
    from fmjax.convert import Fuse, Permute, Row
    from fmjax.convert.packed import inputs_first
    from fmjax.convert.transforms import TRANSPOSE, Chain, Split

    assert not inputs_first(Row("w", "w", TRANSPOSE), (6, 4))
    assert inputs_first(Row("w", "w"), (6, 4))
    assert inputs_first(Row("w", "w", Split(1, (2, 2))), (6, 2, 2))
    swap = Chain((Split(0, (2, 2)), Permute((1, 0, 2)), Fuse(0, (2, 2)), TRANSPOSE))
    with pytest.raises(CheckpointError, match="in another order"):
        inputs_first(Row("w", "w", swap), (6, 4))


def test_falcon_is_packed_in_memory_only(tmp_path):
    model = fmjax.build(
        {
            "model_type": "falcon",
            "vocab_size": 24,
            "hidden_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        }
    )
    params = fmjax.init_params(model, jax.random.key(0))
    fmjax.save_pretrained(tmp_path / "whole", model, params)
    packed = fmjax.from_pretrained(tmp_path / "whole", quantize="nf4")[1]
    assert isinstance(packed["h"]["self_attention"]["query_key_value"]["kernel"], quant.NF4Array)
    with pytest.raises(ConfigError, match="packed parameters of a falcon cannot be written"):
        fmjax.save_pretrained(tmp_path / "out", model, packed)
    with pytest.raises(ConfigError, match="packed parameters of a falcon cannot be written"):
        hub.convert(tmp_path / "whole", tmp_path / "out", quantize="nf4")
    assert not (tmp_path / "out").exists()
