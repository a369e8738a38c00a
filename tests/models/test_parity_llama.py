"""LLaMA and Mistral against transformers: logits, gradients, files."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

import fmjax

# Head size 8 unless stated; sequences of 10 outgrow the original length of 8 wherever that counts.
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}
LONG = {
    "rope_type": "longrope",
    "factor": 4.0,
    "original_max_position_embeddings": 8,
    "short_factor": [1.0, 1.1, 1.3, 1.7],
    "long_factor": [1.5, 2.0, 3.0, 4.5],
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
}

CASES = {
    "plain": {},
    "grouped-tied": dict(num_key_value_heads=2, tie_word_embeddings=True),
    "one-kv-head-wide": dict(num_key_value_heads=1, head_dim=12),
    "biases-three-layers": dict(attention_bias=True, mlp_bias=True, num_hidden_layers=3),
    "gelu-eps-theta": dict(hidden_act="gelu", rms_norm_eps=1e-2, rope_parameters={"theta": 50.0}),
    "linear": dict(rope_parameters={"rope_type": "linear", "factor": 3.0}),
    "dynamic": dict(
        rope_parameters={"rope_type": "dynamic", "factor": 3.0}, max_position_embeddings=8
    ),
    "yarn": dict(rope_parameters=YARN),
    "yarn-options": dict(
        rope_parameters=YARN | {"beta_fast": 4.0, "beta_slow": 0.5, "attention_factor": 1.2}
    ),
    "yarn-mscale": dict(
        rope_parameters=YARN | {"mscale": 0.7, "mscale_all_dim": 0.4, "truncate": False}
    ),
    "longrope": dict(rope_parameters=LONG),
    "llama3": dict(rope_parameters=LLAMA3),
    "proportional": dict(
        rope_parameters={"rope_type": "proportional", "partial_rotary_factor": 0.5}
    ),
    "mistral": dict(family="mistral", sliding_window=None, num_key_value_heads=1),
    "mistral-window": dict(family="mistral", sliding_window=4, num_key_value_heads=2),
    "mistral-head-tied": dict(
        family="mistral", sliding_window=3, head_dim=16, tie_word_embeddings=True
    ),
}


def make(parity, directory, name, dtype="float32"):
    options = dict(CASES[name])
    family = options.pop("family", "llama")
    config_cls, cls = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "mistral": (MistralConfig, MistralForCausalLM),
    }[family]
    options = {
        "vocab_size": parity.vocab,
        "hidden_size": 32,
        "intermediate_size": 44,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32,
        "initializer_range": 0.15,
    } | options
    rope = dict(options.pop("rope_parameters", {}))
    rope["rope_theta"] = rope.pop("theta", 10000.0)
    config = config_cls(**options, rope_parameters={"rope_type": "default"} | rope)
    return parity.reference(cls, config, directory, dtype)


@pytest.mark.parametrize("name", CASES)
def test_logits_greedy_tokens_and_export(parity, tmp_path, name):
    hf = make(parity, tmp_path / "hf", name)
    model, params = fmjax.from_pretrained(tmp_path / "hf")
    for length in (10, 6) if name in ("dynamic", "longrope") else (10,):
        parity.logits(hf, model, params, length)
    parity.export(hf, tmp_path / "hf", tmp_path / "out", model, params)
    # Last, because generating changes the reference's tables of "dynamic" frequencies.
    parity.greedy(hf, model, params)


@pytest.mark.parametrize("name", ["grouped-tied", "biases-three-layers", "mistral-window"])
def test_unscanned_layers_and_several_files(parity, tmp_path, name):
    hf = make(parity, tmp_path / "hf", name)
    model, params = fmjax.from_pretrained(tmp_path / "hf", scan_layers=False)
    assert "layers_0" in params
    parity.logits(hf, model, params, 10)
    parity.export(hf, tmp_path / "hf", tmp_path / "out", model, params, max_shard_size=9000)
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["grouped-tied", "mistral"])
def test_half_precision_keeps_every_bit(parity, tmp_path, name, dtype):
    hf = make(parity, tmp_path / "hf", name, dtype)
    model, params = fmjax.from_pretrained(tmp_path / "hf")  # the dtype of config.json
    assert {x.dtype.name for x in jax.tree.leaves(params)} == {dtype}
    assert model.execution.dtype == model.execution.param_dtype == dtype
    parity.export(hf, tmp_path / "hf", tmp_path / "out", model, params, max_shard_size=9000)


@pytest.mark.parametrize("name", ["biases-three-layers", "yarn", "mistral-window"])
def test_gradients(parity, tmp_path, name):
    hf = make(parity, tmp_path / "hf", name)
    parity.gradients(hf, *fmjax.from_pretrained(tmp_path / "hf"))


def test_a_mesh_of_eight(parity, tmp_path):
    hf = make(parity, tmp_path / "hf", "grouped-tied")
    mesh = fmjax.make_mesh(data=2, fsdp=2, tensor=2)
    rules = (("vocab", None), *fmjax.parallel.DEFAULT_RULES)  # 61 is odd
    model, params = fmjax.from_pretrained(tmp_path / "hf", mesh=mesh, rules=rules)
    kernel = params["layers"]["self_attn"]["q_proj"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (2, 16, 16)
    parity.logits(hf, model, params, 10)
    parity.export(hf, tmp_path / "hf", tmp_path / "out", model, params)


def edit_config(directory, **changes):
    file = directory / "config.json"
    config = json.loads(file.read_text())
    for key, value in changes.items():
        config.pop(key, None) if value is None else config.update({key: value})
    file.write_text(json.dumps(config))


def test_configs_of_transformers_4(parity, tmp_path):
    """rope_theta with rope_scaling and its "type", torch_dtype, no num_key_value_heads."""
    hf = make(parity, tmp_path, "linear")
    edit_config(
        tmp_path,
        rope_parameters=None,
        rope_theta=10000.0,
        rope_scaling={"type": "linear", "factor": 3.0},
        dtype=None,
        torch_dtype="float32",
        num_key_value_heads=None,
    )
    parity.logits(hf, *fmjax.from_pretrained(tmp_path), 10)


@pytest.mark.parametrize("prefix", ["model.", ""])
def test_files_with_buffers_a_tied_head_and_either_prefix(parity, tmp_path, prefix):
    hf = make(parity, tmp_path, "grouped-tied")
    file = tmp_path / "model.safetensors"
    tensors = {k.replace("model.", prefix): v for k, v in load_file(file).items()}
    tensors["lm_head.weight"] = tensors[f"{prefix}embed_tokens.weight"].copy()
    tensors[f"{prefix}layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    save_file(tensors, file, metadata={"format": "pt"})
    model, params = fmjax.from_pretrained(tmp_path)
    parity.logits(hf, model, params, 10)
    tensors["lm_head.weight"][0, 0] += 1
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(fmjax.FmjaxError, match="'lm_head.weight' differs from"):
        fmjax.from_pretrained(tmp_path)


def test_partial_rotation_that_the_reference_ignores_raises(tmp_path):
    """transformers rotates whole heads whatever the default type's partial_rotary_factor says."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    LlamaConfig(rope_parameters=rope).save_pretrained(tmp_path)
    with pytest.raises(fmjax.FmjaxError, match="partial_rotary_factor=0.5 needs rope_type"):
        fmjax.from_pretrained(tmp_path)
