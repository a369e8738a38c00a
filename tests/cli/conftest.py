"""A small text, tokenizer and model on disk, and the command line as a function."""

from pathlib import Path

import jax
import pytest

import fmjax
from fmjax.cli.main import main
from fmjax.data import load_corpus, train_sentencepiece
from fmjax.models.llama.config import LlamaConfig


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    """A .txt file of 24 documents."""
    path = tmp_path_factory.mktemp("text") / "verses.txt"
    documents = [chapter[:300] for chapter in load_corpus("kjv")[:24]]
    path.write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tokenizer_dir(text, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("tokenizer")
    train_sentencepiece([text], out, 320)
    return out


@pytest.fixture(scope="session")
def model_dir(tokenizer_dir, tmp_path_factory) -> Path:
    """A random LLaMA with its tokenizer."""
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        pad_token_id=3,
    )
    model = fmjax.build(config)
    params = fmjax.init_params(model, jax.random.key(0))
    out = tmp_path_factory.mktemp("model")
    fmjax.save_pretrained(out, model, params, fmjax.load_tokenizer(tokenizer_dir))
    return out


@pytest.fixture
def train_args(text, tokenizer_dir, tmp_path) -> list[str]:
    """A pretraining of three steps into tmp_path / "run"."""
    return f"""train --model tinyllama-1.1b --tokenizer {tokenizer_dir} --data {text}
        --out {tmp_path / "run"} --override hidden_size=16 intermediate_size=32
        num_hidden_layers=2 num_attention_heads=2 num_key_value_heads=1 --batch-size 8
        --sequence-length 16 --steps 3 --eval-every 2 --log-every 1""".split()


@pytest.fixture
def finetune_args(text, model_dir, tmp_path) -> list[str]:
    """A LoRA of two steps into tmp_path / "run"."""
    return f"""finetune --model {model_dir} --data {text} --out {tmp_path / "run"} --rank 2
        --batch-size 8 --sequence-length 16 --steps 2 --eval-every 0 --log-every 1
        --learning-rate 0.01""".split()


@pytest.fixture
def fails(capsys):
    """Runs a command line that must fail with one line on stderr that holds every fragment."""

    def check(arguments, *fragments: str) -> None:
        assert main([str(a) for a in arguments]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1, error
        for fragment in fragments:
            assert str(fragment) in error, error

    return check
