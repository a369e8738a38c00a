"""Our tokenizers against transformers' and SentencePiece's own."""

import json
import shutil

import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from fmjax.data import HFTokenizer, SentencePieceTokenizer, load_corpus, load_tokenizer

TEXTS = [
    "",
    " ",
    "Hello world",
    " leading space",
    "  two  inner   spaces and trailing  ",
    "\n",
    "line one\nline two\n\n\tindented\r\n",
    "naïve café — “quotes” … 漢字かな 😀👩‍👩‍👧 Ωμέγα עברית",
    "combining e\u0301 nbsp\u00a0zero\u200bwidth \u2581 metaspace",
    "123 4567 3.14159 aaaaaaaaaaaa ........",
    "literal </s> and <s> and <unk> and <|user|>hi<|assistant|> there",
    "<s>start</s>",
]


@pytest.fixture(scope="module")
def real_texts():
    return (
        TEXTS + load_corpus("kjv")[40:44] + [e["text"] for e in load_corpus("movie_reviews")[:60]]
    )


def auto(directory):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory)


def check_parity(ours, theirs, texts):
    for text in texts:
        for special in (True, False):
            ids = ours.encode(text, add_special_tokens=special)
            assert ids == theirs.encode(text, add_special_tokens=special), repr(text[:80])
        for skip in (True, False):
            assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(
                ids, skip_special_tokens=skip
            ), repr(text[:80])
    assert ours.vocab_size == len(theirs)
    for name in ("bos", "eos", "pad"):
        assert getattr(ours, f"{name}_token_id") == getattr(theirs, f"{name}_token_id")


@pytest.mark.parametrize("model_type", [None, "llama", "gpt2"])
def test_trained_tokenizer_in_transformers(spm_dir, real_texts, tmp_path, model_type):
    directory = spm_dir
    if model_type is not None:  # beside a model's config.json, as save_pretrained leaves it
        directory = tmp_path
        load_tokenizer(spm_dir).save(directory)
        (directory / "config.json").write_text(json.dumps({"model_type": model_type}))
    ours = load_tokenizer(directory)
    assert isinstance(ours, HFTokenizer)
    check_parity(ours, auto(directory), real_texts)


def test_three_paths_one_tokenizer(spm_dir, real_texts):
    """tokenizer.json, our tokenizer.model reader and SentencePiece itself."""
    fast, spm = load_tokenizer(spm_dir), load_tokenizer(spm_dir / "tokenizer.model")
    assert isinstance(spm, SentencePieceTokenizer)
    raw = sentencepiece.SentencePieceProcessor(model_file=str(spm_dir / "tokenizer.model"))
    for text in real_texts:
        ids = spm.encode(text)
        assert ids == fast.encode(text), repr(text[:80])
        for skip in (True, False):
            assert spm.decode(ids, skip) == fast.decode(ids, skip), repr(text[:80])
        if "<" not in text:
            assert ids == [raw.bos_id(), *raw.encode(text)]
            if "\u2581" not in text:
                assert spm.decode(ids) == raw.decode(raw.encode(text)) == text
    for junk in ([4 + 2 + 0xE6, 300, 4 + 2 + 0xF0, 4 + 2 + 0x9F], [0, 1, 2, 3], []):
        for skip in (True, False):
            assert spm.decode(junk, skip) == fast.decode(junk, skip)


def test_encode_batch_is_encode(tokenizer, real_texts):
    assert tokenizer.encode_batch(real_texts) == [tokenizer.encode(t) for t in real_texts]


def byte_level_files(texts, directory, flags=None, with_json=True):
    """A small GPT-2 style tokenizer, as the GPT-2 files are laid out."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=500, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"]
        ),
    )
    backend.model.save(str(directory))
    if with_json:
        backend.save(str(directory / "tokenizer.json"))
    (directory / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"model_max_length": 64, **(flags or {})})
    )


@pytest.mark.parametrize("with_json", [True, False])
def test_roberta_files(texts, real_texts, tmp_path, with_json):
    """The special tokens are the class's own: the files of the hub do not name them."""
    byte_level_files(texts, tmp_path, with_json=False)
    vocab = json.loads((tmp_path / "vocab.json").read_text())
    pieces = [p for p in sorted(vocab, key=vocab.get) if p != "<|endoftext|>"]
    named = ["<s>", "<pad>", "</s>", "<unk>", *pieces, "<mask>"]
    (tmp_path / "vocab.json").write_text(json.dumps({p: i for i, p in enumerate(named)}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "roberta"}))
    if with_json:
        auto(tmp_path)._tokenizer.save(str(tmp_path / "tokenizer.json"))
        for name in ("vocab.json", "merges.txt"):
            (tmp_path / name).unlink()
    ours, theirs = load_tokenizer(tmp_path), auto(tmp_path)
    for text in [*real_texts, "a <mask> b", "<s>a</s>"]:
        assert ours.encode(text) == theirs(text)["input_ids"], repr(text[:80])
    for name in ("bos", "eos", "pad", "cls", "sep", "mask", "unk"):
        assert getattr(ours, f"{name}_token_id") == getattr(theirs, f"{name}_token_id"), name
    ours.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert again.encode("a <mask> b") == ours.encode("a <mask> b")
    assert again.mask_token_id == ours.mask_token_id


def test_empty_special_tokens_are_those_of_the_class(spm_dir, tmp_path):
    shutil.copy(spm_dir / "tokenizer.model", tmp_path)
    config = {
        "tokenizer_class": "LLaMATokenizer",
        "bos_token": "",
        "eos_token": "",
        "unk_token": "",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours, expected = load_tokenizer(tmp_path), load_tokenizer(spm_dir / "tokenizer.model")
    assert (ours.bos_token, ours.eos_token) == ("<s>", "</s>")
    assert ours.encode("in the") == expected.encode("in the")


@pytest.mark.parametrize("with_json", [True, False])
@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"add_bos_token": True},
        {"add_prefix_space": True},
        {"add_bos_token": False, "add_eos_token": True},
        {"tokenizer_class": "GPT2Tokenizer", "pad_token": "<|pad|>"},
        {
            "pad_token": {"__type": "AddedToken", "content": "[PAD]", "lstrip": True},
            "bos_token": "<|endoftext|>",
        },
    ],
)
def test_gpt2_files(texts, real_texts, tmp_path, flags, with_json):
    byte_level_files(texts, tmp_path, flags, with_json)
    ours = load_tokenizer(tmp_path)
    assert ours.eos_token == ours.bos_token == "<|endoftext|>"
    gpt2_texts = [*real_texts, "a<|endoftext|>b", "a<|pad|>b", "a[PAD] b"]
    check_parity(ours, auto(tmp_path), gpt2_texts)
    ours.save(tmp_path / "again")
    check_parity(load_tokenizer(tmp_path / "again"), auto(tmp_path), gpt2_texts)


def test_wordpiece_with_cleanup(texts, real_texts, tmp_path):
    """BERT's post-processor decides its special tokens, and its decoder output is cleaned up."""
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=False)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=400, special_tokens=special)
    )
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    backend.enable_truncation(16)
    backend.enable_padding(length=32, pad_token="[PAD]")
    backend.save(str(tmp_path / "tokenizer.json"))
    named = dict(zip(["pad", "unk", "cls", "sep", "mask"], special, strict=True))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(
            {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": True}
            | {f"{k}_token": v for k, v in named.items()}
        )
    )
    ours, theirs = load_tokenizer(tmp_path), auto(tmp_path)
    check_parity(ours, theirs, real_texts)
    ids = ours.encode("In the beginning, God.")
    assert ids[0] == 2 and ids[-1] == 3
    assert ours.decode(ids) == "in the beginning, god."
