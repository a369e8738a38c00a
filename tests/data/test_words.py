"""Word numbers of tokens, and documents as encoders read them."""

import numpy as np
import pytest

from fmjax.core.errors import TokenizerError
from fmjax.data import Words, eval_batches, text_batches, train_wordpiece


@pytest.fixture(scope="module")
def wordpiece(texts):
    return train_wordpiece(texts, None, 400)


def row(ids, segments=None):
    segments = np.ones(len(ids)) if segments is None else segments
    return {"input_ids": np.array(ids), "segment_ids": np.array(segments, np.int32)}


def test_wordpiece(wordpiece):
    ids = wordpiece.encode("In the beginnings, God")
    numbers = Words.of(wordpiece).add(row(ids))["word_ids"]
    assert numbers[0] == numbers[-1] == -1
    tokens = [wordpiece.id_to_token(i) for i in ids]
    found = {}
    for token, number in zip(tokens, numbers, strict=True):
        found[number] = found.get(number, "") + token.removeprefix("##")
    assert list(found.values())[1:] == ["in", "the", "beginnings", ",", "god"]


def test_sentencepiece(tokenizer):
    ids = tokenizer.encode("In the beginnings, God\nmade")
    numbers = Words.of(tokenizer).add(row(ids))["word_ids"]
    assert numbers[0] == -1  # <s>
    found = {}
    for token, number in zip(map(tokenizer.id_to_token, ids), numbers, strict=True):
        found[number] = found.get(number, "") + token
    assert list(found.values())[1:] == ["▁In", "▁the", "▁beginnings,", "▁God", "<0x0A>made"]


def test_byte_level(tmp_path):
    """The words of text agree with those at whose Ġ a byte-level vocabulary breaks."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    from fmjax.data import HFTokenizer

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    text = "go to the going gone ##\n then go"
    backend.train_from_iterator(
        [text], trainers.BpeTrainer(vocab_size=300, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    tokenizer = HFTokenizer(backend, {})
    numbers = Words.of(tokenizer).add(row(tokenizer.encode("go to going\nthe")))["word_ids"]
    assert numbers[0] == 0 and numbers[-1] == 3 and set(np.diff(numbers)) == {0, 1}


def test_segments_and_padding(wordpiece):
    inside = next(i for i in range(400) if wordpiece.id_to_token(i).startswith("##"))
    numbers = Words.of(wordpiece).add(row([inside] * 5 + [0], [1, 1, 2, 2, 2, 0]))["word_ids"]
    assert numbers.tolist() == [0, 0, 1, 1, 1, -1]


def test_vocabulary_without_marks():
    class Letters:
        vocab_size, special_ids = 3, ()
        id_to_token = staticmethod("abc".__getitem__)

    with pytest.raises(TokenizerError, match="--whole-words.*--kind wordpiece"):
        Words.of(Letters())


def test_documents_stand_between_cls_and_sep(wordpiece):
    settings = {"batch_size": 1, "sequence_length": 12, "process_index": 0, "process_count": 1}
    (batch,) = eval_batches(["in the", "god"], wordpiece, **settings)
    ids = [wordpiece.encode("in the"), wordpiece.encode("god")]
    assert (ids[0][0], ids[0][-1]) == (2, 3)
    joined = [*ids[0], *ids[1]]
    assert batch["input_ids"][0].tolist() == joined + [0] * (12 - len(joined))
    segments = batch["segment_ids"][0, : len(joined)].tolist()
    assert segments == [1] * len(ids[0]) + [2] * len(ids[1])


@pytest.mark.parametrize("streaming", [False, True])
def test_batches_number_words_when_asked(wordpiece, texts, streaming):
    settings = {
        "batch_size": 2, "sequence_length": 16, "process_index": 0, "process_count": 1,
        "streaming": streaming, "prefetch": 0,
    }  # fmt: skip
    plain = next(text_batches(texts, wordpiece, **settings))
    words = Words.of(wordpiece)
    asked = next(text_batches(texts, wordpiece, words=words, **settings))
    assert set(asked) - set(plain) == {"word_ids"}
    for name in plain:
        np.testing.assert_array_equal(plain[name], asked[name])
    for i in range(2):
        expected = words.add({name: plain[name][i] for name in plain})["word_ids"]
        np.testing.assert_array_equal(asked["word_ids"][i], expected)


def test_padding_rows_have_no_words(wordpiece):
    settings = {"batch_size": 4, "sequence_length": 8, "process_index": 0, "process_count": 1}
    (batch,) = eval_batches(["god"], wordpiece, words=Words.of(wordpiece), **settings)
    assert (batch["word_ids"][1:] == -1).all() and (batch["word_ids"][0] >= 0).any()


def test_token_counts(wordpiece, texts):
    settings = {"batch_size": 1, "sequence_length": 8, "process_index": 0, "process_count": 1}
    batches = text_batches(texts[:2], wordpiece, weights=None, **settings)
    ids = [i for text in texts[:2] for i in wordpiece.encode(text)]
    np.testing.assert_array_equal(batches.token_counts(400), np.bincount(ids, minlength=400))
    assert text_batches(texts, wordpiece, streaming=True, **settings).token_counts(400) is None
