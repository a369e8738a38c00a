"""Pieces of text: whole characters, exact cuts, and always the same text in the end."""

import numpy as np
import pytest

import fmjax
from fmjax.data import load_corpus, train_sentencepiece
from fmjax.generate import TextStream


class Utf8:
    """Ids are bytes."""

    def decode(self, ids, skip_special_tokens=True):
        return bytes(i for i in ids if i < 256).decode("utf-8", "replace")


def pieces(tokenizer, ids, prompt=(), stop=(), at_once=1):
    stream = TextStream(tokenizer, prompt, stop)
    out = [stream.push(ids[i : i + at_once]) for i in range(0, len(ids), at_once)]
    out.append(stream.flush())
    assert "".join(out) == stream.text
    return out


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_characters_are_never_broken(at_once):
    text = "naïve €5 — 你好 🙂🙂 end"
    out = pieces(Utf8(), list(text.encode()), at_once=at_once)
    assert "".join(out) == text
    assert not any("\ufffd" in piece for piece in out)
    assert max(map(len, out)) <= at_once + 1  # nothing waits longer than it must


def test_bytes_that_never_become_a_character_are_shown_as_such():
    out = pieces(Utf8(), [*b"a", 0xFF, *b"b", 0xE2, 0x82])
    assert "".join(out) == "a\ufffdb\ufffd"
    assert out[1] == "" and out[2] == "\ufffdb" and out[-1] == "\ufffd"


def test_a_character_begun_in_the_prompt_is_finished():
    prompt, rest = "ab€".encode()[:4], "ab€".encode()[4:] + b"!"
    assert "".join(pieces(Utf8(), list(rest), prompt=list(prompt))) == "€!"


@pytest.fixture(scope="module")
def spm(tmp_path_factory):
    return train_sentencepiece(load_corpus("kjv")[:8], tmp_path_factory.mktemp("spm"), 500)


TEXTS = ["In the beginning God created", " two  spaces, é and 你好 in bytes\n\n and lines ", "x"]


@pytest.mark.parametrize("at_once", [1, 3])
@pytest.mark.parametrize("text", TEXTS)
def test_sentencepiece_text_continues_its_prompt(spm, text, at_once):
    ids = spm.encode(text)
    for cut in range(1, len(ids)):
        out = "".join(pieces(spm, ids[cut:], prompt=ids[:cut], at_once=at_once))
        before = spm.decode(ids[:cut]).rstrip("\ufffd")
        assert before + out == spm.decode(ids)


def test_byte_level_bpe_text_continues_its_prompt(spm, tmp_path):
    from tokenizers import ByteLevelBPETokenizer

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(load_corpus("kjv")[:4], vocab_size=400, show_progress=False)
    bpe.save(str(tmp_path / "tokenizer.json"))
    tokenizer = fmjax.load_tokenizer(tmp_path)
    for text in TEXTS:
        ids = tokenizer.encode(text)
        for cut in range(len(ids)):
            out = pieces(tokenizer, ids[cut:], prompt=ids[:cut])
            before = tokenizer.decode(ids[:cut]).rstrip("\ufffd")
            assert before + "".join(out) == text
            assert not any("\ufffd" in piece for piece in out)


@pytest.mark.parametrize("at_once", [1, 2, 3, 20])
def test_stop_strings_cut_exactly(at_once):
    out = pieces(Utf8(), list(b"one\nQ: two\nQ: x"), stop=("\nQ:",), at_once=at_once)
    assert "".join(out) == "one"


def test_text_that_may_begin_a_stop_string_waits():
    stream = TextStream(Utf8(), stop=("END",))
    assert [stream.push([b]) for b in b"aEENx"] == ["a", "", "E", "", "ENx"]
    assert not stream.stopped
    assert [stream.push([b]) for b in b"EN"] == ["", ""]
    assert stream.flush() == "EN" and stream.text == "aEENxEN"


def test_the_first_stop_counts_and_later_tokens_are_ignored():
    stream = TextStream(Utf8(), stop=("cd", "b", "zz"))
    assert stream.push(list(b"abcd")) == "a"
    assert stream.stopped and stream.push(list(b"more")) == "" and stream.flush() == ""
    assert stream.text == "a"


def test_a_stop_string_may_hold_characters_of_several_bytes():
    assert "".join(pieces(Utf8(), list("x€ y".encode()), stop=("€",))) == "x"


def test_any_division_gives_the_same_text():
    rng = np.random.default_rng(0)
    for _ in range(50):
        ids = rng.choice(list("ab€\nÉ".encode()) + [255], 30).tolist()
        whole = TextStream(Utf8())
        whole.push(ids)
        whole.flush()
        assert whole.text == Utf8().decode(ids)
        assert "".join(pieces(Utf8(), ids)) == whole.text
