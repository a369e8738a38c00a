"""Labels on sub-words, windows over long sentences, and logits as tags again."""

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from fmjax.core.errors import DataError
from fmjax.data import HFTokenizer
from fmjax.data.encoding import encode_words
from fmjax.data.tasks.schemes import label_names
from fmjax.data.tasks.tables import Report
from fmjax.data.tasks.tagging import Tagging
from fmjax.data.tasks.token_labels import (
    entity_spans,
    split_words,
    tagging_features,
    word_tags,
)

NAMES = label_names(["B-PER", "B-LOC"], "BIO")  # O, B-LOC, I-LOC, B-PER, I-PER
CLS, SEP, DROPPED = 1, 2, "\u200b"


def char_tokenizer(frame=True):
    """A word of k letters has k tokens: a, ##b, ##c; nothing of a zero-width space."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    pieces = ["[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{c}" for c in letters)]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    backend = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    backend.normalizer = tokenizers.normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if frame:
        backend.post_processor = processors.BertProcessing(("[SEP]", SEP), ("[CLS]", CLS))
    return HFTokenizer(backend, {})


@pytest.fixture(scope="module")
def chars():
    return char_tokenizer()


def tagging(words, tags):
    places = [f"x, line {i}" for i in range(len(words))]
    return Tagging(words, tags, NAMES, "BIO", places, None, Report(len(words)))


def test_labels_go_to_first_subwords(chars):
    data = tagging([["abc", "d", DROPPED, "ef"], ["g"]], [[3, 4, 0, 1], [0]])
    got = tagging_features(data, chars, max_length=16)
    assert [f["labels"] for f in got.features] == [
        [-100, 3, -100, -100, 4, 1, -100, -100],
        [-100, 0, -100],
    ]
    assert got.features[0]["input_ids"] == encode_words(chars, data.words[0])[0].ids
    assert set(got.features[0]) == {"input_ids", "labels"}
    assert got.counts == {"sentences in several windows": 0, "words without a token": 1}
    every = tagging_features(data, chars, 16, label_all_subwords=True).features
    assert every[0]["labels"] == [-100, 3, 4, 4, 4, 1, 2, -100]
    bare = tagging_features(data.words, chars, 16)
    assert [f["input_ids"] for f in bare.features] == [f["input_ids"] for f in got.features]
    assert set(bare.features[0]) == {"input_ids"} and bare.counts == got.counts


@pytest.mark.parametrize("stride", [None, 0, 1, 4])
def test_windows_lose_no_word(chars, stride):
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcde"), rng.integers(1, 4))) for _ in range(60)]
    tags = rng.integers(0, 5, 60).tolist()
    data = tagging([["x"], words], [[0], tags])
    got = tagging_features(data, chars, max_length=10, stride=stride)
    assert got.counts["sentences in several windows"] == 1
    assert len(got) > 10 and got.sentences == [0] + [1] * (len(got) - 1)
    assert sorted(w for s, ws in zip(got.sentences, got.words, strict=True) if s for w in ws) == (
        list(range(60))
    )
    room = 8
    for feature, positions in zip(got.features, got.positions, strict=True):
        ids, labels = feature["input_ids"], feature["labels"]
        assert len(ids) <= 10 and ids[0] == CLS and ids[-1] == SEP
        assert [i for i, label in enumerate(labels) if label != -100] == positions
    if stride == 4:  # all words but those near the ends have room // 4 tokens on both sides
        for window in range(2, len(got) - 1):
            assert all(3 <= p <= room - 1 for p in got.positions[window])
    # A model that is right about every labelled token is right about every word.
    logits = [8 * np.eye(5)[np.array(f["labels"]).clip(0)] for f in got.features]
    padded = [np.concatenate([x, np.full((3, 5), 99.0)]) for x in logits]
    predicted = word_tags(got, padded)
    assert predicted.tags == [[0], tags]
    expected = np.exp(8) / (np.exp(8) + 4)
    np.testing.assert_allclose(sum(predicted.scores, []), expected, rtol=1e-12)


def test_best_context_wins(chars):
    """Windows hold tokens 0 to 6 and 4 to 9: token 5 has one neighbour before or after
    it in either, and the first of equals speaks for it."""
    words = list("abcdefghij")
    got = tagging_features([words], chars, max_length=9, stride=3)
    assert got.words == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9]]
    assert got.positions == [[1, 2, 3, 4, 5, 6], [3, 4, 5, 6]]


def test_a_word_without_token_is_outside(chars):
    got = tagging_features([["a", DROPPED], [DROPPED]], chars, 8)
    logits = [np.array([[0.0, 9.0]] * len(f["input_ids"])) for f in got.features]
    assert word_tags(got, logits).tags == [[1, 0], [0]]
    assert word_tags(got, logits, outside=1).tags == [[1, 1], [1]]
    assert word_tags(got, logits).scores[0][1] == 1.0


def test_a_sentence_without_any_token_has_no_window():
    got = tagging_features([["a"], [DROPPED], ["b"]], char_tokenizer(frame=False), 8)
    assert got.sentences == [0, 2] and got.counts["words without a token"] == 1
    assert word_tags(got, [np.eye(2)[[1]]] * 2).tags == [[1], [0], [1]]


def test_an_empty_line_to_predict(chars):
    got = tagging_features([[], ["a"]], chars, 8)
    assert got.sentences == [1] and word_tags(got, [np.eye(3)]).tags == [[], [1]]


def test_split_words():
    text = ' He said: "U.S.A don\'t (pay) $3.14…"\n\tnaïve, 漢字 - '
    words, spans = split_words(text)
    assert words == [
        "He", "said", ":", '"', "U.S.A", "don't", "(", "pay", ")", "$", "3.14", "…", '"', "naïve",
        ",", "漢字", "-",
    ]  # fmt: skip
    assert [text[a:b] for a, b in spans] == words
    assert split_words(" \n") == ([], [])


def test_entity_spans():
    text = "Ada Lovelace, in  London"
    words, offsets = split_words(text)
    tags = ["B-PER", "I-PER", "O", "O", "B-LOC"]
    assert words == ["Ada", "Lovelace", ",", "in", "London"]
    assert entity_spans(text, offsets, tags, [0.5, 0.7, 1, 1, 0.9]) == [
        {"label": "PER", "text": "Ada Lovelace", "start": 0, "end": 12, "score": 0.6},
        {"label": "LOC", "text": "London", "start": 18, "end": 24, "score": 0.9},
    ]
    plain = entity_spans(text, offsets, ["N", "N", "P", "O", "N"], [1] * 5, "plain")
    assert [(s["label"], s["text"]) for s in plain] == [
        ("N", "Ada"), ("N", "Lovelace"), ("P", ","), ("N", "London"),
    ]  # fmt: skip


def test_refusals(chars):
    with pytest.raises(DataError, match="max_length=2 leaves room for 0 tokens of a sentence"):
        tagging_features([["a"]], chars, 2)
    with pytest.raises(DataError, match=r"leaves room for 6 .* to less than that \(it is 6\)"):
        tagging_features([["a"]], chars, 8, stride=6)
    got = tagging_features([["a"]], chars, 8)
    with pytest.raises(DataError, match="logits of 0 windows for 1"):
        word_tags(got, [])
    with pytest.raises(DataError, match="window 0 has 3 tokens but logits of 2"):
        word_tags(got, [np.zeros((2, 5))])
