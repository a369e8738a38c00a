"""Training, saving, chat templates and what bad files get."""

import json
import pickle
import subprocess
import sys

import pytest

from fmjax.core.errors import DataError, TokenizerError
from fmjax.data import Tokenizer, check_fits, load_tokenizer, train_sentencepiece

CHAT = [
    {"role": "user", "content": "  Who made thee? "},
    {"role": "assistant", "content": "God <b>&</b> é", "tool_calls": None},
]


def test_training_is_deterministic_and_round_trips(texts, spm_dir, tmp_path):
    again = train_sentencepiece(texts, tmp_path, 600, special_tokens=("<|user|>", "<|assistant|>"))
    assert (tmp_path / "tokenizer.model").read_bytes() == (spm_dir / "tokenizer.model").read_bytes()
    assert isinstance(again, Tokenizer) and again.vocab_size == 600
    assert [again.token_to_id(t) for t in ("<unk>", "<s>", "</s>", "<pad>", "<|user|>")] == [
        0, 1, 2, 3, 4,
    ]  # fmt: skip
    assert (again.bos_token_id, again.eos_token_id, again.pad_token_id) == (1, 2, 3)
    ids = again.encode(texts[0])
    assert ids[0] == 1 and ids[-1] != 2
    assert again.decode(ids) == texts[0]
    assert len(ids) < 0.6 * len(texts[0])  # it has learnt merges


def test_training_from_files(tmp_path, texts):
    (tmp_path / "a.txt").write_text("\n".join(texts[:2]), encoding="utf-8")
    by_file = train_sentencepiece([tmp_path / "a.txt"], None, 400)
    by_text = train_sentencepiece(texts[:2], None, 400)
    assert by_file.encode(texts[0]) == by_text.encode(texts[0])


def test_long_lines_are_not_skipped():
    """SentencePiece drops lines over 4,192 bytes unless told otherwise."""
    trained = train_sentencepiece(["abracadabra " * 1000], None, 280)
    assert len(trained.encode("abracadabra", add_special_tokens=False)) < 11


@pytest.mark.parametrize(
    ("texts", "vocab_size", "message"),
    [
        (["abc"], 100, r"vocab_size=100 is too small.*261 or more"),
        (["a b c"], 5000, r"vocab_size=5000 is more than these texts can fill; choose \d+ or less"),
        ([], 300, "no text to train"),
        (["", " \n "], 300, "no text to train"),
        ("abc", 300, "give a list of texts"),
        (["".join(map(chr, range(0x4E00, 0x4F00)))], 300, "vocab_size=300 has no room.*choose"),
    ],
)
def test_training_refuses(texts, vocab_size, message):
    with pytest.raises(TokenizerError, match=message):
        train_sentencepiece(texts, None, vocab_size)


def test_training_file_missing(tmp_path):
    with pytest.raises(DataError, match="nothere.txt: no such file"):
        train_sentencepiece([tmp_path / "nothere.txt"], None, 300)


@pytest.mark.parametrize("file", ["", "tokenizer.model"])
def test_chat_template_agrees_with_transformers(spm_dir, file):
    from transformers import AutoTokenizer

    ours, theirs = load_tokenizer(spm_dir / file), AutoTokenizer.from_pretrained(spm_dir)
    for prompt in (True, False):
        options = {"add_generation_prompt": prompt, "tokenize": False}
        text = ours.apply_chat_template(CHAT, **options)
        assert text == theirs.apply_chat_template(CHAT, **options)
        ids = ours.apply_chat_template(CHAT, add_generation_prompt=prompt)
        assert ids == theirs.apply_chat_template(
            CHAT, add_generation_prompt=prompt, return_dict=False
        )
        assert ids[:2] == [1, ours.token_to_id("<|user|>")] and ids.count(1) == 1
        assert text.endswith("<|assistant|>\n") is prompt


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}",
        "{% for m in messages %}\n    {% if m.role == 'user' %}\nU\n    {% endif %}\n{% endfor %}",
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content }}"
        "{% endfor %}",
        "{% generation %}{{ messages[0].content }}{% endgeneration %}x",
        "{{ strftime_now('%Y') }}{% set ns = namespace(n=0) %}{% set ns.n = 3 %}{{ ns.n }}",
        "{% if tools %}{{ tools[0].name }}{% endif %}{{ extra }}{{ eos_token }}",
        "{{ messages[1].tool_calls is defined }}",
    ],
)
def test_template_conventions(tokenizer, spm_dir, template):
    from transformers import AutoTokenizer

    options = {"tools": [{"name": "f"}], "extra": 3, "tokenize": False, "chat_template": template}
    assert tokenizer.apply_chat_template(CHAT, **options) == AutoTokenizer.from_pretrained(
        spm_dir
    ).apply_chat_template(CHAT, **options)


@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", CHAT, "roles must alternate"),
        ("{% for %}", CHAT, "chat template, line 1"),
        ("{{ ''.__class__.__mro__ }}", CHAT, "sandbox forbids"),
        ("{{ messages.append(1) }}", CHAT, "sandbox forbids"),
        ("{{ 1 + messages }}", CHAT, "refuses these messages"),
        ("x", [], "empty conversation"),
        ("x", [{"content": "x"}], 'message 0 of the conversation is not a dict with a "role"'),
        ("x", [{"role": "user", "content": object()}], "a chat message holds a object"),
    ],
)
def test_template_refusals(tokenizer, template, messages, message):
    with pytest.raises(TokenizerError, match=message):
        tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)


def test_template_choice(texts, tmp_path):
    plain = train_sentencepiece(texts, tmp_path, 320)
    with pytest.raises(TokenizerError, match="has no chat template"):
        plain.apply_chat_template(CHAT)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["chat_template"] = [
        {"name": "default", "template": "D"},
        {"name": "tool_use", "template": "T"},
    ]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    several = load_tokenizer(tmp_path)
    assert several.apply_chat_template(CHAT, tokenize=False) == "D"
    assert several.apply_chat_template(CHAT, tokenize=False, tools=[{}]) == "T"
    assert several.apply_chat_template(CHAT, tokenize=False, chat_template="tool_use") == "T"
    several.save(tmp_path / "again")
    again = load_tokenizer(tmp_path / "again")
    assert again.apply_chat_template(CHAT, tokenize=False, tools=[{}]) == "T"
    (tmp_path / "chat_template.jinja").write_text("J")  # a file of its own wins
    assert load_tokenizer(tmp_path).apply_chat_template(CHAT, tokenize=False) == "J"


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer.model"])
def test_save_load_save(spm_dir, tmp_path, texts, file):
    first = load_tokenizer(spm_dir / file)
    first.save(tmp_path / "a")
    second = load_tokenizer(tmp_path / "a" / file)
    second.save(tmp_path / "b")
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    assert second.encode(texts[0]) == first.encode(texts[0])
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        "chat_template.jinja",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
    ]


def test_spm_added_tokens_and_flags(spm_dir, tmp_path):
    """A LLaMA-style directory: tokens beyond the model's pieces, and EOS asked for."""
    (tmp_path / "tokenizer.model").write_bytes((spm_dir / "tokenizer.model").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(
        '{"add_bos_token": false, "add_eos_token": true, "pad_token": "<extra>"}'
    )
    (tmp_path / "added_tokens.json").write_text('{"<extra>": 600}')
    spm = load_tokenizer(tmp_path)
    assert (spm.pad_token_id, spm.vocab_size) == (600, 601)
    ids = spm.encode("In<extra>the")
    assert 600 in ids and ids[0] != 1 and ids[-1] == 2
    spm.save(tmp_path / "out")
    assert load_tokenizer(tmp_path / "out").encode("In<extra>the") == ids


def test_unigram_is_saved_as_its_model_only(texts, tmp_path):
    import sentencepiece

    (tmp_path / "t.txt").write_text("\n".join(texts), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "t.txt"), model_prefix=str(tmp_path / "tokenizer"),
        model_type="unigram", vocab_size=300, minloglevel=2,
    )  # fmt: skip
    spm = load_tokenizer(tmp_path)
    spm.save(tmp_path / "out")
    assert not (tmp_path / "out" / "tokenizer.json").exists()
    again = load_tokenizer(tmp_path / "out")
    assert again.encode(texts[0]) == spm.encode(texts[0])
    assert again.decode(again.encode(texts[0])) == texts[0]


def test_check_fits(tokenizer):
    check_fits(tokenizer, 600)
    check_fits(tokenizer, 640)
    with pytest.raises(TokenizerError, match="has 600 ids.*vocab_size is 512.*vocab_size=600"):
        check_fits(tokenizer, 512)


def test_bad_arguments(tokenizer, spm_dir):
    with pytest.raises(TokenizerError, match="cannot tokenize a bytes"):
        tokenizer.encode(b"x")
    spm = load_tokenizer(spm_dir / "tokenizer.model")
    with pytest.raises(TokenizerError, match="cannot tokenize a NoneType"):
        spm.encode(None)
    with pytest.raises(TokenizerError, match="cannot decode id 600: the tokenizer has 600 ids"):
        spm.decode([600])


def _write(directory, files):
    for name, content in files.items():
        (directory / name).write_bytes(content)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "has no tokenizer: neither tokenizer.json"),
        ({"vocab.json": b"{}"}, "has no tokenizer"),
        ({"tokenizer.json": b"{"}, "tokenizer.json, line 1: not valid JSON"),
        ({"tokenizer.json": b"\xff{"}, "tokenizer.json is not UTF-8"),
        ({"tokenizer.json": b"{}"}, "tokenizer.json is not a tokenizers file"),
        ({"tokenizer.model": b"not a model"}, "tokenizer.model is not a SentencePiece model"),
        ({"tokenizer.model": b""}, "tokenizer.model is not a SentencePiece model"),
        ({"tokenizer.model": pickle.dumps([1])}, "tokenizer.model is a pickle.*never read"),
        ({"tokenizer.json": pickle.dumps([1])}, "tokenizer.json is a pickle"),
        ({"tokenizer.pkl": b"anything"}, "tokenizer.pkl is a pickle"),
        ({"vocab.json": b'{"a": 0}', "merges.txt": b"a b c\n"}, "merges.txt, line 1: not two"),
        ({"vocab.json": b'{"a": 0}', "merges.txt": b"a b\n"}, "do not belong together"),
        (
            {
                "vocab.json": b"{}",
                "merges.txt": b"",
                "tokenizer_config.json": b'{"tokenizer_class": "BartTokenizer"}',
            },
            'of GPT-2, RoBERTa or CLIP, but this one is "bart"; export its tokenizer.json',
        ),
        ({"tokenizer.json": b"{}", "tokenizer_config.json": b"[]"}, "holds a list, not a JSON"),
        (
            {"tokenizer.json": b"{}", "tokenizer_config.json": b'{"chat_template": 3}'},
            "chat_template is a int",
        ),
        (
            {"tokenizer.json": b"{}", "tokenizer_config.json": b'{"chat_template": [3]}'},
            "chat_template must be a string or a list",
        ),
    ],
)
def test_bad_files(tmp_path, files, message):
    _write(tmp_path, files)
    with pytest.raises(TokenizerError, match=message) as caught:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_bad_paths(tmp_path):
    with pytest.raises(TokenizerError, match="nowhere: no such directory"):
        load_tokenizer(tmp_path / "nowhere")
    _write(tmp_path, {"x.pkl": pickle.dumps(1), "readme.txt": b"hello"})
    with pytest.raises(TokenizerError, match="x.pkl is a pickle"):
        load_tokenizer(tmp_path / "x.pkl")
    with pytest.raises(TokenizerError, match="readme.txt is not a tokenizer file"):
        load_tokenizer(tmp_path / "readme.txt")


def test_unwritable(tokenizer, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TokenizerError, match="cannot write the tokenizer to"):
        tokenizer.save(tmp_path / "file" / "sub")


def test_importing_is_light():
    """`import fmjax.data` and loading a tokenizer must not drag in other frameworks."""
    code = (
        "import sys, fmjax.data\n"
        "heavy = {'grain', 'tokenizers', 'sentencepiece', 'tensorflow_datasets', 'jinja2'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "for name in fmjax.data.__all__: getattr(fmjax.data, name)\n"
        "never = {'tensorflow', 'torch', 'transformers', 'tensorflow_datasets'}\n"
        "assert not never & set(sys.modules), never & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
