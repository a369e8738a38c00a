"""An output head that shares the embedding's table has an adapter of its own, as in PEFT."""

from types import SimpleNamespace

import jax
import pytest

import fmjax
from fmjax import peft
from fmjax.core.errors import ConfigError

CASES = {
    "head": dict(target_modules=["lm_head", "q_proj"]),
    "table": dict(target_modules=["embed_tokens", "q_proj"]),
    "both": dict(target_modules=["lm_head", "embed_tokens"], rank_pattern={"lm_head": 5}),
    "both, DoRA": dict(target_modules=["lm_head", "embed_tokens"], use_dora=True),
    "lora_bias": dict(target_modules=["lm_head"], lora_bias=True),
}


@pytest.fixture(scope="module")
def tied(kit, tmp_path_factory):
    return kit.make(
        kit.llama_config(tie_word_embeddings=True, num_hidden_layers=2),
        tmp_path_factory.mktemp("tied"),
    )


@pytest.mark.parametrize("case", CASES)
def test_both_ways_and_backward(tied, kit, tmp_path, case):
    theirs = kit.quiet(kit.peft_model, tied, r=3, lora_alpha=5, **CASES[case])
    kit.exchange(tied, theirs, tmp_path)


def test_gpt2s_head(gpt2, kit, tmp_path):
    theirs = kit.quiet(kit.peft_model, gpt2, r=2, target_modules=["lm_head", "c_attn"])
    kit.exchange(gpt2, theirs, tmp_path)


def test_factors_lie_under_the_table_with_inputs_and_outputs_of_a_layer(tied):
    spec = peft.LoRA(rank=3, targets=("lm_head", "embed_tokens"))
    adapter = peft.init(jax.random.key(0), spec, tied.model)["embed_tokens"]
    assert adapter["lora_a"].shape == (62, 3) and adapter["lora_b"].shape == (3, 32)
    head = adapter["attend"]
    assert head["lora_a"].shape == (32, 3) and head["lora_b"].shape == (3, 62)
    assert not head["lora_b"].any() and not adapter["lora_a"].any()
    axes = peft.abstract(spec, tied.model)["embed_tokens"]["attend"]["lora_b"].axes
    assert axes == ("lora", "vocab")


def test_merging_would_change_the_table_too(tied):
    adapter = peft.init(jax.random.key(0), peft.LoRA(targets=("lm_head",)), tied.model)
    with pytest.raises(ConfigError, match="embed_tokens"):
        peft.merge(tied.model, tied.params, adapter)


@pytest.mark.parametrize(
    "config", [dict(target_modules=["decoder"]), dict(target_modules=["query"], bias="all")]
)
def test_the_head_of_a_masked_lm(masked, kit, tmp_path, config):
    theirs = kit.quiet(kit.peft_model, masked, r=2, task_type=None, **config)
    kit.exchange(masked, theirs, tmp_path)


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    import torch
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=62,
        hidden_size=32,
        intermediate_size=44,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=16,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("masked")
    BertForMaskedLM(config).save_pretrained(directory)
    model, params = fmjax.from_pretrained(directory)

    def reference():
        options = dict(attn_implementation="eager")
        return BertForMaskedLM.from_pretrained(directory, **options).eval()

    return SimpleNamespace(dir=directory, model=model, params=params, reference=reference)
