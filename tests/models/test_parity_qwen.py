"""Qwen2 and Qwen3 against transformers: logits, gradients, files."""

import jax
import pytest
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

import fmjax
from fmjax.core.errors import ConfigError
from fmjax.models.qwen.config import QwenConfig

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}
FULL, SLIDING = "full_attention", "sliding_attention"

# Head size 8 unless stated, sequences of 10; window arguments are read with use_sliding_window.
CASES = {
    "qwen2": {},
    "qwen2-tied-one-kv-head": dict(num_key_value_heads=1, tie_word_embeddings=True),
    "qwen2-unused-window": dict(use_sliding_window=False, sliding_window=3, max_window_layers=0),
    "qwen2-upper-layers-window": dict(sliding_window=3, max_window_layers=1, num_hidden_layers=3),
    "qwen2-all-layers-window": dict(sliding_window=4, max_window_layers=0, hidden_act="gelu"),
    "qwen2-yarn-three-layers": dict(rope_parameters=YARN, num_hidden_layers=3, rms_norm_eps=1e-2),
    "qwen3": dict(family="qwen3", num_key_value_heads=4),
    "qwen3-tied-wide-heads": dict(family="qwen3", head_dim=20, tie_word_embeddings=True),
    "qwen3-biases": dict(family="qwen3", attention_bias=True, num_key_value_heads=1),
    "qwen3-mixed-windows": dict(
        family="qwen3", sliding_window=4, layer_types=[SLIDING, FULL, SLIDING], num_hidden_layers=3
    ),
    "qwen3-linear": dict(family="qwen3", rope_parameters={"rope_type": "linear", "factor": 3.0}),
}


def make(parity, directory, name, dtype="float32"):
    options = dict(CASES[name])
    family = options.pop("family", "qwen2")
    config_cls, cls = {
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    }[family]
    options = {
        "vocab_size": parity.vocab,
        "hidden_size": 32,
        "intermediate_size": 44,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32,
        "initializer_range": 0.15,
        "use_sliding_window": "sliding_window" in options,
    } | options
    if family == "qwen3":
        options.setdefault("head_dim", 8)
    rope = {"rope_type": "default", "rope_theta": 1e4} | options.pop("rope_parameters", {})
    return parity.reference(cls, config_cls(**options, rope_parameters=rope), directory, dtype)


@pytest.mark.parametrize("name", CASES)
def test_logits_greedy_tokens_and_export(parity, tmp_path, name):
    hf = make(parity, tmp_path / "hf", name)
    model, params = fmjax.from_pretrained(tmp_path / "hf")
    parity.logits(hf, model, params, 10)
    parity.export(hf, tmp_path / "hf", tmp_path / "out", model, params)
    parity.greedy(hf, model, params)


@pytest.mark.parametrize("name", ["qwen2-upper-layers-window", "qwen3-biases"])
def test_unscanned_layers_and_several_files(parity, tmp_path, name):
    hf = make(parity, tmp_path / "hf", name)
    model, params = fmjax.from_pretrained(tmp_path / "hf", scan_layers=False)
    assert "layers_0" in params
    parity.logits(hf, model, params, 10)
    parity.export(hf, tmp_path / "hf", tmp_path / "out", model, params, max_shard_size=9000)
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2


@pytest.mark.parametrize("name", ["qwen2-tied-one-kv-head", "qwen3-mixed-windows"])
def test_half_precision_keeps_every_bit(parity, tmp_path, name):
    hf = make(parity, tmp_path / "hf", name, "bfloat16")
    model, params = fmjax.from_pretrained(tmp_path / "hf")
    assert {x.dtype.name for x in jax.tree.leaves(params)} == {"bfloat16"}
    parity.export(hf, tmp_path / "hf", tmp_path / "out", model, params)


@pytest.mark.parametrize("name", ["qwen2-upper-layers-window", "qwen3"])
def test_gradients(parity, tmp_path, name):
    hf = make(parity, tmp_path / "hf", name)
    parity.gradients(hf, *fmjax.from_pretrained(tmp_path / "hf"))


def test_a_mesh_of_eight(parity, tmp_path):
    hf = make(parity, tmp_path / "hf", "qwen3-mixed-windows")
    mesh = fmjax.make_mesh(data=2, fsdp=2, tensor=2)
    rules = (("vocab", None), *fmjax.parallel.DEFAULT_RULES)  # 61 is odd
    model, params = fmjax.from_pretrained(tmp_path / "hf", mesh=mesh, rules=rules)
    kernel = params["layers"]["self_attn"]["q_proj"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (3, 16, 16)
    parity.logits(hf, model, params, 10)
    parity.export(hf, tmp_path / "hf", tmp_path / "out", model, params)


@pytest.mark.parametrize(
    ("hf", "message"),
    [
        ({"attention_bias": True}, "attention_bias needs model_type='qwen3'"),
        ({"layer_types": [FULL]}, "layer_types has 1 entries for num_hidden_layers=32"),
        ({"layer_types": ["chunked"] * 32}, r"\['chunked'\] are unknown"),
        ({"layer_types": [SLIDING] * 32}, "sliding_window is not in use"),
        ({"use_sliding_window": True, "sliding_window": 0}, "sliding_window=0"),
        ({"use_mrope": True}, "use_mrope=True"),
        ({"num_attention_heads": 4}, "num_key_value_heads=32"),
        ({"num_experts": 4}, "num_experts=4"),
    ],
)
def test_what_is_not_understood_is_refused(hf, message):
    with pytest.raises(ConfigError, match=message):
        QwenConfig.from_hf({"model_type": "qwen2", **hf})


def test_layer_types_that_say_the_usual_are_the_same_config():
    window = {"model_type": "qwen3", "use_sliding_window": True, "max_window_layers": 30}
    spelled = window | {"layer_types": [FULL] * 30 + [SLIDING] * 2}
    assert QwenConfig.from_hf(spelled) == QwenConfig.from_hf(window)
    assert QwenConfig.from_hf(window).windows == (None,) * 30 + (4096,) * 2
