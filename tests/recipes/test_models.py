"""Models by name."""

import json

import jax
import pytest

from fmjax.core.errors import ConfigError, TokenizerError
from fmjax.data import load_corpus, train_sentencepiece
from fmjax.models.registry import presets
from fmjax.recipes.models import (
    compute_dtype,
    parse_mesh,
    parse_override,
    resolve,
    resolve_directory,
)


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory):
    out = tmp_path_factory.mktemp("tokenizer")
    train_sentencepiece(load_corpus("kjv")[:3], out, 330)
    return out


def test_a_published_size_takes_the_tokenizers_vocabulary(tokenizer_dir):
    start = resolve("gpt2", str(tokenizer_dir))
    expected = presets()["gpt2"].replace(
        vocab_size=330, bos_token_id=1, eos_token_id=2, pad_token_id=3
    )
    assert start.config == expected and start.directory is None
    assert resolve("gpt2", str(tokenizer_dir), ["vocab_size=512"]).config.vocab_size == 512


def test_what_follows_from_a_changed_field_follows(tokenizer_dir):
    changes = ["hidden_size=96", "num_attention_heads=6"]
    config = resolve("llama-7b", str(tokenizer_dir), changes).config
    assert (config.head_dim, config.num_key_value_heads) == (16, 6)
    config = resolve("llama-7b", str(tokenizer_dir), [*changes, "head_dim=32"]).config
    assert config.head_dim == 32
    with pytest.raises(ConfigError, match="num_key_value_heads=4"):  # chosen, not derived
        resolve("tinyllama-1.1b", str(tokenizer_dir), changes)


def test_an_encoder_does_not_predict_the_next_token(tokenizer_dir):
    with pytest.raises(ConfigError, match="--model bert-base is an encoder .*such as gpt2"):
        resolve("bert-base", str(tokenizer_dir))


def test_nor_does_a_decoder_under_another_head(tokenizer_dir, tmp_path):
    message = "(is|has) .*[sS]equence.?[cC]lassification.*, which .*; give a "
    with pytest.raises(ConfigError, match=f"--model gpt2 {message}"):
        resolve("gpt2", str(tokenizer_dir), ["head=sequence-classification"])
    config = presets()["gpt2"].replace(head="sequence-classification")
    (tmp_path / "config.json").write_text(json.dumps(config.to_hf()))
    with pytest.raises(ConfigError, match=f"--model {tmp_path} {message}"):
        resolve_directory(tmp_path, str(tokenizer_dir))
    with pytest.raises(
        ConfigError, match="--model llama-7b (is|has) .*(LlamaModel|None).*, which .*; give a "
    ):
        resolve("llama-7b", str(tokenizer_dir), ["head=null"])


def test_a_config_is_taken_as_it_is(tokenizer_dir, tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(presets()["gpt2"].replace(n_layer=2).to_hf()))
    config = resolve(str(file), str(tokenizer_dir)).config
    assert (config.n_layer, config.vocab_size, config.eos_token_id) == (2, 50257, 50256)
    with pytest.raises(TokenizerError):  # none lies beside it
        resolve(str(file))
    remedy = "bos_token_id=50256 .* vocabulary of 330; .*--override bos_token_id=1"
    with pytest.raises(ConfigError, match=remedy):
        resolve(str(file), str(tokenizer_dir), ["vocab_size=330"])
    file.write_text("[]")
    with pytest.raises(ConfigError, match="model_type"):
        resolve(str(file), str(tokenizer_dir))


def test_special_ids_that_a_config_does_not_state_are_the_tokenizers(tokenizer_dir, tmp_path):
    file = tmp_path / "config.json"
    file.write_text('{"model_type": "gpt2", "vocab_size": 330, "eos_token_id": 7}')
    config = resolve(str(file), str(tokenizer_dir)).config
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 7, 3)
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4}
    file.write_text(json.dumps({"model_type": "mixtral", "vocab_size": 330, **sizes}))
    config = resolve(str(file), str(tokenizer_dir)).config
    assert (config.num_key_value_heads, config.pad_token_id) == (4, 3)


def test_override_values():
    assert parse_override(["a=1", "b=1e-5", "c=null", "d=silu", "e=[1, 2]", "f=x=y"]) == {
        "a": 1, "b": 1e-5, "c": None, "d": "silu", "e": [1, 2], "f": "x=y",
    }  # fmt: skip


def test_meshes():
    assert parse_mesh("").shape["data"] == jax.device_count()
    shape = parse_mesh("fsdp=2, tensor=2").shape
    assert (shape["data"], shape["fsdp"], shape["tensor"]) == (jax.device_count() // 4, 2, 2)
    assert parse_mesh("data=2,fsdp=-1").shape["fsdp"] == jax.device_count() // 2
    assert parse_mesh("fsdp=-1").shape["fsdp"] == jax.device_count()
    two = parse_mesh("tensor=2", jax.devices()[:2])
    assert two.size == 2 and two.shape["data"] == 1


def test_dtype():
    assert (compute_dtype("auto"), compute_dtype("bfloat16")) == ("float32", "bfloat16")
