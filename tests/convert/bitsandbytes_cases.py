"""Tiny models of transformers, packed by bitsandbytes on the CPU, and their files."""

import bitsandbytes as bnb
import numpy as np
import torch
import transformers
from safetensors.torch import load_file

SIZE = {"num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 48}
LLAMA = {**SIZE, "num_key_value_heads": 2, "max_position_embeddings": 32}
GPT2 = {"n_layer": 2, "n_head": 4, "n_embd": 64, "vocab_size": 48, "n_positions": 32}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2}
MODELS = {
    "llama": ("LlamaForCausalLM", {**LLAMA, "hidden_size": 128, "intermediate_size": 192}),
    # Blocks of 64 run over the ends of rows, and the last one is not full.
    "llama-odd": ("LlamaForCausalLM", {**LLAMA, "hidden_size": 72, "intermediate_size": 100}),
    "llama-tied": (
        "LlamaForCausalLM",
        {**LLAMA, "hidden_size": 64, "intermediate_size": 128, "tie_word_embeddings": True},
    ),
    "gpt2": ("GPT2LMHeadModel", {**GPT2, **SPECIAL}),
    "mixtral": (
        "MixtralForCausalLM",
        {**LLAMA, "hidden_size": 64, "intermediate_size": 64, "num_local_experts": 2},
    ),
    "bert": (
        "BertForSequenceClassification",
        {**SIZE, "hidden_size": 64, "intermediate_size": 128, "max_position_embeddings": 32},
    ),
}


def save(name, directory, dtype=torch.float32):
    """A random model of `MODELS`, written by transformers."""
    architecture, fields = MODELS[name]
    cls = getattr(transformers, architecture)
    torch.manual_seed(0)
    model = cls(cls.config_class(**fields))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)  # biases too
    model.to(dtype).save_pretrained(directory)
    return directory


def packing(kind, **fields):
    """bitsandbytes' settings for a format's name."""
    if kind == "int8":
        return transformers.BitsAndBytesConfig(load_in_8bit=True, **fields)
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=kind == "nf4",
        **fields,
    )


def load(name, directory, config=None, dtype=torch.float32):
    """Loaded by transformers; packed on the way if a config is given."""
    cls = getattr(transformers, MODELS[name][0])
    more = {} if config is None else {"quantization_config": config}
    model = cls.from_pretrained(directory, dtype=dtype, device_map="cpu", **more).eval()
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False  # a kernel that computes in bfloat16
    return model


def pack(name, source, target, kind, dtype=torch.float32, **fields):
    """Packs a directory with transformers; returns its model."""
    model = load(name, source, packing(kind, **fields), dtype)
    model.save_pretrained(target)
    return model


def tensors(directory):
    """Name → (dtype, shape, bytes) of what model.safetensors holds."""
    return _bytes(load_file(directory / "model.safetensors"))


def state(model):
    """The same of a model of transformers, which cannot save what it did not pack itself."""
    left_out = ("weight_format", *model.all_tied_weights_keys)  # a string in memory; not in files
    return _bytes({k: v for k, v in model.state_dict().items() if not k.endswith(left_out)})


def _bytes(arrays):
    return {
        name: (str(x.dtype), tuple(x.shape), x.reshape(-1).view(torch.uint8).numpy().tobytes())
        for name, x in arrays.items()
    }


def ids():
    return np.arange(20).reshape(2, 10) * 7 % 48


def logits(model):
    """Of a model of transformers."""
    with torch.no_grad():
        return model(input_ids=torch.tensor(ids())).logits.float().numpy()
