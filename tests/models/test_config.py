import json
import re

import pytest

import fmjax
from fmjax.core.errors import ConfigError
from fmjax.models.bert.config import BertConfig
from fmjax.models.falcon.config import FalconConfig
from fmjax.models.gpt2.config import GPT2Config
from fmjax.models.llama.config import LlamaConfig
from fmjax.models.registry import get_family
from fmjax.nn.rope import Rope

YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e5,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 20.0,
}


@pytest.mark.parametrize(
    "config",
    [
        *fmjax.presets().values(),
        LlamaConfig.from_hf({"model_type": "llama", "rope_parameters": YARN, "head_dim": 6}),
        LlamaConfig.from_hf({"model_type": "mistral", "sliding_window": None}),
        GPT2Config(n_inner=7, eos_token_id=(1, 2)),
        FalconConfig.from_hf({"model_type": "falcon", "rope_parameters": YARN, "ff_factor": 4}),
        FalconConfig(hidden_size=36, num_attention_heads=6, alibi=True, ffn_hidden_size=7),
        BertConfig(),
        BertConfig(head="token-classification", id2label=("O", "B-PER", "I-PER")),
        BertConfig(head="sequence-classification", id2label=("y",), problem_type="regression"),
    ],
)
def test_from_hf_inverts_to_hf(config) -> None:
    hf = config.to_hf()
    assert type(config).from_hf(hf) == config
    assert type(config).from_hf(hf).to_hf() == hf
    hash(config)


# What the published config.json files hold, bookkeeping apart.
HUB = {
    "vit-b16": """{
        "attention_probs_dropout_prob": 0.0, "hidden_act": "gelu", "hidden_dropout_prob": 0.0,
        "hidden_size": 768, "image_size": 224, "initializer_range": 0.02,
        "intermediate_size": 3072, "layer_norm_eps": 1e-12, "model_type": "vit",
        "num_attention_heads": 12, "num_channels": 3, "num_hidden_layers": 12, "patch_size": 16,
        "qkv_bias": true}""",
    "qwen2-0.5b": """{
        "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151643,
        "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02,
        "intermediate_size": 4864, "max_position_embeddings": 131072, "max_window_layers": 24,
        "model_type": "qwen2", "num_attention_heads": 14, "num_hidden_layers": 24,
        "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
        "sliding_window": 131072, "tie_word_embeddings": true, "use_cache": true,
        "use_sliding_window": false, "vocab_size": 151936}""",
    "qwen3-0.6b": """{
        "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 151643,
        "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024,
        "initializer_range": 0.02, "intermediate_size": 3072, "max_position_embeddings": 40960,
        "max_window_layers": 28, "model_type": "qwen3", "num_attention_heads": 16,
        "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-06,
        "rope_scaling": null, "rope_theta": 1000000, "sliding_window": null,
        "tie_word_embeddings": true, "use_sliding_window": false, "vocab_size": 151936}""",
    "gemma2-9b": """{
        "attention_bias": false, "attention_dropout": 0.0, "attn_logit_softcapping": 50.0,
        "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": 1,
        "final_logit_softcapping": 30.0, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 3584, "initializer_range": 0.02,
        "intermediate_size": 14336, "max_position_embeddings": 8192, "model_type": "gemma2",
        "num_attention_heads": 16, "num_hidden_layers": 42, "num_key_value_heads": 8,
        "pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0, "sliding_window": 4096, "sliding_window_size": 4096,
        "vocab_size": 256000}""",
    "mixtral-8x7b": """{
        "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
        "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
        "max_position_embeddings": 32768, "model_type": "mixtral", "num_attention_heads": 32,
        "num_experts_per_tok": 2, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "num_local_experts": 8, "output_router_logits": false, "rms_norm_eps": 1e-05,
        "rope_theta": 1000000.0, "router_aux_loss_coef": 0.02, "sliding_window": null,
        "tie_word_embeddings": false, "vocab_size": 32000}""",
}


@pytest.mark.parametrize("name", HUB)
def test_published_files_are_the_sizes_that_bear_their_names(name: str) -> None:
    hf = json.loads(HUB[name])
    assert get_family(hf["model_type"]).config.from_hf(hf) == fmjax.presets()[name]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"hidden_size": "32"}, "hidden_size='32' must be a whole number"),
        ({"num_attention_heads": 0}, "num_attention_heads=0 must be positive"),
        ({"num_hidden_layers": 2.0}, "num_hidden_layers=2.0 must be a whole number"),
        ({"vocab_size": True}, "vocab_size=True must be a whole number"),
        ({"rms_norm_eps": None}, "rms_norm_eps=None must be a number"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps=nan must be a number"),
        ({"id2label": 5}, "id2label=5 must map numbers to names"),
        ({"id2label": {"a": "x"}}, "must map numbers to names"),
        ({"architectures": [5]}, "must be a list of names"),
        ({"rope_parameters": "linear"}, "rope_parameters='linear' must be a JSON object"),
        ({"rope_parameters": {"rope_type": ["a"]}}, "must be a name"),
        ({"rope_scaling": {"type": "linear", "factor": "x"}}, "factor='x' must be a positive"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor=0 must be a positive"),
        (
            {"rope_parameters": {"rope_theta": 1e6}, "rope_scaling": YARN},
            "both rope_parameters and rope_scaling",
        ),
    ],
)
def test_values_that_cannot_be_are_refused_by_name(change, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        LlamaConfig.from_hf({"model_type": "llama"} | change)


@pytest.mark.parametrize(
    ("name", "notes"),
    [
        ("gpt2", {"output_past": True, "n_special": 0, "predict_special_tokens": True}),
        ("gpt2", {"author": "a", "created_date": "2021", "license": "mit"}),
        ("llama-7b", {"is_llama_config": True, "rope_interleaved": False}),
        ("llama-7b", {"max_sequence_length": 2048, "_attn_implementation_autoset": True}),
        ("mistral-7b", {"_flash_attn_2_enabled": True}),
        ("mixtral-8x7b", {"attention_bias": False}),
        ("bert-base", {"output_past": True, "language": "german", "name": "Bert"}),
        ("bert-base", {"sentence_transformers": {"version": "4.1"}}),
        ("bert-base", {"sbert_ce_default_activation_function": "torch.nn.Identity"}),
    ],
)
def test_notes_in_published_files_change_nothing(name: str, notes) -> None:
    config = fmjax.presets()[name]
    assert type(config).from_hf(config.to_hf() | notes) == config


def test_falcon_reads_one_block_of_rope_alone() -> None:
    both = {"rope_parameters": {"rope_theta": 1e6}, "rope_scaling": YARN}
    with pytest.raises(ConfigError, match="both rope_parameters and rope_scaling"):
        FalconConfig.from_hf({"model_type": "falcon"} | both)
    same = {"rope_parameters": YARN, "rope_scaling": YARN}
    assert FalconConfig.from_hf({"model_type": "falcon"} | same).rope.factor == 4.0


def test_older_rope_fields_mean_the_same() -> None:
    new = {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}}
    for old in (
        {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    ):
        assert LlamaConfig.from_hf(old) == LlamaConfig.from_hf(new)


@pytest.mark.parametrize(
    ("hf", "message"),
    [
        ({"hidden_siz": 3}, "hidden_siz=3.*did you mean 'hidden_size'"),
        ({"flux_capacitor": True}, "flux_capacitor=True"),
        ({"hidden_act": "silu", "is_encoder_decoder": True}, "is_encoder_decoder=True"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"num_attention_heads": 6, "num_key_value_heads": 4, "head_dim": 8}, "multiple"),
        ({"hidden_size": 30, "num_attention_heads": 4}, "set head_dim"),
        ({"head_dim": 7}, "head_dim=7 must be even"),
        ({"model_type": "mistral", "attention_bias": True}, "attention_bias"),
        ({"model_type": "mistral", "sliding_window": 0}, "sliding_window=0"),
    ],
)
def test_what_is_not_understood_is_refused(hf, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LlamaConfig.from_hf(hf)


NEW = {"new_decoder_architecture": True, "hidden_size": 48, "num_attention_heads": 6}


@pytest.mark.parametrize(
    ("hf", "message"),
    [
        ({"multi_quary": False}, "multi_quary=False.*did you mean 'multi_query'"),
        ({"apply_residual_connection_post_layernorm": True}, "post_layernorm=True is not"),
        ({"model_type": "RefinedWeb"}, "no model_type 'RefinedWeb'; choose one of falcon"),
        ({"hidden_size": 30, "num_attention_heads": 4}, "hidden_size=30 is not a multiple"),
        (NEW | {"num_kv_heads": 4}, "num_attention_heads=6 is not a multiple of num_kv_heads=4"),
        ({"multi_query": False, "num_kv_heads": 1}, "num_kv_heads=1 below.*needs new_decoder"),
        (NEW | {"parallel_attn": False}, "no serial blocks"),
        (NEW | {"num_ln_in_parallel_attn": 3}, "num_ln_in_parallel_attn=3 must be 1 or 2"),
        ({"num_ln_in_parallel_attn": 2}, "=2 needs new_decoder_architecture"),
        ({"hidden_size": 30, "num_attention_heads": 6, "alibi": True}, "=5 must be even"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5 needs"),
    ],
)
def test_falcons_that_the_reference_does_not_have_are_refused(hf, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FalconConfig.from_hf(hf)


def test_older_names_of_falcon_mean_the_same() -> None:
    old = {
        "n_embed": 48,
        "num_attention_heads": 6,
        "rope_theta": 5e5,
        "rope_scaling": None,
        "apply_residual_connection_post_layernorm": False,
        "auto_map": {"AutoConfig": "configuration_falcon.FalconConfig"},
    }
    new = FalconConfig(hidden_size=48, num_attention_heads=6, rope=Rope(rope_theta=5e5))
    assert FalconConfig.from_hf(old) == new


@pytest.mark.parametrize(
    ("hf", "message"),
    [
        ({"architectures": ["BertForMultipleChoice"]}, "BertForMultipleChoice.*BertForMaskedLM"),
        ({"model_type": "roberta", "head": "pretraining"}, "no head 'pretraining'.*masked-lm"),
        ({"head": "question-answering", "num_labels": 3}, "id2label names 3"),
        ({"id2label": {"1": "a", "2": "b"}}, r"numbers its labels \[1, 2\]; count them from 0"),
        ({"id2label": {}}, "id2label is empty"),
        ({"problem_type": "ranking"}, "problem_type='ranking'.*regression"),
        ({"problem_type": "single_label_classification", "num_labels": 1}, "needs two labels"),
        ({"position_embedding_type": "relative_key"}, "relative_key.*only 'absolute'"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings=False"),
        ({"is_decoder": True}, "is_decoder=True"),
        ({"hidden_size": 30, "num_attention_heads": 4}, "hidden_size=30 is not a multiple"),
        ({"model_type": "roberta", "pad_token_id": None}, "counts positions from pad_token_id"),
        ({"model_type": "electra"}, "no model_type 'electra'; choose one of bert, roberta"),
    ],
)
def test_what_bert_cannot_be(hf, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BertConfig.from_hf(hf)


def test_architectures_say_the_head_and_labels_their_number() -> None:
    hf = {"architectures": ["RobertaForTokenClassification"], "model_type": "roberta"}
    config = BertConfig.from_hf(hf | {"id2label": {"1": "B", "0": "O"}})
    assert config.head == "token-classification" and config.id2label == ("O", "B")
    assert config.vocab_size == 50265 and config.position_limit == 510
    assert config.to_hf()["label2id"] == {"O": 0, "B": 1}
    assert BertConfig.from_hf({"num_labels": 3}).id2label == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert BertConfig.from_hf({}).head is None


def test_override_changes_fields_and_names_the_unknown() -> None:
    override = {"head": "sequence-classification", "id2label": ["no", "yes", "perhaps"]}
    config = fmjax.build("bert-base", override=override).config
    assert config.num_labels == 3 and config.hidden_size == 768
    with pytest.raises(ConfigError, match="BertConfig has no field 'num_labels'.*id2label"):
        fmjax.build("bert-base", override={"num_labels": 3})


def test_unknown_families_and_sizes_are_named() -> None:
    with pytest.raises(ConfigError, match="'rwkv'.*bert, .*gpt2, .*llama"):
        fmjax.build({"model_type": "rwkv"})
    with pytest.raises(ConfigError, match="'llama-8b'.*llama-7b"):
        fmjax.build("llama-8b")
    with pytest.raises(ConfigError, match="model_type is missing"):
        fmjax.build({"vocab_size": 8})


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("falcon-7b", 6921.7),
        ("falcon-40b", 41303.3),
        ("falcon-rw-1b", 1311.6),
        ("bert-base", 109.5),
        ("bert-large", 335.2),
        ("roberta-base", 124.7),
        ("roberta-large", 355.4),
        ("gpt2", 124.4),
        ("gpt2-xl", 1557.6),
        ("llama-7b", 6738.4),
        ("llama-13b", 13015.9),
        ("llama-33b", 32528.9),
        ("llama-65b", 65285.7),
        ("llama2-70b", 68976.6),
        ("llama3-8b", 8030.3),
        ("llama3.1-405b", 405853.4),
        ("llama3.2-1b", 1235.8),
        ("llama3.2-3b", 3212.7),
        ("tinyllama-1.1b", 1100.0),
        ("mistral-7b", 7241.7),
        ("mistral-7b-v0.3", 7248.0),
        ("mixtral-8x7b", 46702.8),
        ("mixtral-8x22b", 140620.6),
        ("gemma-2b", 2506.2),
        ("gemma-7b", 8537.7),
        ("gemma2-2b", 2614.3),
        ("gemma2-9b", 9241.7),
        ("gemma2-27b", 27227.1),
        ("qwen2-0.5b", 494.0),
        ("qwen2-1.5b", 1543.7),
        ("qwen2-7b", 7615.6),
        ("qwen2-72b", 72706.2),
        ("qwen2.5-3b", 3085.9),
        ("qwen2.5-14b", 14770.0),
        ("qwen2.5-32b", 32763.9),
        ("qwen3-0.6b", 596.0),
        ("qwen3-1.7b", 1720.6),
        ("qwen3-4b", 4022.5),
        ("qwen3-8b", 8190.7),
        ("qwen3-14b", 14768.3),
        ("qwen3-32b", 32762.1),
    ],
)
def test_published_sizes_have_their_published_parameter_counts(name: str, millions: float) -> None:
    assert fmjax.param_count(fmjax.build(name)) / 1e6 == pytest.approx(millions, abs=0.06)
