"""QLoRA: adapters on 4-bit weights agree with PEFT on bitsandbytes' layers, both ways."""

import functools
from types import SimpleNamespace

import pytest

import fmjax

# What transformers packs and fmjax leaves whole: layers outside of the stack.
WHOLE = {"llama": ["lm_head"], "gpt2": ["lm_head"], "bert": ["classifier", "bert.pooler"]}
AUTO = {"bert": "AutoModelForSequenceClassification"}
CASES = {
    "llama": dict(r=3, lora_alpha=5, target_modules="all-linear"),
    "llama, dora": dict(r=3, lora_alpha=5, target_modules=["q_proj", "down_proj"], use_dora=True),
    "gpt2": dict(r=3, lora_alpha=5, target_modules=["c_attn", "c_proj", "c_fc"]),
    "bert": dict(r=3, lora_alpha=5, target_modules=["query", "value"], task_type="SEQ_CLS"),
}


@pytest.fixture(scope="session")
def wide(kit, tmp_path_factory):
    """Makes twins whose rows are whole blocks, as bitsandbytes' CPU kernels need them."""

    def make(name):
        if name == "llama":
            config = kit.llama_config(hidden_size=64, intermediate_size=128, num_hidden_layers=2)
        elif name == "gpt2":
            config = kit.gpt2_config(n_embd=64)
        else:
            from transformers import BertConfig, BertForSequenceClassification

            fields = dict(vocab_size=62, hidden_size=64, intermediate_size=128, num_labels=3)
            fields |= dict(num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=16)
            config = BertConfig(**fields, initializer_range=0.2)
            directory = tmp_path_factory.mktemp(name)
            BertForSequenceClassification(config).save_pretrained(directory)
            return directory
        return kit.make(config, tmp_path_factory.mktemp(name)).dir

    return functools.cache(make)


def packed(directory, name):
    """A twin with weights of four bits on both sides."""
    import torch
    import transformers

    config = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=WHOLE[name],
    )
    auto = getattr(transformers, AUTO.get(name, "AutoModelForCausalLM"))

    def reference():
        module = auto.from_pretrained(
            directory,
            quantization_config=config,
            device_map="cpu",
            dtype=torch.float32,
            attn_implementation="eager",
        )
        for part in module.modules():
            if hasattr(part, "support_avx512bf16_for_cpu"):
                part.support_avx512bf16_for_cpu = False  # a kernel that computes in bfloat16
        return module.eval()

    model, params = fmjax.from_pretrained(directory, quantize="nf4")
    return SimpleNamespace(dir=directory, model=model, params=params, reference=reference)


@pytest.mark.parametrize("case", CASES)
def test_adapters_on_four_bits(case, wide, kit, tmp_path):
    name = case.partition(",")[0]
    twin = packed(wide(name), name)
    kit.exchange(twin, kit.peft_model(twin, **CASES[case]), tmp_path)
