"""Training WordPiece tokenizers: agreement with transformers, the same every time, clear errors."""

import hashlib
import json
import subprocess
import sys

import pytest

from fmjax.core.errors import DataError, TokenizerError
from fmjax.data import load_tokenizer, train_wordpiece

SAMPLES = [
    "And God said, Let there be light: and there was light.",
    "  Isn't it 1,000 miles?\n\tnaïve café — 光 zyzzyva [MASK] it",
    "",
]


@pytest.fixture(scope="module")
def directory(texts, tmp_path_factory):
    out = tmp_path_factory.mktemp("wordpiece")
    train_wordpiece(texts, out, 700, special_tokens=("[USER]",))
    return out


def test_special_tokens(directory, texts):
    tokenizer = load_tokenizer(directory)
    assert tokenizer.vocab_size == 700
    named = ("pad", "unk", "cls", "sep", "mask", "bos", "eos")
    ids = [getattr(tokenizer, f"{name}_token_id") for name in named]
    assert ids == [0, 1, 2, 3, 4, None, None]
    assert tokenizer.special_ids == (0, 1, 2, 3, 4, 5)
    assert [tokenizer.id_to_token(i) for i in (4, 5, 700)] == ["[MASK]", "[USER]", None]
    assert len(tokenizer.encode(texts[0])) < 0.4 * len(texts[0])  # it has learnt merges
    assert tokenizer.decode(tokenizer.encode("In the Beginning")) == "in the beginning"


def test_ids_agree_with_transformers(directory, texts):
    from transformers import AutoTokenizer

    ours, theirs = load_tokenizer(directory), AutoTokenizer.from_pretrained(directory)
    assert (theirs.mask_token_id, theirs.cls_token_id, theirs.pad_token_id) == (4, 2, 0)
    assert len(theirs) == ours.vocab_size
    assert sorted(theirs.all_special_ids) == list(ours.special_ids)
    for text in [*SAMPLES, texts[0]]:
        assert ours.encode(text) == theirs(text)["input_ids"]
    pair = theirs("In the", "beginning")
    first, second = ours.encode("In the"), ours.encode("beginning", add_special_tokens=False)
    assert pair["input_ids"] == [*first, *second, 3]
    assert pair["token_type_ids"] == [0] * len(first) + [1] * (len(second) + 1)


def test_saving_again_changes_nothing(directory, tmp_path):
    load_tokenizer(directory).save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.config == load_tokenizer(directory).config
    assert [again.encode(text) for text in SAMPLES] == [
        load_tokenizer(directory).encode(text) for text in SAMPLES
    ]


def test_training_is_deterministic(tmp_path):
    """Across processes: the library numbers pieces in the order of a randomly seeded hash map."""
    code = (
        "import sys\nfrom fmjax.data import load_corpus, train_wordpiece\n"
        "train_wordpiece(load_corpus('kjv')[:12], sys.argv[1], 700)\n"
    )
    digests = set()
    for name in ("a", "b", "c"):
        subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], check=True)
        digests.add(hashlib.sha256((tmp_path / name / "tokenizer.json").read_bytes()).digest())
    assert len(digests) == 1


def test_case(texts, tmp_path):
    from transformers import AutoTokenizer

    cased = train_wordpiece(texts, tmp_path, 800, lowercase=False)
    assert cased.decode(cased.encode("In the Beginning")) == "In the Beginning"
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(SAMPLES[0])["input_ids"] == cased.encode(SAMPLES[0])


def test_rare_characters_are_unknown():
    tokenizer = train_wordpiece(["aaaa bbb aaab x"] * 3, None, 12, alphabet_size=2)
    assert tokenizer.encode("x", add_special_tokens=False) == [tokenizer.unk_token_id]
    assert tokenizer.unk_token_id not in tokenizer.encode("abab")


def test_training_from_files(tmp_path, texts):
    (tmp_path / "a.txt").write_text(texts[0], encoding="utf-8")
    by_file = train_wordpiece([tmp_path / "a.txt"], None, 300)
    assert by_file.encode(texts[0]) == train_wordpiece(texts[:1], None, 300).encode(texts[0])
    with pytest.raises(DataError, match="nothere.txt: no such file"):
        train_wordpiece([tmp_path / "nothere.txt"], None, 300)


@pytest.mark.parametrize(
    ("texts", "vocab_size", "message"),
    [
        (["abc abd"], 10, r"vocab_size=10 is too small.*take 12; choose 13 or more"),
        (["abc abc"], 5000, r"vocab_size=5000 is more than these texts can fill; choose \d+ or le"),
        ([], 300, "no text to train"),
        (["", " \n "], 300, "no text to train"),
        ("abc", 300, "give a list of texts"),
    ],
)
def test_training_refuses(texts, vocab_size, message):
    with pytest.raises(TokenizerError, match=message):
        train_wordpiece(texts, None, vocab_size)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"do_lower_case": False},
        {"do_lower_case": True, "strip_accents": False, "tokenize_chinese_chars": False},
    ],
)
def test_the_original_vocabulary_alone(directory, texts, tmp_path, config):
    """As BERT's checkpoints of 2019 have it."""
    from transformers import AutoTokenizer

    vocab = load_tokenizer(directory)._backend.get_vocab()
    pieces = sorted(vocab, key=vocab.get)
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for text in [*SAMPLES, "The 光光 CAFÉ", texts[0]]:
        assert ours.encode(text) == theirs(text)["input_ids"], text
    assert (ours.mask_token_id, ours.pad_token_id, ours.vocab_size) == (4, 0, 700)
    ours.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").encode(texts[0]) == ours.encode(texts[0])


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("stated", [None, True, False])
def test_case_is_what_the_configuration_says(texts, tmp_path, lowercase, stated):
    """As in transformers' own class, which counts for more than its tokenizer.json."""
    from transformers import AutoTokenizer

    train_wordpiece(texts, tmp_path, 600, lowercase=lowercase)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["tokenizer_class"] = "BertTokenizer"
    if stated is not None:
        config["do_lower_case"] = stated
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for text in [*SAMPLES, "GOD saïd"]:
        assert ours.encode(text) == theirs(text)["input_ids"]
    assert (ours.encode("GOD") == ours.encode("god")) == (stated is not False)


def test_bad_vocabularies(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\na\n")
    with pytest.raises(TokenizerError, match=r"vocab.txt lacks '\[CLS\]', the cls_token"):
        load_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "mpnet"}')
    with pytest.raises(TokenizerError, match='defines a BERT tokenizer, but this one is "mpnet"'):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "config.json").unlink()
    with pytest.raises(TokenizerError, match="vocab.txt is not UTF-8 text"):
        load_tokenizer(tmp_path)
