"""A small tokenizer and corpus that the data tests share."""

import json

import pytest

from fmjax.data import load_corpus, train_sentencepiece

CHAT = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>\n{{ m.content | trim }}"
    "{{ eos_token }}\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return load_corpus("kjv")[:12]


@pytest.fixture(scope="session")
def spm_dir(texts, tmp_path_factory):
    """A trained tokenizer, saved."""
    out = tmp_path_factory.mktemp("spm")
    train_sentencepiece(
        texts, out, 600, special_tokens=("<|user|>", "<|assistant|>"), chat_template=CHAT
    )
    return out


@pytest.fixture(scope="session")
def tokenizer(spm_dir):
    from fmjax.data import load_tokenizer

    return load_tokenizer(spm_dir)


@pytest.fixture
def plain(tokenizer, tmp_path):
    """The tokenizer without a chat template."""
    tokenizer.save(tmp_path / "plain")
    (tmp_path / "plain" / "chat_template.jinja").unlink()
    config = json.loads((tmp_path / "plain" / "tokenizer_config.json").read_text())
    config.pop("chat_template")
    (tmp_path / "plain" / "tokenizer_config.json").write_text(json.dumps(config))
    from fmjax.data import load_tokenizer

    return load_tokenizer(tmp_path / "plain")
