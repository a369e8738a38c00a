"""Gemma 1 and 2 against transformers: logits, gradients, files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers import Gemma2Config, Gemma2ForCausalLM, GemmaForCausalLM
from transformers import GemmaConfig as HFGemmaConfig

import fmjax
from fmjax.core.errors import ConfigError
from fmjax.models.gemma.config import GemmaConfig

FULL, SLIDING = "full_attention", "sliding_attention"

CASES = {
    "gemma": {},
    "gemma-one-kv-head-untied": dict(num_key_value_heads=1, tie_word_embeddings=False),
    "gemma-legacy-gelu-biases": dict(hidden_act="gelu", attention_bias=True, head_dim=12),
    "gemma-silu-three-layers-eps": dict(hidden_act="silu", num_hidden_layers=3, rms_norm_eps=1e-2),
    "gemma-linear": dict(rope_parameters={"rope_type": "linear", "factor": 3.0}),
    "gemma2": dict(family="gemma2"),
    "gemma2-scalar-tight-caps": dict(
        family="gemma2",
        query_pre_attn_scalar=5,
        attn_logit_softcapping=0.7,
        final_logit_softcapping=1.5,
        num_hidden_layers=3,
    ),
    "gemma2-no-caps-wide-heads": dict(
        family="gemma2", attn_logit_softcapping=None, final_logit_softcapping=None, head_dim=20
    ),
    "gemma2-own-layer-types": dict(
        family="gemma2", layer_types=[FULL, FULL, SLIDING], num_hidden_layers=3, sliding_window=3
    ),
    "gemma2-untied-gelu-all-sliding": dict(
        family="gemma2",
        tie_word_embeddings=False,
        hidden_activation="gelu",
        layer_types=[SLIDING, SLIDING],
    ),
}


def make(parity, directory, name, dtype="float32"):
    options = dict(CASES[name])
    family = options.pop("family", "gemma")
    config_cls, cls = {
        "gemma": (HFGemmaConfig, GemmaForCausalLM),
        "gemma2": (Gemma2Config, Gemma2ForCausalLM),
    }[family]
    options = {
        "vocab_size": parity.vocab,
        "hidden_size": 32,
        "intermediate_size": 44,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 32,
        "initializer_range": 0.15,
        # As padding_idx of torch's Embedding it would stop the gradient of that row.
        "pad_token_id": None,
    } | options
    if family == "gemma2":
        options = {"sliding_window": 4, "query_pre_attn_scalar": 8} | options
    rope = {"rope_type": "default", "rope_theta": 1e4} | options.pop("rope_parameters", {})
    return parity.reference(cls, config_cls(**options, rope_parameters=rope), directory, dtype)


@pytest.mark.parametrize("name", CASES)
def test_logits_greedy_tokens_and_export(parity, tmp_path, name):
    hf = make(parity, tmp_path / "hf", name)
    model, params = fmjax.from_pretrained(tmp_path / "hf")
    parity.logits(hf, model, params, 10)
    parity.export(hf, tmp_path / "hf", tmp_path / "out", model, params)
    parity.greedy(hf, model, params)


@pytest.mark.parametrize("name", ["gemma-one-kv-head-untied", "gemma2-own-layer-types"])
def test_unscanned_layers_and_several_files(parity, tmp_path, name):
    hf = make(parity, tmp_path / "hf", name)
    model, params = fmjax.from_pretrained(tmp_path / "hf", scan_layers=False)
    assert "layers_0" in params
    parity.logits(hf, model, params, 10)
    parity.export(hf, tmp_path / "hf", tmp_path / "out", model, params, max_shard_size=9000)
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2


@pytest.mark.parametrize("name", ["gemma", "gemma2"])
def test_half_precision_keeps_every_bit(parity, tmp_path, name):
    hf = make(parity, tmp_path / "hf", name, "bfloat16")
    model, params = fmjax.from_pretrained(tmp_path / "hf")
    assert {x.dtype.name for x in jax.tree.leaves(params)} == {"bfloat16"}
    parity.export(hf, tmp_path / "hf", tmp_path / "out", model, params)


@pytest.mark.parametrize("name", ["gemma-legacy-gelu-biases", "gemma2-scalar-tight-caps"])
def test_gradients(parity, tmp_path, name):
    hf = make(parity, tmp_path / "hf", name)
    parity.gradients(hf, *fmjax.from_pretrained(tmp_path / "hf"))


def test_a_mesh_of_eight(parity, tmp_path):
    hf = make(parity, tmp_path / "hf", "gemma2")
    mesh = fmjax.make_mesh(data=2, fsdp=2, tensor=2)
    rules = (("vocab", None), *fmjax.parallel.DEFAULT_RULES)  # 61 is odd
    model, params = fmjax.from_pretrained(tmp_path / "hf", mesh=mesh, rules=rules)
    kernel = params["layers"]["self_attn"]["q_proj"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (2, 16, 16)
    parity.logits(hf, model, params, 10)
    parity.export(hf, tmp_path / "hf", tmp_path / "out", model, params)


def test_the_embedding_scale_is_rounded_to_the_compute_dtype():
    """√3072 = 55.43 becomes 55.5 in bfloat16, as in the reference."""
    config = GemmaConfig(
        vocab_size=3, hidden_size=3072, intermediate_size=1, num_hidden_layers=1, head_dim=2
    )
    for dtype, scale in (("bfloat16", 55.5), ("float32", 3072**0.5)):
        model = fmjax.build(config, dtype=dtype)
        ids = jnp.zeros((1, 1), jnp.int32)
        params = fmjax.init_params(model, jax.random.key(0))
        params["embed_tokens"]["embedding"] = jnp.ones((3, 3072))
        out = model.apply({"params": params}, input_ids=ids, output_hidden_states=True)
        np.testing.assert_array_equal(out.hidden_states[0], jnp.asarray(scale, dtype))


@pytest.mark.parametrize(
    ("hf", "message"),
    [
        ({"model_type": "gemma", "sliding_window": 8}, "sliding_window needs model_type='gemma2'"),
        ({"model_type": "gemma", "hidden_activation": "relu"}, "ignores hidden_activation='relu'"),
        ({"model_type": "gemma", "use_bidirectional_attention": True}, "use_bidirectional"),
        (
            {"model_type": "gemma2", "attn_logit_softcapping": 0.0},
            "softcapping=0.0 must be positive",
        ),
        ({"model_type": "gemma2", "layer_types": [FULL]}, "1 entries for num_hidden_layers=26"),
        ({"model_type": "gemma2", "vision_config": {}}, "vision_config"),
    ],
)
def test_what_is_not_understood_is_refused(hf, message):
    with pytest.raises(ConfigError, match=message):
        GemmaConfig.from_hf(hf)


def test_the_activations_names_on_the_hub_mean_the_tanh_approximation():
    for hf in (
        {"model_type": "gemma", "hidden_act": "gelu"},
        {"model_type": "gemma", "hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh"},
        {"model_type": "gemma2", "hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh"},
    ):
        assert GemmaConfig.from_hf(hf).hidden_act == "gelu_pytorch_tanh"
