"""Tiny transformers models, their twins here, and tokenizers that make text hard."""

from types import SimpleNamespace

import pytest

import fmjax

VOCAB = 61

CONFIGS = {
    "llama": lambda t: t.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        max_position_embeddings=64,
    ),
    # A window shorter than prompt and text.
    "mistral": lambda t: t.MistralConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
        sliding_window=6,
        initializer_range=0.3,
    ),
    "gpt2": lambda t: t.GPT2Config(
        vocab_size=VOCAB,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=40,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
    ),
}


def _twin(name, directory):
    import torch
    import transformers

    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = CONFIGS[name](transformers)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        directory, attn_implementation="eager"
    ).eval()
    reference.generation_config.eos_token_id = None
    model, params = fmjax.from_pretrained(directory)
    return SimpleNamespace(
        reference=reference, model=model, params=params, variables={"params": params}
    )


@pytest.fixture(scope="session")
def twins(tmp_path_factory):
    return {name: _twin(name, tmp_path_factory.mktemp(name)) for name in CONFIGS}


@pytest.fixture(params=list(CONFIGS))
def twin(request, twins):
    return twins[request.param]


@pytest.fixture
def llama(twins):
    return twins["llama"]


class Bytes:
    """One id a byte, folded into the vocabulary: characters come in pieces, or never."""

    # Two letters, a space, a line end, the bytes of "é" and "€", and one that begins nothing.
    ALPHABET = b"ab \n" + "é€".encode() + b"\xff"

    def decode(self, ids, skip_special_tokens=True):
        return bytes(self.ALPHABET[i % len(self.ALPHABET)] for i in ids).decode("utf-8", "replace")


@pytest.fixture(scope="session")
def bytes_tokenizer():
    return Bytes()
