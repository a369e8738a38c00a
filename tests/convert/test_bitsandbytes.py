"""Checkpoints that transformers packs with bitsandbytes, read, written and made."""

import json

import bitsandbytes_cases as cases
import jax
import numpy as np
import pytest
import torch
from bitsandbytes_cases import MODELS

import fmjax
from fmjax import quant
from fmjax.core.tree import flatten

pytestmark = pytest.mark.optimised  # Other emitters of XLA's differ in the last bit.

CASES = [
    *((name, "nf4") for name in MODELS),
    ("llama", "nf4-single"),
    ("llama-odd", "nf4-single"),
    ("llama", "int8"),
    ("gpt2", "int8"),
]
# transformers packs poolers, and classifiers that have a bias; told to skip them, it makes what
# `quantize=` makes.
HEADS = ["bert.pooler.dense", "classifier"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    made = {}

    def of(name, dtype=torch.float32):
        if (name, dtype) not in made:
            made[name, dtype] = cases.save(name, tmp_path_factory.mktemp(name), dtype)
        return made[name, dtype]

    return of


def logits(model, params):
    return np.asarray(jax.jit(model.apply)({"params": params}, cases.ids()).logits)


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_packed_checkpoint_is_read_and_written_back_byte_for_byte(name, kind, source, tmp_path):
    theirs = cases.pack(name, source(name), tmp_path / "theirs", kind)
    model, params = fmjax.from_pretrained(tmp_path / "theirs")
    packed = [x for x in flatten(params).values() if isinstance(x, quant.Packed)]
    assert packed and all(x.format == quant.parse(kind) for x in packed)
    if kind != "int8":  # whose activations bitsandbytes rounds to 8 bits too
        np.testing.assert_allclose(
            logits(model, params), cases.logits(theirs), atol=2e-5, rtol=1e-4
        )
    fmjax.save_pretrained(tmp_path / "ours", model, params)
    assert cases.tensors(tmp_path / "ours") == cases.tensors(tmp_path / "theirs")


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_quantize_while_loading_is_what_transformers_makes(name, kind, source, tmp_path):
    skip = HEADS if name == "bert" else None
    cases.pack(name, source(name), tmp_path / "theirs", kind, llm_int8_skip_modules=skip)
    model, params = fmjax.from_pretrained(source(name), quantize=kind)
    same(params, fmjax.from_pretrained(tmp_path / "theirs")[1])
    whole = fmjax.from_pretrained(source(name))[1]
    same(params, fmjax.quantize(model, whole, kind))


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_what_is_written_loads_in_transformers(name, kind, source, tmp_path):
    model, params = fmjax.from_pretrained(source(name), quantize=kind)
    fmjax.save_pretrained(tmp_path / "ours", model, params)
    theirs = cases.load(name, tmp_path / "ours")
    if kind != "int8":
        np.testing.assert_allclose(
            cases.logits(theirs), logits(model, params), atol=2e-5, rtol=1e-4
        )
    ours = cases.tensors(tmp_path / "ours")
    # transformers fuses the experts, which are not packed.
    apart = ("weight_format", "block_sparse_moe")
    wanted = {k: x for k, x in ours.items() if not any(part in k for part in apart)}
    assert {k: x for k, x in cases.state(theirs).items() if k in ours} == wanted
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "bitsandbytes"
    assert config["dtype"] == "float32"


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_are_cast_to_the_dtype_before_they_are_packed(stored, dtype, source, tmp_path):
    directory = source("llama", stored)
    cases.pack("llama", directory, tmp_path / "theirs", "nf4", getattr(torch, dtype))
    _, params = fmjax.from_pretrained(directory, dtype=dtype, quantize="nf4")
    same(params, fmjax.from_pretrained(tmp_path / "theirs")[1])
    assert flatten(params)["layers/mlp/up_proj/kernel"].dtype == dtype


def test_codes_may_be_stored_as_another_dtype(source, tmp_path):
    cases.pack("llama", source("llama"), tmp_path / "plain", "nf4")
    cases.pack(
        "llama", source("llama"), tmp_path / "bf16", "nf4", bnb_4bit_quant_storage=torch.bfloat16
    )
    kept = cases.tensors(tmp_path / "bf16")["model.layers.0.mlp.up_proj.weight"]
    assert kept[0] == "torch.bfloat16"
    model, params = fmjax.from_pretrained(tmp_path / "bf16")
    same(params, fmjax.from_pretrained(tmp_path / "plain")[1])
    fmjax.hub.convert(tmp_path / "bf16", tmp_path / "out")
    assert cases.tensors(tmp_path / "out") == cases.tensors(tmp_path / "plain")


def test_layers_apart(source, tmp_path):
    cases.pack("llama", source("llama"), tmp_path / "theirs", "nf4")
    stacked = fmjax.from_pretrained(tmp_path / "theirs")[1]
    model, params = fmjax.from_pretrained(tmp_path / "theirs", scan_layers=False)
    same(params["layers_1"], jax.tree.map(lambda x: x[1], stacked["layers"]))
    fmjax.save_pretrained(tmp_path / "ours", model, params)
    assert cases.tensors(tmp_path / "ours") == cases.tensors(tmp_path / "theirs")


def test_a_layer_that_is_not_packed(source, tmp_path):
    skip = ["lm_head", "model.layers.1.mlp.down_proj"]
    theirs = cases.pack(
        "llama", source("llama"), tmp_path / "theirs", "nf4", llm_int8_skip_modules=skip
    )
    with pytest.raises(fmjax.FmjaxError, match="layers.1.mlp.down_proj.*scan_layers=False"):
        fmjax.from_pretrained(tmp_path / "theirs")
    model, params = fmjax.from_pretrained(tmp_path / "theirs", scan_layers=False)
    np.testing.assert_allclose(logits(model, params), cases.logits(theirs), atol=2e-5, rtol=1e-4)
    fmjax.save_pretrained(tmp_path / "ours", model, params)
    assert cases.tensors(tmp_path / "ours") == cases.tensors(tmp_path / "theirs")
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert sorted(config["quantization_config"]["llm_int8_skip_modules"]) == skip
