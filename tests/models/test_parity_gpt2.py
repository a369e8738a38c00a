"""GPT-2 against transformers: logits, gradients, files."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

import fmjax

CASES = {
    "plain": {},
    "odd-inner-gelu": dict(n_inner=45, activation_function="gelu"),
    "relu-untied": dict(activation_function="relu", tie_word_embeddings=False),
    "inverse-layer": dict(scale_attn_by_inverse_layer_idx=True, n_layer=3),
    "upcast": dict(reorder_and_upcast_attn=True, scale_attn_by_inverse_layer_idx=True),
    "unscaled": dict(scale_attn_weights=False, n_head=8),
    "one-layer-one-head": dict(n_layer=1, n_head=1, activation_function="gelu_pytorch_tanh"),
    "swish-eps": dict(activation_function="swish", layer_norm_epsilon=1e-2, n_embd=24),
    "tanh-full-length": dict(activation_function="tanh", n_positions=10),
    "quick-gelu": dict(activation_function="quick_gelu"),
    "relu2": dict(activation_function="relu2", n_layer=3),
}


def make(parity, directory, name, dtype="float32"):
    options = {
        "vocab_size": parity.vocab,
        "n_positions": 16,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "initializer_range": 0.15,
        "bos_token_id": 1,
        "eos_token_id": 2,
    } | CASES[name]
    return parity.reference(GPT2LMHeadModel, GPT2Config(**options), directory, dtype)


@pytest.mark.parametrize("name", CASES)
def test_logits_greedy_tokens_and_export(parity, tmp_path, name):
    hf = make(parity, tmp_path / "hf", name)
    model, params = fmjax.from_pretrained(tmp_path / "hf")
    parity.logits(hf, model, params, 10)
    parity.export(hf, tmp_path / "hf", tmp_path / "out", model, params)
    parity.greedy(hf, model, params, new_tokens=5)


@pytest.mark.parametrize("name", ["relu-untied", "inverse-layer", "one-layer-one-head"])
def test_unscanned_layers_and_several_files(parity, tmp_path, name):
    hf = make(parity, tmp_path / "hf", name)
    model, params = fmjax.from_pretrained(tmp_path / "hf", scan_layers=False)
    assert "h_0" in params
    parity.logits(hf, model, params, 10)
    parity.export(hf, tmp_path / "hf", tmp_path / "out", model, params, max_shard_size=9000)
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_keeps_every_bit(parity, tmp_path, dtype):
    hf = make(parity, tmp_path / "hf", "odd-inner-gelu", dtype)
    model, params = fmjax.from_pretrained(tmp_path / "hf")
    assert {x.dtype.name for x in jax.tree.leaves(params)} == {dtype}
    parity.export(hf, tmp_path / "hf", tmp_path / "out", model, params, max_shard_size=9000)


@pytest.mark.parametrize("name", ["plain", "relu-untied", "inverse-layer"])
def test_gradients(parity, tmp_path, name):
    hf = make(parity, tmp_path / "hf", name)
    parity.gradients(hf, *fmjax.from_pretrained(tmp_path / "hf"))


def test_a_mesh_of_eight(parity, tmp_path):
    hf = make(parity, tmp_path / "hf", "plain")
    mesh = fmjax.make_mesh(data=2, fsdp=2, tensor=2)
    rules = (("vocab", None), *fmjax.parallel.DEFAULT_RULES)  # 61 is odd
    model, params = fmjax.from_pretrained(tmp_path / "hf", mesh=mesh, rules=rules)
    kernel = params["h"]["attn"]["c_attn"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (2, 16, 3, 16)
    parity.logits(hf, model, params, 10)
    parity.export(hf, tmp_path / "hf", tmp_path / "out", model, params)


def test_files_as_the_hub_has_them(parity, tmp_path):
    """No prefix, no head, and the causal masks stored as buffers."""
    hf = make(parity, tmp_path, "plain")
    file = tmp_path / "model.safetensors"
    tensors = {k.removeprefix("transformer."): v for k, v in load_file(file).items()}
    for layer in range(2):
        tensors[f"h.{layer}.attn.bias"] = np.tril(np.ones((1, 1, 16, 16), np.float32))
        tensors[f"h.{layer}.attn.masked_bias"] = np.array(-1e4, np.float32)
    save_file(tensors, file, metadata={"format": "pt"})
    parity.logits(hf, *fmjax.from_pretrained(tmp_path), 10)
