"""A tiny language model to teach to answer."""

import jax
import pytest

import fmjax
from fmjax.data import load_corpus, train_sentencepiece
from fmjax.models.llama.config import LlamaConfig


@pytest.fixture(scope="session")
def decoder(tmp_path_factory):
    """A random LLaMA with a tokenizer that has no chat template."""
    out = tmp_path_factory.mktemp("decoder")
    tokenizer = train_sentencepiece(load_corpus("kjv")[:8], out / "tokenizer", 320)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.2,
    )
    model = fmjax.build(config)
    params = fmjax.init_params(model, jax.random.key(0))
    fmjax.save_pretrained(out / "model", model, params, tokenizer)
    return out / "model"
