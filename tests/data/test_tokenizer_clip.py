"""The tokenizers of CLIP and SigLIP against transformers', and a trained one in CLIP's form."""

import io
import json

import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, trainers

import fmjax
from fmjax.data import (
    HFTokenizer,
    SiglipTokenizer,
    encoding,
    load_corpus,
    load_tokenizer,
    train_clip_tokenizer,
)

TEXTS = [
    "",
    " ",
    "a photo of a cat",
    "  Two  PHOTOS,\n of: dogs!  ",
    "isn't it? they're 1234 'quoted'",
    "naïve café — “quotes” … 漢字かな 😀👩‍👩‍👧 Ωμέγα ΣΑΣ İstanbul",
    "combining e\u0301 nbsp\u00a0zero\u200bwidth \u2581 metaspace",
    "literal </s> and <unk>, then <|startoftext|> and <|endoftext|> there",
    "</s>",
    "ends with </s>",
    "...",
    "x_y under_score #tag",
]


CLASS = ("tokenizer_class", "CLIPTokenizer")


@pytest.fixture(scope="module")
def captions():
    return load_corpus("kjv")[:12]


@pytest.fixture(scope="module")
def clip_dir(captions, tmp_path_factory):
    out = tmp_path_factory.mktemp("clip")
    train_clip_tokenizer(captions, out, 700)
    return out


@pytest.fixture(scope="module")
def siglip_dir(captions, tmp_path_factory):
    """As the published one is made: unigram pieces, pad 0, EOS 1, unknown 2."""
    out, model = tmp_path_factory.mktemp("siglip"), io.BytesIO()
    lines = [line.lower() for text in captions for line in text.split("\n") if line.strip()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=400,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    (out / "spiece.model").write_bytes(model.getvalue())
    (out / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "SiglipTokenizer", "model_max_length": 64})
    )
    return out


def check_parity(ours, theirs, texts):
    for text in texts:
        for special in (True, False):
            ids = ours.encode(text, add_special_tokens=special)
            assert ids == theirs.encode(text, add_special_tokens=special), repr(text[:80])
        assert ids == ours.encode(text, add_special_tokens=False)
        for skip in (True, False):
            given = ours.encode(text)
            assert ours.decode(given, skip) == theirs.decode(given, skip), repr(text[:80])
    assert ours.vocab_size == len(theirs)
    for name in ("bos", "eos", "pad", "unk"):
        assert getattr(ours, f"{name}_token_id") == getattr(theirs, f"{name}_token_id"), name


def auto(directory):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory)


def test_clip_in_transformers(clip_dir, captions):
    ours = load_tokenizer(clip_dir)
    assert isinstance(ours, HFTokenizer)
    theirs = auto(clip_dir)
    assert type(theirs).__name__.startswith("CLIPTokenizer")
    check_parity(ours, theirs, [*TEXTS, *(c[:200] for c in captions)])
    assert ours.decode(ours.encode("A Photo, of CATS")) == "a photo , of cats"


@pytest.mark.parametrize("named", ["tokenizer_config.json", "config.json"])
def test_clip_from_vocabulary_and_merges(clip_dir, tmp_path, named):
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((clip_dir / name).read_bytes())
    stated = {"config.json": {"model_type": "clip"}}.get(
        named, {"tokenizer_class": "CLIPTokenizer"}
    )
    (tmp_path / named).write_text(json.dumps(stated))
    ours, trained = load_tokenizer(tmp_path), load_tokenizer(clip_dir)
    assert ours.pad_token_id == ours.eos_token_id == ours.vocab_size - 1
    for text in TEXTS:
        assert ours.encode(text) == trained.encode(text)
    ours.save(tmp_path / "again")
    check_parity(load_tokenizer(tmp_path / "again"), auto(tmp_path / "again"), TEXTS)


def test_training_is_repeatable_and_ends_with_the_end_of_text(clip_dir, captions):
    again = train_clip_tokenizer(captions, None, 700)
    assert again._files()["tokenizer.json"] == (clip_dir / "tokenizer.json").read_bytes()
    assert again.vocab_size == 700 and again.bos_token_id == 698
    ids = again.encode("in the beginning")
    assert ids[0] == again.bos_token_id and ids[-1] == max(ids) == again.eos_token_id
    # Every byte has a piece, whatever the texts held.
    strange = "\u6f22\u5b57 \U0001f600"
    assert again.unk_token_id not in again.encode(strange, add_special_tokens=False)
    assert again.decode(again.encode(strange)) == strange


def test_long_captions_keep_their_end(clip_dir, siglip_dir, captions):
    for directory in (clip_dir, siglip_dir):
        tokenizer = load_tokenizer(directory)
        cut = encoding.encode(tokenizer, captions[0], max_length=9).ids
        whole = tokenizer.encode(captions[0])
        assert cut == whole[:8] + whole[-1:] and cut[-1] == tokenizer.eos_token_id


@pytest.mark.filterwarnings("ignore:This sequence already has")
def test_siglip_in_transformers(siglip_dir, captions, tmp_path):
    ours = load_tokenizer(siglip_dir)
    assert isinstance(ours, SiglipTokenizer)
    texts = [*TEXTS, *(c[:200] for c in captions)]
    check_parity(ours, auto(siglip_dir), texts)
    ours.save(tmp_path)
    check_parity(load_tokenizer(tmp_path / "spiece.model"), auto(tmp_path), texts)
    padded = auto(siglip_dir)("A cat.", padding="max_length")["input_ids"]
    ids = ours.encode("A cat.")
    assert padded == ids + [ours.pad_token_id] * (64 - len(ids)) and ours.pad_token_id == 1


def test_siglip_says_where_its_tokens_are(siglip_dir):
    tokenizer = load_tokenizer(siglip_dir)
    text = "  The LORD, said:\n unto </s> him"
    found = encoding.encode(tokenizer, text)
    assert found.ids == tokenizer.encode(text)
    spans = [text[slice(*span)] for span in found.offsets[:-1]]
    assert "".join(spans).replace(" ", "").replace("\n", "") == "TheLORDsaidunto</s>him"
    assert found.sequence_ids == [0] * len(spans) + [None]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"spiece.model": b"nothing"}, "is not a SentencePiece model"),
        ({"spiece.model": b"\x80\x04abc"}, "is a pickle"),
    ],
)
def test_damaged_siglip_files_are_named(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "config.json").write_text('{"model_type": "siglip"}')
    with pytest.raises(fmjax.FmjaxError, match=message):
        load_tokenizer(tmp_path)


def test_special_tokens_that_the_pieces_lack(siglip_dir):
    model = (siglip_dir / "spiece.model").read_bytes()
    with pytest.raises(fmjax.FmjaxError, match="no piece '<end>'"):
        SiglipTokenizer(model, {"eos_token": "<end>"})
    with pytest.raises(fmjax.FmjaxError, match="cannot decode id 400"):
        SiglipTokenizer(model).decode([400])


def test_vocabulary_without_the_end_of_text(clip_dir, tmp_path):
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    (tmp_path / "merges.txt").write_text("")
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(fmjax.FmjaxError, match="vocab.json lacks"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("texts", "size", "message"),
    [
        (["a cat"], 513, "vocab_size=513 is too small"),
        ([" "], 600, "no text"),
        ("a cat", 600, "give a list"),
    ],
)
def test_what_cannot_be_trained_on(texts, size, message):
    with pytest.raises(fmjax.FmjaxError, match=message):
        train_clip_tokenizer(texts, None, size)


def test_siglip2_reads_texts_in_lower_case(captions, tmp_path):
    """Its file holds Gemma's tokenizer, to which transformers' class adds that."""
    backend = tokenizers.Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Replace(" ", "\u2581")
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback()])
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    alphabet = [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=[*special, *alphabet], show_progress=False
    )
    backend.train_from_iterator([*captions, "New York City"], trainer)
    backend.save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": "Siglip2Tokenizer"} | {
        f"{token[1:-1]}_token": token for token in special
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours, theirs = load_tokenizer(tmp_path), auto(tmp_path)
    for text in ("A Photo of New York City", *(c[:200] for c in captions)):
        assert ours.encode(text) == theirs(text)["input_ids"], text
    assert ours.encode("New York") == ours.encode("new york")
    ours.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert again.encode("New York") == ours.encode("New York")
    assert again._files() == ours._files()
